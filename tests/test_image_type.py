"""Images reach the model in the type of its products: the same numbers as if autocast had rounded them."""

import pytest
import timm
import torch

from data import HostBatch
from data.mixing import Mixing
from engine.build import build_settings, wants_whole_images
from models.registry import list_variants
from tasks.classification.data import build_data
from tests.helpers_data import alone, silent, small_config
from tests.small import small, small_sizes

TIMM = ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "mixer_s32_224", "swin_tiny_patch4_window7_224")


def gradients(model, images):
    """Of every parameter and of the loss, after one step under bfloat16 autocast."""
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images).float().square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("variant", list_variants())
def test_every_model_computes_the_same(variant):
    """Or says that something comes before its first product: then it is given images as they are."""
    torch.manual_seed(0)
    side = small_sizes(variant)["img_size"]
    model, images = small(variant), torch.randn(2, 3, side, side)
    same = map(torch.equal, gradients(model, images.bfloat16()), gradients(model, images))
    assert all(same) != wants_whole_images(model)


@pytest.mark.parametrize(("tokenizer", "dtype"), [("patch", torch.bfloat16), ("spt", None), ("sope", None)])
def test_the_engine_asks_the_model(tokenizer, dtype):
    config = small_config("digits", size=8, AMP__DTYPE="bfloat16")
    model = small("vit_tiny", locality={"tokenizer": tokenizer})
    settings = build_settings(config, alone(), model)
    assert (settings.amp_dtype, settings.image_dtype) == (torch.bfloat16, dtype)


@pytest.mark.parametrize("name", TIMM)
def test_so_do_models_of_timm(name):
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=3), torch.randn(1, 3, 224, 224)
    model.eval()  # batch norm of one image
    assert all(map(torch.equal, gradients(model, images.bfloat16()), gradients(model, images)))


@pytest.mark.parametrize("keys", [{}, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mode": "elem"}])
def test_images_are_mixed_before_they_are_rounded(keys):
    mixing = Mixing(3, **keys)
    config = small_config("fake:train=8,val=3,classes=3", size=12, batch_size=4, DATA__PIPELINE="device")
    for pending in build_data(config, alone(), silent).train.epoch(0):
        prepared = HostBatch(pending.finish(), pending.labels)
        expected = mixing(prepared, (1,), "cpu")[0].bfloat16()
        for batch in (pending, prepared):
            assert torch.equal(mixing(batch, (1,), "cpu", torch.bfloat16)[0], expected)
