"""Detectors: the numbers of mmdetection, sizes of published models, edges."""

import numpy as np
import pytest
import torch

from models.dense import feature_pyramid
from models.weights.convert import from_official, new_name
from models.weights.sources import DENSE_SOURCES
from tasks.detection import mask_head
from tasks.detection.model import Learner, official_detector, official_sizes, with_heads
from tasks.detection.pooling import levels, pooled, with_image
from tasks.detection.settings import KINDS
from tests.downstream import Fixture, GivenMaps, of_kind
from tests.small import small_sizes
from tests.test_timm_registry import FAMILIES
from utils.flops import count_macs

PARTS = {"class": "loss_cls", "box": "loss_bbox", "mask": "loss_mask"}
ENTRIES = of_kind("detection")


def changes(fixture):
    """Fields of Settings in which the reference was changed to record an entry."""
    training, test = (fixture.entry["reference_config"][part] for part in ("train_cfg", "test_cfg"))
    proposals = training["rpn_proposal"], test["rpn"]
    return {
        "rpn_samples": training["rpn"]["sampler"]["num"],
        "rpn_candidates": tuple(part["nms_pre"] for part in proposals),
        "rpn_proposals": tuple(part["max_per_img"] for part in proposals),
        "detections": test["rcnn"]["max_per_img"],
    }


class Case:
    """The model of an entry in float64 and what goes into it."""

    def __init__(self, name):
        self.fixture = fixture = Fixture(name)
        if fixture.entry["map_shapes"]:
            state = {new_name(name, DENSE_SOURCES[0]): tensor for name, tensor in fixture.state().items()}
            backbone = GivenMaps(fixture)
        else:
            variant, kwargs, state = from_official(fixture.state())
            backbone = official_detector(variant, kwargs, state).backbone
        head, classes, sizes = official_sizes(state)
        assert (head == "cascade_mask_rcnn") == (fixture.spec["arch"] == "cascade")
        model = with_heads(backbone, classes, head, **sizes, **changes(fixture))
        assert sum(p.numel() for p in model.parameters()) == fixture.entry["parameters"]
        model.load_state_dict(state)
        self.model = model.double()
        specs = fixture.spec["images"]
        self.sizes, self.originals = ([tuple(one[k]) for one in specs] for k in ("img_shape", "ori_shape"))
        self.images = fixture.normal("image", (len(specs), 3, *fixture.spec["batch_shape"]))
        for image, (height, width) in zip(self.images, self.sizes, strict=True):
            image[:, height:], image[:, :, width:] = 0, 0

    def targets(self):
        """With the masks padded to the batch."""
        found = []
        for k in range(len(self.sizes)):
            boxes, labels, masks = (
                torch.from_numpy(self.fixture.array(f"gt.{k}.{part}")) for part in ("boxes", "labels", "masks")
            )
            whole = torch.zeros(len(masks), *self.fixture.spec["batch_shape"], dtype=torch.uint8)
            whole[:, : masks.shape[1], : masks.shape[2]] = masks
            found.append({"boxes": boxes, "labels": labels, "masks": whole})
        return found

    def close(self, name, value):
        """Assert that a value is the recorded one, which may be some of its elements."""
        value = torch.as_tensor(value)
        if name in self.fixture.entry["arrays"]:
            recorded = self.fixture.array(name)
            assert value.shape == recorded.shape, name
            difference = np.abs(value.detach().double().numpy() - recorded).max(initial=0)
        else:
            difference = self.fixture.difference(name, value)
        assert difference < 1e-9, name


def check_heads(case, maps, proposals):
    """The features of all proposals and what each head makes of them."""
    head, rois = case.model.roi_head, with_image(proposals)
    assert np.array_equal(levels(rois[:, 1:], head.strides), case.fixture.array("roi_levels"))
    features = {size: pooled(maps, rois[::step], head.strides, size) for size, step in ((7, 1), (14, 3))}
    for size, value in features.items():
        case.close(f"roi_features_{size}", value)
    for stage in head.stages:
        scores, deltas = head.bbox_head[stage](features[7])
        case.close(f"bbox_head.{stage}.cls_score", scores)
        case.close(f"bbox_head.{stage}.bbox_pred", deltas.flatten(1))
        case.close(f"mask_head.{stage}.mask_pred", head.mask_head[stage](features[14]))


def recorded_calls(model):
    """A list that gets (boxes of each image, scores) of each stage when the model runs."""
    seen, run = [], model.roi_head.box_outputs

    def box_outputs(stage, maps, boxes):
        outputs = run(stage, maps, boxes)
        seen.append((boxes, outputs[0]))
        return outputs

    model.roi_head.box_outputs = box_outputs
    return seen


def check_targets(case, monkeypatch):
    """Have what training aims at compared with what was recorded, while it runs."""
    model, fixture, monkey = case.model, case.fixture, monkeypatch
    rpn, boxes, masks = model.rpn_head.targets, model.roi_head.box_losses, mask_head.mask_targets
    found = {"anchors": [], "deltas": [], "sampled": [], "masks": []}

    def rpn_targets(*args):
        positives, negatives, deltas = rpn(*args)
        found["anchors"].append(positives)
        found["deltas"].append(deltas)
        found["sampled"].append((max(len(positives), 1), max(len(negatives), 1)))
        return positives, negatives, deltas

    def box_losses(stage, outputs, labels, sampled, targets):
        case.close(f"train.stage{stage}.rois", with_image([one.boxes for one in sampled]))
        case.close(f"train.stage{stage}.labels", labels)
        case.close(f"train.stage{stage}.positives", torch.tensor([len(one.owners) for one in sampled]))
        case.close(f"train.stage{stage}.pos_gt", torch.cat([one.owners for one in sampled]))
        return boxes(stage, outputs, labels, sampled, targets)

    def mask_targets(*args):
        found["masks"].append(masks(*args))
        return found["masks"][-1]

    monkey.setattr(model.rpn_head, "targets", rpn_targets)
    monkey.setattr(model.roi_head, "box_losses", box_losses)
    monkey.setattr(mask_head, "mask_targets", mask_targets)

    def afterwards():
        case.close("rpn_targets/positives", torch.cat(found["anchors"]))
        case.close("rpn_targets/deltas", torch.cat(found["deltas"]))
        total = np.sum(found["sampled"], axis=0)
        assert np.array_equal(total, fixture.array("rpn_targets/total"))
        images = len(case.sizes)
        for stage in model.roi_head.stages:
            whole = torch.cat(found["masks"][stage * images : (stage + 1) * images]).bool().numpy()
            packed = np.array([np.packbits(mask) for mask in whole]).reshape(len(whole), 98)
            assert np.array_equal(packed, fixture.array(f"train.stage{stage}.mask_targets_packed"))

    return afterwards


@pytest.mark.parametrize("name", ENTRIES)
@torch.no_grad()
def test_evaluation_is_the_published_one(name):
    case = Case(name)
    model = case.model.eval()
    maps, (anchors, scores, deltas), _ = model.propose(case.images, case.sizes)
    outputs = {"fpn": maps, "rpn_cls": model.rpn_head(maps)[0], "rpn_reg": model.rpn_head(maps)[1], "anchors": anchors}
    for part, values in outputs.items():
        for i, value in enumerate(values):
            case.close(f"{part}.{i}", value)
    proposals = model.rpn_head.proposals((anchors, scores, deltas), case.sizes)
    for k, (boxes, score) in enumerate(proposals):
        case.close(f"proposals.{k}", torch.cat([boxes, score[:, None]], dim=1))
    check_heads(case, maps[:-1], [boxes for boxes, _ in proposals])
    seen = recorded_calls(model)
    detections = model.detect(case.images, case.sizes, case.originals)
    for stage, (boxes, scores) in enumerate(seen) if len(seen) > 1 else ():
        case.close(f"test.stage{stage}.rois", with_image(boxes))
        case.close(f"test.stage{stage}.cls_score", scores)
    for k, found in enumerate(detections):
        case.close(f"detections.{k}.boxes_scores", torch.cat([found.boxes, found.scores[:, None]], dim=1))
        case.close(f"detections.{k}.labels", found.labels)
        packed = case.fixture.array(f"detections.{k}.masks_packed")
        pixels = case.fixture.array(f"detections.{k}.mask_pixels")
        for mask, bits, count in zip(found.masks, packed, pixels, strict=True):
            if count >= 0:  # a box with an area
                assert np.array_equal(np.packbits(mask.numpy()), bits)


@pytest.mark.parametrize("name", ENTRIES)
def test_training_is_the_published_one(name, monkeypatch):
    case = Case(name)
    model, check = case.model.train(), check_targets(case, monkeypatch)
    loss, parts = Learner(model)(case.images, case.sizes, case.targets())
    wanted = {"rpn_class": "loss_rpn_cls", "rpn_box": "loss_rpn_bbox"}
    for stage in model.roi_head.stages:
        own, theirs = (str(stage), f"s{stage}.") if len(model.roi_head.stages) > 1 else ("", "")
        wanted |= {part + own: theirs + recorded for part, recorded in PARTS.items()}
    assert set(parts) == set(wanted)
    for part, recorded in wanted.items():
        assert parts[part].item() == pytest.approx(case.fixture.array(f"loss/{recorded}").sum(), abs=1e-9), part
    assert loss.item() == pytest.approx(float(case.fixture.array("loss/total")), abs=1e-9)
    check()
    loss.backward()
    case.fixture.check_norms("grad", {name: p.grad for name, p in model.named_parameters()})
    if "buffers/names" in case.fixture.entry["arrays"]:
        case.fixture.check_norms("buffers", dict(model.named_buffers()))
    if "grad/maps" in case.fixture.entry["arrays"]:
        norms = [float(image.grad.norm()) for image in model.backbone.maps]
        np.testing.assert_allclose(norms, case.fixture.array("grad/maps"), rtol=1e-9)
        for i, image in enumerate(model.backbone.maps):
            case.close(f"grad/maps.{i}", image.grad)


WIDTHS = {"channels": 16, "fc_channels": 24, "conv_channels": 16, "mask_channels": 16}
SIZES = [(64, 90), (50, 60)]


def small_detector(head="mask_rcnn", variant="swin_tiny", **changes):
    """A tiny detector of 3 classes with a shortcut in its backbone."""
    torch.manual_seed(0)
    sizes = small_sizes(variant) if not variant.startswith("timm/") else {"img_size": 64}
    sizes.pop("num_classes", None)
    backbone = feature_pyramid(variant, **sizes, shortcut={"kernels": [3]})
    return with_heads(backbone, 3, head, **{**WIDTHS, **changes})


def small_batch():
    """Padded images, sizes, and targets: two objects in the first image, none in the second."""
    images = torch.randn(2, 3, 64, 96)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    boxes = torch.tensor([[3.0, 4, 40, 50], [20, 20, 60, 60]])
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    full = {"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks}
    return images, SIZES, [full, {name: value[:0] for name, value in full.items()}]


@pytest.mark.parametrize(
    ("variant", "head", "millions", "billions"),
    [
        ("swin_tiny", "mask_rcnn", 47.79, 267),
        ("swin_tiny", "cascade_mask_rcnn", 85.63, 745),
        ("dwnet_tiny", "cascade_mask_rcnn", 81.51, 730),
        ("dwnet_base", "cascade_mask_rcnn", 131.56, 924),
        ("dynamic_dwnet_tiny", "cascade_mask_rcnn", 108.47, None),
        ("dynamic_dwnet_base", "cascade_mask_rcnn", 218.81, None),
    ],
)
def test_sizes_of_the_published_models(variant, head, millions, billions):
    """At 800 x 1280: 267.0, 745.5, 727.9 and 920.8 G here; mmcv, which counted the published ones, has other terms."""
    with torch.device("meta"):
        model = with_heads(feature_pyramid(variant), 80, head)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    if billions:
        assert count_macs(model, (800, 1280))["total"] / 1e9 == pytest.approx(billions, rel=0.004)


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("objects", [True, False])
def test_every_parameter_learns_with_and_without_objects(head, objects):
    model, (images, sizes, targets) = small_detector(head), small_batch()
    if not model.settings.masks:
        targets = [{name: value for name, value in one.items() if name != "masks"} for one in targets]
    loss, parts = Learner(model)(images, sizes, targets if objects else targets[1:] * 2)
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name, p in model.named_parameters() if not p.grad.isfinite().all()]
    boxes = [name for name in parts if name.startswith(("box", "mask"))]
    assert len(boxes) == (3 if head.startswith("cascade") else 1) * (2 if model.settings.masks else 1)
    assert all((parts[name] > 0) == objects for name in boxes if name.rstrip("12") == name)
    assert sum(parts.values()).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("variant", [*FAMILIES, "timm/resnet10t", "timm/vit_tiny_patch16_224"])
def test_any_backbone_carries_a_detector(variant):
    model, batch = small_detector(variant=variant), small_batch()
    Learner(model)(*batch)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with torch.no_grad():
        found = model.eval().detect(batch[0], SIZES, [(128, 180), (25, 30)])
    assert [len(one.masks) for one in found] == [len(one.boxes) for one in found]
    for one, size in zip(found, [(128, 180), (25, 30)], strict=True):
        assert one.masks[0].shape == size
        assert (one.boxes[:, 2:] >= one.boxes[:, :2]).all()
        assert (one.boxes.amax(0)[2:] <= torch.tensor([size[1], size[0]])).all()
        assert (one.scores.diff() <= 0).all()


def test_training_is_a_function_of_torchs_generator():
    model, batch = small_detector(roi_samples=8, rpn_samples=8), small_batch()
    losses = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        losses.append(Learner(model)(*batch)[0].item())
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
def test_bfloat16_computes_boxes_and_losses_in_float32(head):
    model, (images, sizes, targets) = small_detector(head), small_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = Learner(model)(images.bfloat16(), sizes, targets)
        found = model.eval().detect(images, sizes, sizes)
    loss.backward()
    assert {part.dtype for part in parts.values()} == {torch.float32}
    assert found[0].boxes.dtype == found[0].scores.dtype == torch.float32
    exact = sum(small_detector(head).losses(images, sizes, targets).values())
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


def test_initial_values_are_mmdetections():
    model = small_detector("cascade_mask_rcnn", channels=64, conv_channels=64, fc_channels=256, mask_channels=64)
    box, mask = model.roi_head.bbox_head[0], model.roi_head.mask_head[0]
    he = (2 / (64 * 9)) ** 0.5
    expected = {
        model.rpn_head.conv[0][0]: 0.01,
        model.neck.layer_blocks[0][0]: (2 / (2 * 64 * 9)) ** 0.5,
        box.convs[0][0]: he,
        box.fcs[0]: (2 / (64 * 49 + 256)) ** 0.5,
        box.fc_cls: 0.01,
        box.fc_reg: 0.001,
        mask.convs[3][0]: he,
        mask.predictor.conv5_mask: (2 / (64 * 4)) ** 0.5,
    }
    for layer, deviation in expected.items():
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert layer.bias is None or not layer.bias.any()


def test_thresholds_and_numbers_are_settable():
    few = small_detector(detections=4, score_threshold=0.0).eval()
    images, sizes, _ = small_batch()
    with torch.no_grad():
        assert [len(one.boxes) for one in few.detect(images, sizes, sizes)] == [4, 4]
        none = small_detector(score_threshold=0.99).eval().detect(images, sizes, sizes)
    assert [(len(one.boxes), len(one.masks)) for one in none] == [(0, 0)] * 2


@pytest.mark.parametrize("part", ["rpn_head.bbox_pred", "roi_head.bbox_head.0.fc_reg"])
def test_what_is_no_number_is_a_loss_that_is_none_and_no_crash(part):
    """RoIAlign of such a box would read memory that is not its own."""
    model, (images, sizes, targets) = small_detector("cascade_mask_rcnn"), small_batch()
    torch.nn.init.constant_(model.get_submodule(part).weight, float("nan"))
    loss, _ = Learner(model)(images, sizes, targets)
    assert not loss.isfinite()
    with torch.no_grad():
        for found in model.eval().detect(images, sizes, sizes):
            assert found.boxes.isfinite().all()
