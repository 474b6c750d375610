"""Optional GPU kernels in Triton, each beside a plain PyTorch reference of the same signature.

Nothing here imports triton before a kernel is run, so the package works without it.
"""

import importlib.util
import os

TRITON_FOUND = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on the CPU, slowly
