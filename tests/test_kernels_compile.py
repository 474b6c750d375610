"""The kernels compile for a GPU, and a compiler sees them: the interpreter takes much that a compiler refuses."""

import os
import subprocess
import sys

import pytest

from tests.launch import ROOT

pytest.importorskip("triton")

AUGMENTATION = {"window_taps_kernel", "rows_kernel", "columns_kernel", "tables_kernel", "apply_kernel"}
FORWARD = ["g partial gelu_moments_kernel", "out combine_kernel", "table inverse fold_kernel", "out add_kernel"]
BACKWARD = ["partial correlate_kernel", "d_weight d_bias d_gamma d_beta d_scale table unfold_kernel"]
BACKWARD += ["out input_gradient_kernel"]


def lines_of(module, folder):
    """What a module prints that needs Triton's compiler, as lines."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """[(capability, kernel, registers, bytes of spills, fused multiply-adds)] of every kernel."""
    lines = [line.split() for line in lines_of("tests.compile_kernels", tmp_path_factory.mktemp("triton"))]
    return [(int(capability), name, *map(int, counts)) for capability, name, *counts in lines]


def test_of_the_augmentation_only_noise_may_fuse_products_and_sums(compiled):
    """A fused multiply-add rounds once where Pillow rounds twice; logarithm, sine and cosine are written with them."""
    fused = {name: count for _, name, *_, count in compiled if name in AUGMENTATION | {"finish_kernel"}}
    assert {*fused} == {*AUGMENTATION, "finish_kernel"}
    assert {fused[name] for name in AUGMENTATION} == {0}


def test_no_kernel_of_the_shortcut_spills_registers(compiled):
    """With 100 channels too, where loads are one number wide."""
    rows = [row for row in compiled if any(line.endswith(row[1]) for line in FORWARD + BACKWARD)]
    assert len(rows) == 3 * 3 * len(FORWARD + BACKWARD)  # GPUs, sizes
    assert not [row for row in rows if row[3] > 0]
    assert max(registers for _, name, registers, *_ in rows if name == "correlate_kernel") < 255


def test_a_compiler_sees_each_kernel_and_what_it_writes(tmp_path):
    """Were it to believe that a kernel writes what it only reads, it would copy that first."""
    lines = lines_of("tests.trace_kernels", tmp_path)
    assert lines[:-2] == FORWARD + BACKWARD
    for line, kernels in zip(lines[-2:], (FORWARD, BACKWARD), strict=True):
        assert line.split()[1:] == sorted(kernel.split()[-1] for kernel in kernels)
