"""One thread for small matrices: more only wait for each other."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
