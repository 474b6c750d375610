"""Detectors: the numbers of mmdetection, sizes of published models, edges."""

import numpy as np
import pytest
import torch

from models.weights.convert import from_official, new_name
from models.weights.sources import DENSE_SOURCES
from tasks.detection.model import Learner, official_detector, official_sizes, with_heads
from tests.downstream import Fixture, GivenMaps, of_kind

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


@pytest.mark.parametrize("name", ENTRIES)
@torch.no_grad()
def test_evaluation_is_the_published_one(name):
    case = Case(name)
    model = case.model.eval()
    maps, (anchors, scores, deltas), _ = model.propose(case.images, case.sizes)
    outputs = {"fpn": maps, "rpn_cls": model.rpn_head(maps)[0], "rpn_reg": model.rpn_head(maps)[1], "anchors": anchors}
    for part, levels in outputs.items():
        for i, level in enumerate(levels):
            case.close(f"{part}.{i}", level)
    proposals = model.rpn_head.proposals((anchors, scores, deltas), case.sizes)
    for k, (boxes, score) in enumerate(proposals):
        case.close(f"proposals.{k}", torch.cat([boxes, score[:, None]], dim=1))
    detections = model.detect(case.images, case.sizes, case.originals)
    for k, found in enumerate(detections):
        case.close(f"detections.{k}.boxes_scores", torch.cat([found.boxes, found.scores[:, None]], dim=1))
        case.close(f"detections.{k}.labels", found.labels)
        packed = case.fixture.array(f"detections.{k}.masks_packed")
        pixels = case.fixture.array(f"detections.{k}.mask_pixels")
        for mask, bits, count in zip(found.masks, packed, pixels, strict=True):
            if count >= 0:  # a box with an area
                assert np.array_equal(np.packbits(mask.numpy()), bits)


@pytest.mark.parametrize("name", ENTRIES)
def test_training_is_the_published_one(name):
    case = Case(name)
    model = case.model.train()
    loss, parts = Learner(model)(case.images, case.sizes, case.targets())
    wanted = {"rpn_class": "loss_rpn_cls", "rpn_box": "loss_rpn_bbox"}
    for stage in model.roi_head.stages:
        own, theirs = (str(stage), f"s{stage}.") if len(model.roi_head.stages) > 1 else ("", "")
        wanted |= {part + own: theirs + recorded for part, recorded in PARTS.items()}
    assert set(parts) == set(wanted)
    for part, recorded in wanted.items():
        assert parts[part].item() == pytest.approx(case.fixture.array(f"loss/{recorded}").sum(), abs=1e-9), part
    assert loss.item() == pytest.approx(float(case.fixture.array("loss/total")), abs=1e-9)
    loss.backward()
    case.fixture.check_norms("grad", {name: p.grad for name, p in model.named_parameters()})
    if "buffers/names" in case.fixture.entry["arrays"]:
        case.fixture.check_norms("buffers", dict(model.named_buffers()))
    if "grad/maps" in case.fixture.entry["arrays"]:
        norms = [float(image.grad.norm()) for image in model.backbone.maps]
        np.testing.assert_allclose(norms, case.fixture.array("grad/maps"), rtol=1e-9)
        for i, image in enumerate(model.backbone.maps):
            case.close(f"grad/maps.{i}", image.grad)
