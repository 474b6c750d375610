"""What a compiler sees of the fused shortcut on a GPU, without having one: its kernels, and what each of them writes.

`python -m tests.trace_kernels`, without TRITON_INTERPRET: a training step of one shortcut on tensors of the CPU goes
through torch.compile, with a driver for Triton that only says which GPU there is and a backend that prints the graphs
instead of running them. Prints one line per kernel, in order: the tensors that it writes, and its name last; then one
line per operator with the kernels whose text is part of the key of PyTorch's cache.
"""

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._library.triton import get_triton_kernels_for_op
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from models import fused_shortcut
from models.shortcut import DWShortcut


class Driver:
    """All that the analysis of a kernel asks."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def print_kernels(module, _):
    """A backend: prints the kernels of a graph, and gives zeros of the right form when it is called."""
    nodes = module.graph.nodes
    for node in nodes:
        if str(node.target) == "triton_kernel_wrapper_functional":
            kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            constants = kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
            free = [parameter.name for parameter in kernel.fn.params if not parameter.is_constexpr]
            floats = [name for name in free if isinstance(constants.get(name), float)]
            assert not floats, f"{kernel.fn.__name__}: Inductor would make float64 of {floats}"
            print(*node.kwargs["tensors_to_clone"], kernel.fn.__name__)
        elif "locality" in str(node.target):
            print(node.target)
    (outputs,) = (node.args[0] for node in nodes if node.op == "output")
    values = [node.meta["val"] if isinstance(node, torch.fx.Node) else node for node in outputs]

    def zeros(*_):
        return [torch.zeros(v.shape, dtype=v.dtype) if isinstance(v, torch.Tensor) else v for v in values]

    return make_boxed_func(zeros)


def main():
    """One step in training mode, two kernels side by side."""
    driver.set_active(Driver())
    fused_shortcut.INTERPRETED = True  # the operator for tensors of the CPU, though nothing interprets it here
    shortcut, tokens = DWShortcut(32, (3, 1), impl="triton"), torch.randn(4, 17, 32, requires_grad=True)
    backend = aot_autograd(fw_compiler=print_kernels, bw_compiler=print_kernels)
    compiled = torch.compile(shortcut.add, backend=backend, fullgraph=True, dynamic=False)
    compiled(tokens, tokens, (4, 4), 1).sum().backward()
    for name in ("shortcut_add", "shortcut_add_backward"):
        kernels = get_triton_kernels_for_op(f"locality::{name}")
        print(name, *sorted(kernel.fn.__name__ for kernel in kernels))


if __name__ == "__main__":
    main()
