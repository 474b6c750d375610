"""How detections are judged: by COCO's average precision, computed by pycocotools or faster-coco-eval.

The meter keeps found and true objects as COCO's dicts; `merged` gathers them from all ranks, so that the figures are
those of the whole set, whatever the number of ranks.
"""

import contextlib
import importlib.util
import io
import itertools

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.errors import DataError

KINDS = {"box": "bbox", "mask": "segm"}  # what the keys of a row begin with, and COCO's word for it
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
           "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
EVERY, MOST = 0, -1  # of COCO's ranges of area the first: all; of its limits of detections an image the last: 100


def has_faster():
    """Whether faster-coco-eval is installed: the same figures in less time."""
    return importlib.util.find_spec("faster_coco_eval") is not None


def evaluator():
    """(COCO, COCOeval): the classes of faster-coco-eval if it is installed, else those of pycocotools."""
    if not has_faster():
        return COCO, COCOeval
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    return FasterCOCO, COCOeval_faster


def encoded(mask):
    """COCO's compressed RLE, with text as counts, of a bool tensor (H, W)."""
    pixels = np.asfortranarray(mask.cpu().numpy().astype(np.uint8))
    found = rle.encode(pixels)
    return {"size": list(map(int, found["size"])), "counts": found["counts"].decode("ascii")}


def dataset(annotations, images, categories, make=COCO):
    """COCO's index of annotations, with ids from 1 on: 0 would count as unmatched."""
    coco = make()
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": numbered}
    coco.createIndex()
    return coco


def found_objects(results, kind, mask_area):
    """Results as annotations: their area is that of their masks, or that of their boxes.

    What COCO's loadRes makes of them, without 'bbox' in them or with it; mmdetection 2.11 leaves it there.
    """
    by_mask = kind == "mask" and mask_area == "mask"
    areas = [float(rle.area(r["segmentation"])) if by_mask else r["bbox"][2] * r["bbox"][3] for r in results]
    return [{**result, "area": area, "iscrowd": 0} for result, area in zip(results, areas, strict=True)]


def judged(truth, results, kind, mask_area="mask"):
    """COCO's evaluation after its summary (`stats`, `eval`, `params`) of results, COCO's list of dicts.

    truth: COCO's dict with images, annotations and categories. kind: 'box' or 'mask'. mask_area: by what a found mask
    is small, medium or large, 'mask' or 'box'.
    """
    coco, evaluation = evaluator()
    images, categories = truth["images"], truth["categories"]
    with contextlib.redirect_stdout(io.StringIO()):
        both = [
            dataset(annotations, images, categories, coco)
            for annotations in (truth["annotations"], found_objects(results, kind, mask_area))
        ]
        judge = evaluation(*both, KINDS[kind])
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def percent(value):
    """Of a share; None for COCO's -1, which stands for nothing to judge."""
    return None if value < 0 else 100 * float(value)


def mean_of(values):
    """Mean of those that are not -1, or -1 if all are."""
    there = values[values > -1]
    return there.mean() if there.size else -1


def figures(judge, kind, names):
    """{'box_ap': percent or None, ..., 'box_ap_by_class': {name: percent or None}} of an evaluation."""
    row = {f"{kind}_{name}": percent(value) for name, value in zip(FIGURES, judge.stats[:12], strict=True)}
    precision = np.asarray(judge.eval["precision"])[:, :, :, EVERY, MOST]  # (thresholds, recalls, classes)
    each = [percent(mean_of(precision[:, :, place])) for place in range(len(names))]
    return row | {f"{kind}_ap_by_class": dict(zip(names, each, strict=True))}


class DetectionMeter:
    """Judges a model on single images.

    info: class_names and category_ids. masks: whether masks are judged too. mask_area: see `judged`.
    model.detect(images, sizes, originals) -> [boxes (n, 4) x1 y1 x2 y2 in pixels of the file, scores (n,), labels (n,),
    masks: bool (H, W), one after the other].
    """

    def __init__(self, device, info, masks=False, mask_area="mask"):
        self.device, self.info, self.masks, self.mask_area = device, info, masks, mask_area
        self.images, self.truth, self.results = [], [], []

    def add(self, model, batch):
        """Judge `model` on an EvalBatch."""
        found = model.detect(batch.images.to(self.device, non_blocking=True), batch.sizes, batch.originals)
        for (height, width), image, truth, detections in zip(
            batch.originals, batch.ids, batch.truth, found, strict=True
        ):
            self.images.append({"id": image, "height": height, "width": width})
            self.truth += [{**annotation, "image_id": image} for annotation in truth]
            self.results += self.results_of(image, detections)

    def results_of(self, image, detections):
        """COCO's dicts of an image; each mask is encoded before the next one is made."""
        boxes = detections.boxes.double().cpu()
        boxes[:, 2:] -= boxes[:, :2]
        categories = [self.info.category_ids[label] for label in detections.labels.tolist()]
        columns = zip(categories, boxes.tolist(), detections.scores.tolist(), strict=True)
        results = [{"image_id": image, "category_id": c, "bbox": box, "score": score} for c, box, score in columns]
        if self.masks:
            for result, mask in zip(results, detections.masks, strict=True):
                result["segmentation"] = encoded(mask)
        return results

    def merged(self, world):
        """The row over all ranks: COCO's twelve figures of boxes and of masks in percent, None where there is nothing
        to judge, and the AP of each class; 'ap' is that of masks if they are judged, else of boxes; 'images', 'objects'
        (crowds left out) and 'detections' count. On rank 0 'results' has all detections, as COCO's list.

        Raises DataError if there are no objects.
        """
        gathered = zip(*world.gather([self.images, self.truth, self.results]), strict=True)
        images, truth, results = (list(itertools.chain.from_iterable(lists)) for lists in gathered)
        row = world.together(lambda: self.row(images, truth, results, world.is_main))
        row = world.gather(row)[0]
        return row | {"results": results} if world.is_main else row

    def row(self, images, truth, results, is_main):
        """See `merged`; None on other ranks than the first."""
        objects = sum(not annotation["iscrowd"] for annotation in truth)
        if not objects:
            raise DataError("no objects in the evaluated images: nothing to judge")
        if not is_main:
            return None
        names = zip(self.info.category_ids, self.info.class_names, strict=True)
        whole = {"images": images, "annotations": truth, "categories": [{"id": i, "name": n} for i, n in names]}
        row = {}
        for kind in ("box", "mask") if self.masks else ("box",):
            row |= figures(judged(whole, results, kind, self.mask_area), kind, self.info.class_names)
        headline = row["mask_ap" if self.masks else "box_ap"]
        return {"ap": headline, **row} | {"images": len(images), "objects": objects, "detections": len(results)}
