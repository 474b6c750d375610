"""Shared by all tests: one thread per process (so that results do not depend on the machine), fixtures folder."""

import os
from pathlib import Path

import pytest
import torch

FIXTURES = Path(__file__).parent / "fixtures"
# What `make quick` leaves out: whole runs, full-size models, compiled and exported ones. A new file is in it.
SLOW = {
    "average", "bad_inputs", "benchmarks", "cam", "check_model", "compile", "convert_tool", "cvt", "data_loaders",
    "data_parquet", "demo_segmentation", "detection_check", "detection_export", "detection_runs", "detection_tools",
    "device_loader", "dino", "export", "faults", "features", "finetune", "flops", "fused_models", "fused_shortcut",
    "hub", "kernels_augment", "kernels_compile", "main", "methods", "nodes", "own_method", "pack", "packaging",
    "parity", "parity_rivals", "scaling", "segmentation_check", "soak", "sweep", "timm_registry", "timm_suite",
    "timm_wrap", "tool_names", "tools_hostile",
}  # fmt: skip

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton's interpreter runs the kernels on the CPU. It is chosen once, when a process first imports triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """Mark the tests of SLOW files."""
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
