"""What all tests share: the test processes divide the cores, so that each of them computes in one thread."""

import os

# Read by the mathematical libraries when they are first imported, which is after this; subprocesses inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
