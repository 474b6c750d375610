"""Bytes that the operators of a training step read and write, counted by tracing, without running anything.

A memory-bound model takes as long as its bytes do. Every operator that is not a view counts the bytes of its tensor
arguments and results once; fused operators count as one. Sizes come from fake tensors, so the count is exact, the same
on every machine, and takes seconds at any batch size.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Traffic:
    """Bytes and calls by operator name."""

    bytes: Counter = field(default_factory=Counter)
    calls: Counter = field(default_factory=Counter)

    @property
    def total(self):
        """Bytes of all operators."""
        return sum(self.bytes.values())


class CountTraffic(TorchDispatchMode):
    """Counts into `traffic` while active."""

    def __init__(self):
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not is_view(function):
            name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.traffic.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.traffic.calls[name] += 1
        return result


def is_view(function):
    """Whether an operator only looks at memory in another way."""
    if function.is_view or function in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default):
        return True
    return function.namespace == "prim"


def training_traffic(build, batch, img_size, classes, amp_dtype=torch.bfloat16, device="cpu"):
    """Traffic of forward, loss and backward of the model that `build()` makes, for `batch` images (3, H, W).

    The optimizer is left out: its traffic does not depend on the batch.
    """
    model = build().train()
    with FakeTensorMode():
        imagine(model, device)
        images = torch.empty(batch, 3, *img_size, device=device)
        targets = torch.empty(batch, classes, device=device)
        with CountTraffic() as counter:
            with torch.autocast(device, dtype=amp_dtype, enabled=amp_dtype is not None):
                loss = -(targets * model(images).log_softmax(dim=-1)).sum(dim=-1).mean()
            loss.backward()
    return counter.traffic


def imagine(model, device):
    """Replace every parameter and buffer by an empty tensor of its size, in place; for use under FakeTensorMode."""

    def empty(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(empty(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = empty(buffer)
