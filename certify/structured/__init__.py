"""Our own solver for the semidefinite programs of LipSDP."""
