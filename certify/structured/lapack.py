"""Routines of BLAS and LAPACK that numpy has no name for, in float64."""

from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

trsv: Any = get_blas_funcs("trsv", dtype=np.float64)
"""Solve with one triangle and one vector."""
potri: Any = get_lapack_funcs("potri", dtype=np.float64)
"""Inverse from a Cholesky factor."""
stev: Any = get_lapack_funcs("stev", dtype=np.float64)
"""Eigenpairs of a symmetric tridiagonal matrix."""
