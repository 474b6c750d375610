"""COCO's figures against those that pycocotools recorded, by both evaluators, and the same on any number of ranks."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.detection import metrics
from tasks.detection.batches import EvalBatch
from tasks.detection.data import build_data
from tasks.detection.metrics import FIGURES, DetectionMeter, figures, judged
from tests.downstream import FOLDER
from tests.helpers_data import alone, silent, small_config
from utils.distributed import World
from utils.errors import DataError

CPU = torch.device("cpu")
RECORDED = [("box", "mask", "bbox"), ("mask", "mask", "segm_without_bbox_in_results"), ("mask", "box", "segm")]


@pytest.fixture(params=[False, True], ids=["pycocotools", "faster"])
def evaluator(request, monkeypatch):
    """Judging by one of the two."""
    monkeypatch.setattr(metrics, "has_faster", lambda: request.param)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("coco_eval*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize(("kind", "mask_area", "name"), RECORDED)
def test_the_twelve_figures_are_the_recorded_ones(evaluator, path, kind, mask_area, name, capsys):
    recorded = json.loads(path.read_text())
    judge = judged(recorded["ground_truth"], recorded["results"], kind, mask_area)
    assert np.abs(judge.stats[:12] - recorded["stats"][name]).max() <= 1e-16
    assert capsys.readouterr().out == ""
    row = figures(judge, kind, [category["name"] for category in recorded["ground_truth"]["categories"]])
    for figure, value in zip(FIGURES, recorded["stats"][name], strict=True):
        found = row[f"{kind}_{figure}"]
        assert (found is None) if value == -1 else found == pytest.approx(100 * value, rel=1e-14)
    each = [value for value in row[f"{kind}_ap_by_class"].values() if value is not None]
    assert sum(each) / len(each) == pytest.approx(row[f"{kind}_ap"], abs=1e-9)


@dataclass
class Found:
    """What a detector finds in an image."""

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: object


class Oracle:
    """Finds the true objects that `changed` (a function of the number of objects so far) leaves as they are."""

    def __init__(self, batches, changed=lambda number: False):
        self.truth = {batch.images.sum().item(): batch for batch in batches}
        self.changed = changed

    def detect(self, images, sizes, originals):
        """See DetectionMeter."""
        batch = self.truth[images.sum().item()]
        boxes = torch.tensor([truth["bbox"] for truth in batch.truth[0]]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        numbers = [batch.ids[0] * 10 + place for place in range(len(boxes))]
        for number, box in zip(numbers, boxes, strict=True):
            box += 9 * self.changed(number)
        masks = (torch.from_numpy(rle.decode(truth["segmentation"])).bool() for truth in batch.truth[0])
        labels = torch.tensor([truth["category_id"] - 1 for truth in batch.truth[0]])
        scores = torch.tensor([0.4 + number % 7 / 20 for number in numbers])
        return [Found(boxes, scores, labels, masks)]


@pytest.fixture(scope="module")
def drawings():
    """Seven drawings with objects, as EvalBatches, and the facts about them."""
    keys = {"DET__SCALES": [64], "DET__MAX_SIZE": 64, "DET__TEST_SIZE": 64}
    config = small_config("detection_shapes:train=8,val=7", size=64, batch_size=2, **keys)
    data = build_data(config, alone(), silent, training=False)
    return list(data.val), data.info


def meter_of(batches, info, model):
    meter = DetectionMeter(CPU, info, masks=True)
    for batch in batches:
        meter.add(model, batch)
    return meter


class Ranks(World):
    """The first rank, whose fellows have gathered before."""

    def gather(self, value):
        """Theirs behind this one's, the first time."""
        first, self.others[:] = [value, *self.others], []
        return first


def test_who_finds_everything_has_100(evaluator, drawings):
    batches, info = drawings
    row = meter_of(batches, info, Oracle(batches)).merged(World(CPU))
    assert [row[key] for key in ("box_ap", "mask_ap", "ap", "images")] == pytest.approx([100, 100, 100, 7])
    assert row["objects"] == row["detections"] == len(row["results"]) == sum(len(batch.truth[0]) for batch in batches)
    assert row["box_ap_large"] is None  # no object of 64 x 64 pixels or more
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert list(row["mask_ap_by_class"]) == list(info.class_names)


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_the_same_on_any_number_of_ranks(drawings, ranks):
    batches, info = drawings
    model = Oracle(batches, lambda number: number % 3 == 0)
    row = meter_of(batches, info, model).merged(World(CPU))
    shares = [batches[7 * rank // ranks : 7 * (rank + 1) // ranks] for rank in range(ranks)]
    meters = [meter_of(share, info, model) for share in shares]
    world = Ranks(CPU)
    object.__setattr__(world, "others", [[meter.images, meter.truth, meter.results] for meter in meters[1:]])
    assert meters[0].merged(world) == row
    assert 20 < row["box_ap"] < 99 < row["mask_ap"]


def test_results_are_judged_alike_from_their_file(drawings, tmp_path):
    """What stands in the run folder gives the figures of the log, by COCO's own reader."""
    batches, info = drawings
    row = meter_of(batches, info, Oracle(batches, lambda number: number % 2 == 0)).merged(World(CPU))
    truth = [{**t, "image_id": batch.ids[0]} for batch in batches for t in batch.truth[0]]
    images = [{"id": b.ids[0], "height": b.originals[0][0], "width": b.originals[0][1]} for b in batches]
    categories = [{"id": i, "name": n} for i, n in zip(info.category_ids, info.class_names, strict=True)]
    annotations = [{**annotation, "id": number + 1} for number, annotation in enumerate(truth)]
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (tmp_path / "results.json").write_text(json.dumps(row["results"]))
    coco = COCO(tmp_path / "truth.json")
    judge = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert 100 * judge.stats[0] == row["box_ap"]


def test_an_annotation_with_id_0_counts(evaluator, drawings):
    """COCO's code takes the id 0 of a match for no match."""
    box = {"image_id": 5, "category_id": 3, "bbox": [1.0, 2.0, 10.0, 12.0]}
    truth = {"images": [{"id": 5, "height": 20, "width": 20}], "categories": [{"id": 3, "name": "a"}]}
    truth["annotations"] = [{**box, "id": 0, "iscrowd": 0, "area": 120.0}]
    judge = judged(truth, [box | {"score": 0.5}], "box")
    assert judge.stats[0] == pytest.approx(1)


def test_nothing_found_is_0_and_nothing_there_is_an_error(evaluator, drawings):
    batches, info = drawings
    nothing = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())
    model = Oracle(batches)
    model.detect = lambda *arguments: [nothing]
    row = meter_of(batches, info, model).merged(World(CPU))
    assert (row["box_ap"], row["mask_ap"], row["box_ar100"], row["results"]) == (0.0, 0.0, 0.0, [])
    empty = EvalBatch(torch.zeros(1, 3, 32, 32), [(32, 32)], [(32, 32)], [1], [[]])
    with pytest.raises(DataError, match="no objects"):
        meter_of([empty], info, model).merged(World(CPU))
