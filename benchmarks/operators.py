"""The operators of a training step: the bytes that they read and write, their groups, and a picture of them as bars.

A memory-bound model takes as long as its bytes do. They are counted by tracing, without running anything: every
operator that is not a view counts the bytes of its tensor arguments and results once; fused operators count as one.
Sizes come from fake tensors, so the count is exact, the same on every machine, and takes seconds at any batch size.
"""

from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tools.shared.figures import COLORS, new_figure, save, styled

FUSED = ("locality::", "gelu_moments", "add_kernel", "correlate", "input_gradient", "combine_kernel", "fold_kernel")
GROUPS = {  # parts of the names of operators and of GPU kernels; the first group with one of them counts
    "fused shortcut": FUSED,
    "optimizer, clipping": ("adam", "foreach", "multi_tensor", "lpnorm", "vector_norm"),
    "attention": ("attention", "flash", "fmha", "softmax", "bmm"),
    "linear layers": ("addmm", "mm", "gemm", "nvjet", "cutlass", "xmma"),
    "norms": ("norm",),
    "GELU": ("gelu",),
    "depth-wise convolutions": ("conv", "constant_pad"),
}
REST = "sums, casts, copies"
NOTHING = "no operator runs"


class CountTraffic(TorchDispatchMode):
    """Counts the bytes and calls of operators by name while active."""

    def __init__(self):
        super().__init__()
        self.bytes, self.calls = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not is_view(function):
            name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.calls[name] += 1
        return result


def is_view(function):
    """Whether an operator only looks at memory in another way."""
    if function.is_view or function in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default):
        return True
    return function.namespace == "prim"


def training_traffic(build, batch, img_size, classes, amp_dtype=torch.bfloat16):
    """CountTraffic of forward, loss and backward of the model that `build()` makes, for `batch` images (3, H, W).

    The policy of autocast is the CPU's. The optimizer is left out: its traffic does not depend on the batch.
    """
    with torch.device("meta"):  # without initial values, which take longer than the tracing
        model = build().train()
    with FakeTensorMode():
        model._apply(lambda meta: torch.empty(meta.shape, dtype=meta.dtype))  # as to_empty, which reads meta tensors
        images, targets = torch.empty(batch, 3, *img_size), torch.empty(batch, classes)
        with CountTraffic() as counter:
            with torch.autocast("cpu", dtype=amp_dtype, enabled=amp_dtype is not None):
                loss = -(targets * model(images).log_softmax(dim=-1)).sum(dim=-1).mean()
            loss.backward()
    return counter


def by_group(amounts):
    """{group: sum} of {name of an operator or kernel: amount}, in the order of GROUPS; groups without any left out."""
    found = dict.fromkeys((*GROUPS, REST), 0)
    for name, amount in amounts.items():
        groups = (group for group, parts in GROUPS.items() if any(part in name.lower() for part in parts))
        found[next(groups, REST)] += amount
    return {group: amount for group, amount in found.items() if amount}


@styled
def draw(bars, xlabel, path):
    """One bar for each of {label: {group: amount}}. Raises ConfigError (ending of `path`) and StorageError."""
    figure = new_figure(9, 1.2 + 0.5 * len(bars))
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for number, group in enumerate((*GROUPS, REST, NOTHING)):
        sizes = [bar.get(group, 0) for bar in bars.values()]
        hatch = "//" if number >= len(COLORS) else None  # the colours come round once
        if any(sizes):
            look = {"color": COLORS[number % len(COLORS)], "hatch": hatch, "edgecolor": "white"}
            axes.barh(range(len(bars)), sizes, left=left, label=group, **look)
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(bars)), bars)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=xlabel)
    figure.legend(loc="outside upper center", ncols=4)
    save(figure, path)
