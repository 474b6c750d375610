"""Shared by all tests: one thread per process (so that results do not depend on the machine), fixtures folder."""

import os
from pathlib import Path

import pytest
import torch

FIXTURES = Path(__file__).parent / "fixtures"

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton's interpreter runs the kernels on the CPU. It is chosen once, when a process first imports triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
