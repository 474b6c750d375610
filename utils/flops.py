"""Multiply-accumulates of one image, counted as fvcore does (the convention of arXiv 2407.19394's tables)."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten

# Which of fvcore's operators each low-level one belongs to.
OPERATORS = {
    aten.addmm: "linear",
    aten.mm: "linear",
    aten.bmm: "matmul",
    aten.baddbmm: "matmul",
    aten._scaled_dot_product_flash_attention: "matmul",
    aten._scaled_dot_product_efficient_attention: "matmul",
    aten._scaled_dot_product_cudnn_attention: "matmul",
    aten.convolution: "conv",
    aten._convolution: "conv",
    aten.native_layer_norm: "layer_norm",
    aten.native_batch_norm: "batch_norm",
    aten._native_batch_norm_legit_no_training: "batch_norm",
    aten.cudnn_batch_norm: "batch_norm",
    aten._batch_norm_no_update: "batch_norm",
}
PER_ELEMENT = {"layer_norm": 5, "batch_norm": 2}  # fvcore's count for norms, batch norm in evaluation mode


def count_macs(model, img_size):
    """{'total': int, 'by_operator': {'linear': int, ...}} for one image of img_size (int or (H, W)) in evaluation mode.

    Multiply-accumulates of linear layers, convolutions and matrix products, those inside attention included, plus
    5 per element of a LayerNorm, 2 of a BatchNorm and 1 per input element of an AdaptiveAvgPool2d. Nothing is computed:
    a copy of the model without values is run on the meta device, so the model itself, its mode and its statistics stay
    as they are. A model whose work depends on what is in the image says by `fixed_work(images)` what is counted.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    hollow = hollow_copy(model).eval()
    convolutions = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    channels = next((convolution.in_channels for convolution in convolutions), 3)  # of the first one
    images = torch.empty(1, channels, height, width, device="meta", dtype=next(model.parameters()).dtype)
    norms = {op: _norm_counter(PER_ELEMENT[name]) for op, name in OPERATORS.items() if name in PER_ELEMENT}
    by_operator = _count_pools(hollow)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=norms) as counter:
        getattr(hollow, "fixed_work", hollow)(images)
    for op, count in counter.get_flop_counts()["Global"].items():
        name = OPERATORS.get(op, str(op))
        # FlopCounterMode counts a multiply-accumulate as two operations.
        by_operator[name] = by_operator.get(name, 0) + (count if op in norms else count // 2)
    return {"total": sum(by_operator.values()), "by_operator": by_operator}


def hollow_copy(model):
    """A copy whose parameters and buffers have shapes but no values; costs no memory."""
    hollow = {id(t): torch.nn.Parameter(t.detach().to("meta"), requires_grad=False) for t in model.parameters()}
    hollow |= {id(t): t.detach().to("meta") for t in model.buffers()}
    return copy.deepcopy(model, hollow)


def _count_pools(model):
    """A dict that gets 'adaptive_avg_pool2d', 1 per input element, as soon as such a module of `model` runs.

    Counted at the module, because the operator below it is the same mean that fvcore does not count elsewhere.
    """
    counts = {}

    def count(module, inputs, output):
        counts["adaptive_avg_pool2d"] = counts.get("adaptive_avg_pool2d", 0) + inputs[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.AdaptiveAvgPool2d):
            module.register_forward_hook(count)
    return counts


def _norm_counter(per_element):
    def count(x_shape, *args, out_shape=None, **kwargs):
        return per_element * torch.Size(x_shape).numel()

    return count
