"""The arithmetic of detection: anchors, boxes, matches, pooling, masks - mmdetection's numbers and the edges."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from tasks.detection import matching
from tasks.detection.anchors import base_anchors, level_anchors, trainable
from tasks.detection.boxes import RPN_STDS, STAGE_STDS, clipped, decode, encode, giou_loss
from tasks.detection.mask_head import mask_targets
from tasks.detection.matching import BACKGROUND, IGNORED, match, sample, sample_proposals
from tasks.detection.pasting import PastedMasks, pasted
from tasks.detection.pooling import levels, pooled
from tasks.detection.roi_head import GIOU_WEIGHT, RoIHead
from tasks.detection.rpn import RPN
from tasks.detection.settings import KINDS, settings_of
from tests.downstream import Fixture, of_kind
from utils.errors import ConfigError

STRIDES = (4, 8, 16, 32, 64)
SIDES = range(64, 1025, 64)  # of images whose maps may have been pooled: their size was not recorded


@pytest.fixture(params=of_kind("primitives"))
def recorded(request):
    return Fixture(request.param)


def arrays(fixture, *names):
    return [torch.from_numpy(fixture.array(name)) for name in names]


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_anchors(recorded):
    equal(
        torch.tensor([base_anchors(stride) for stride in STRIDES], dtype=torch.float64),
        *arrays(recorded, "anchors/base"),
    )
    for name in {name.rpartition("/")[0] for name in recorded.entry["tensors"] if name.startswith("anchors/")}:
        for i, size in enumerate(recorded.array(f"{name}/map_sizes").tolist()):
            found = level_anchors(size, STRIDES[i], torch.float64)
            assert len(found) == recorded.array(f"{name}/counts")[i]
            assert recorded.difference(f"{name}/{i}", found) < 1e-9


@pytest.mark.parametrize(
    ("part", "stds"), [("rpn", RPN_STDS), *((f"stage{s}", stds) for s, stds in enumerate(STAGE_STDS))]
)
def test_boxes_as_differences(recorded, part, stds):
    boxes, deltas, targets, size = arrays(recorded, "coder/boxes", "coder/deltas", "coder/targets", "coder/image_shape")
    encoded, free, within = arrays(
        recorded, *(f"coder/{part}/{name}" for name in ("encode", "decode_free", "decode_clipped"))
    )
    equal(encode(boxes, targets, stds), encoded)
    equal(decode(boxes, deltas, stds), free)
    equal(clipped(decode(boxes, deltas, stds), size.tolist()), within)


def test_overlap_loss(recorded):
    predicted, target, each = arrays(recorded, "giou/predicted", "giou/target", "giou/loss_each")
    equal(giou_loss(predicted, target), each)
    mean, count = recorded.numbered("giou/loss_x10_avg")
    assert GIOU_WEIGHT * each.sum().item() / count == pytest.approx(float(mean), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "ious"),
    [("rpn", (0.7, 0.3, 0.3)), ("mask_rcnn_roi", (0.5, 0.5, 0.5))]
    + [(f"cascade_{s}", (iou, iou)) for s, iou in enumerate((0.5, 0.6, 0.7))],
)
@pytest.mark.parametrize("pairs", [1, 1000, matching.PAIRS])
def test_matches(recorded, monkeypatch, name, ious, pairs):
    """Also where not all objects are compared at a time."""
    monkeypatch.setattr(matching, "PAIRS", pairs)
    boxes, truth, expected = arrays(recorded, "assign/candidates", "assign/gt", f"assign/{name}")
    assert torch.equal(match(boxes, truth, *ious) - 1, expected.long())


def test_pooling(recorded):
    rois, expected = arrays(recorded, "roi/rois", "roi/levels")
    strides = STRIDES[:4]
    assert torch.equal(levels(rois[:, 1:], strides), expected)
    maps = pooled_maps(recorded, rois, strides)
    for size in (7, 14):
        found = pooled(maps, rois, strides, size)
        assert recorded.difference(f"roi/align_{size}", found) < 1e-9
        equal(found.flatten(1).mean(1), *arrays(recorded, f"roi/align_{size}_mean_each"))


def pooled_maps(recorded, rois, strides):
    """The maps of the image size with which the coarsest map's regions are the recorded ones."""
    counts, channels = int(rois[:, 0].max()) + 1, recorded.entry["tensors"]["roi/align_7"]["shape"][1]
    (wanted,) = arrays(recorded, "roi/align_7_mean_each")
    levels_of = levels(rois[:, 1:], strides)
    coarsest = int(levels_of.max())
    chosen, stride = rois[levels_of == coarsest], strides[coarsest]
    for size in itertools.product(SIDES, SIDES):
        shapes = [(counts, channels, *(side // stride for side in size)) for stride in strides]
        found = pooled([recorded.normal(f"roi.maps.{coarsest}", shapes[coarsest])], chosen, [stride], 7)
        if torch.allclose(found.flatten(1).mean(1), wanted[levels_of == coarsest], rtol=0, atol=1e-9):
            return [recorded.normal(f"roi.maps.{i}", shape) for i, shape in enumerate(shapes)]
    pytest.fail("no size of an image gives the recorded means")


def test_suppression(recorded):
    boxes, scores, expected, classes = arrays(recorded, "nms/boxes", "nms/scores", "nms/detections", "nms/labels")
    head = RoIHead(boxes.shape[1], STRIDES[:4], settings_of("mask_rcnn", channels=1, detections=len(expected)))
    box, score, label = head.best(boxes, scores[:, :-1])
    equal(torch.cat([box, score[:, None]], dim=1), expected)
    assert torch.equal(label, classes)


def test_mask_targets(recorded, monkeypatch):
    masks, boxes, owners = arrays(recorded, "mask_target/masks", "mask_target/boxes", "mask_target/gt")
    found = mask_targets(masks, boxes, owners)
    packed = np.stack([np.packbits(mask.numpy().astype(bool)) for mask in found])
    assert np.array_equal(packed, recorded.array("mask_target/targets_packed"))
    monkeypatch.setattr("tasks.detection.mask_head.PIXELS", 1)
    assert torch.equal(mask_targets(masks, boxes, owners), found)


def test_pasting(recorded):
    logits, boxes, labels = arrays(recorded, "paste/logits", "paste/boxes", "paste/labels")
    probabilities = logits.double().sigmoid()[torch.arange(len(labels)), labels]
    wanted, fitting = recorded.array("paste/masks_packed"), []
    for size in sizes_of(8 * wanted.shape[1]):
        masks = PastedMasks(probabilities, boxes, size, 0.5)
        packed = np.stack([np.packbits(mask.numpy()) for mask in masks])
        fitting += [masks] if np.array_equal(packed, wanted) else []
    (masks,) = fitting
    assert [int(mask.sum()) for mask in masks] == recorded.array("paste/pixels").tolist()
    assert torch.equal(masks[-1], masks[len(masks) - 1])


def sizes_of(bits):
    """(height, width) of all images whose pixels fill the last byte of so many bits: their size was not recorded."""
    return [(area // width, width) for area in range(bits - 7, bits + 1) for width in range(1, area + 1)
            if area % width == 0]  # fmt: skip


def test_losses(recorded):
    """What torch is asked to compute is what was recorded."""
    (deltas,) = arrays(recorded, "coder/deltas")
    for name, head in (("l1", "mask_rcnn"), ("smooth_l1_ninth", "cascade_rcnn")):
        mean, count = recorded.numbered(f"{name}/loss_avg")
        total = F.smooth_l1_loss(deltas, deltas.flip(0), reduction="sum", beta=settings_of(head).rpn_beta)
        assert total.item() / count == pytest.approx(float(mean), abs=1e-9)
    mean, _ = recorded.numbered("ce/loss_avg")
    assert F.cross_entropy(*arrays(recorded, "ce/logits", "ce/labels")).item() == pytest.approx(float(mean), abs=1e-9)


def test_decoding_is_the_inverse_of_encoding():
    start = torch.rand(50, 4).double() * 40 + torch.tensor([0, 0, 50, 50])
    target = start + torch.tensor([-3.0, 2, 5, 9])
    for stds in (RPN_STDS, *STAGE_STDS):
        torch.testing.assert_close(decode(start, encode(start, target, stds), stds), target)


def test_an_object_without_a_good_anchor_gets_its_best_if_that_is_good_enough():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 81, 81]])
    truth = torch.tensor([[0.0, 0, 10, 4], [50, 50, 60, 52], [0, 0, 10, 10]])
    assert box_iou(boxes, truth)[1, 0] == pytest.approx(4 / 9)
    assert match(boxes, truth, 0.7, 0.3, 0.3).tolist() == [3, 1, BACKGROUND, BACKGROUND]
    assert match(boxes, truth[:2], 0.7, 0.3, 0.3).tolist() == [IGNORED, 1, BACKGROUND, BACKGROUND]
    assert match(boxes, truth[:2], 0.7, 0.3).tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_matches_without_boxes_or_objects():
    some, none = torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(0, 4)
    assert match(some, none, 0.7, 0.3, 0.3).tolist() == [BACKGROUND]
    assert match(none, some, 0.7, 0.3, 0.3).tolist() == match(none, none, 0.5, 0.5).tolist() == []


def test_samples_are_drawn_from_torchs_generator():
    matched = torch.tensor([BACKGROUND, 2, IGNORED, 1] * 50)
    torch.manual_seed(0)
    first = sample(matched, 40, 0.25)
    again = sample(matched, 40, 0.25)
    torch.manual_seed(0)
    assert all(torch.equal(*pair) for pair in zip(first, sample(matched, 40, 0.25), strict=True))
    assert not torch.equal(first[0], again[0])
    positives, negatives = first
    assert (len(positives), len(negatives)) == (10, 30)
    assert (matched[positives] > 0).all()
    assert (matched[negatives] == BACKGROUND).all()
    assert [len(part) for part in sample(matched[:8], 40, 0.25)] == [4, 2]  # fewer than asked for


def test_objects_are_among_their_own_proposals():
    truth = torch.tensor([[0.0, 0, 8, 8], [20, 20, 40, 40]])
    proposals = torch.tensor([[0.0, 0, 8, 7], [50, 50, 60, 60]])
    found = sample_proposals(proposals, truth, 0.5, settings_of("mask_rcnn"))
    assert torch.equal(found.boxes, torch.cat([truth, proposals]))
    assert found.owners.tolist() == [0, 1, 0]
    assert found.true.tolist() == [True, True, False]


def test_anchors_in_the_padding_of_a_batch_are_not_trained():
    map_sizes, size = [(16, 24), (8, 12)], (33, 60)  # by itself it would be padded to 64 x 64
    anchors = torch.cat(
        [level_anchors(one, stride, torch.float32) for one, stride in zip(map_sizes, (4, 8), strict=True)]
    )
    x, y = anchors[:, 0::2].mean(1), anchors[:, 1::2].mean(1)
    assert torch.equal(trainable(anchors, map_sizes, (4, 8), size, False), (x < 64) & (y < 64))
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] < 60) & (anchors[:, 3] < 33)
    assert inside.any()
    assert torch.equal(trainable(anchors, map_sizes, (4, 8), size, True), inside)


def test_proposals_are_limited_per_level_and_image():
    network = RPN(
        (4, 8), settings_of("mask_rcnn", channels=4, rpn_candidates=(9, 5), rpn_proposals=(12, 6), rpn_nms=1.0)
    )
    predicted = network.predict([torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)], torch.float32)
    for mode, wanted in ((True, 12), (False, 6)):
        for boxes, scores in network.train(mode).proposals(predicted, [(32, 30), (20, 32)]):
            assert len(boxes) == wanted
            assert (scores.diff() <= 0).all()


def test_masks_at_the_edges():
    probabilities = torch.ones(28, 28)
    assert pasted(probabilities, torch.tensor([-5.0, -5, 4, 3]), (6, 8), 0.5).nonzero().amax(0).tolist() == [2, 3]
    assert not pasted(probabilities, torch.tensor([3.0, 3, 3, 9]), (6, 8), 0.5).any()
    assert not pasted(probabilities, torch.tensor([30.0, 30, 40, 40]), (6, 8), 0.5).any()
    assert pasted(probabilities, torch.tensor([0.0, 0, 8, 6]), (6, 8), 0.5).all()


def test_kinds_and_their_names():
    assert settings_of("cascade_mask_rcnn", detections=7).detections == 7
    assert [settings_of(kind).masks for kind in KINDS] == [True, True, False, False]
    with pytest.raises(ConfigError, match=r"'mask_rcn'.*mask_rcnn"):
        settings_of("mask_rcn")
