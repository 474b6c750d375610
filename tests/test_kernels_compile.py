"""The kernels of kernels/augment*.py compile for a GPU: the interpreter takes much that the compiler refuses."""

import os
import subprocess
import sys

import pytest

from tests.launch import ROOT

pytest.importorskip("triton")

KERNELS = {"window_taps_kernel", "rows_kernel", "columns_kernel", "tables_kernel", "apply_kernel"}


def test_every_kernel_compiles_and_only_noise_may_fuse_products_and_sums(tmp_path):
    """A fused multiply-add rounds once where Pillow rounds twice; logarithm, sine and cosine are written with them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.compile_kernels"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    fused = {name: int(count) for name, size, count in lines if int(size) > 0}
    assert {*fused} == {*KERNELS, "finish_kernel"}
    assert {fused[name] for name in KERNELS} == {0}
