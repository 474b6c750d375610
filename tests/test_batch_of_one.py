"""A batch of one image gives half of what the image twice gives: the sums over the batch are twice as large."""

import copy

import pytest
import torch

from tests.small import small, small_sizes
from tests.test_timm_registry import FAMILIES

# A predicted kernel normalises over the batch alone, where one image has no variance: see models.dwnet.
PREDICTED = ("dynamic_dwnet_tiny",)


@pytest.mark.parametrize("shortcut", [None, {"kernels": [3, 5], "identity": True}], ids=str)
@pytest.mark.parametrize("variant", [v for v in FAMILIES if v not in PREDICTED])
def test_gradients(variant, shortcut):
    """PyTorch's BatchNorm on CPUs computes wrong ones for some layouts of one image (see models.layers.to_image)."""
    one = small(variant, shortcut=shortcut).double()
    two = copy.deepcopy(one)
    side = small_sizes(variant)["img_size"]
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    one(x).square().sum().backward()
    two(torch.cat([x, x])).square().sum().backward()
    for (name, p), q in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(2 * p.grad, q[1].grad, msg=name)


@pytest.mark.parametrize("variant", FAMILIES)
def test_feature_maps_keep_their_gradients_through_batch_norm(variant):
    model = small(variant, shortcut={"kernels": [3]}).double().eval()
    side = small_sizes(variant)["img_size"]
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    image = model.feature_maps(x)[0].detach().requires_grad_()
    head = torch.nn.BatchNorm2d(image.shape[1]).double()
    weight = torch.randn(image.shape, dtype=torch.float64)  # contiguous, unlike the map
    (head(image) * weight).sum().backward()
    found, image.grad = image.grad, None
    (head(image.contiguous()) * weight).sum().backward()
    torch.testing.assert_close(found, image.grad)
