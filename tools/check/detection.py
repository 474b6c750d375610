"""What the checks ask of a detection: images that nothing has changed, objects per class and of each size, losses."""

import math
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from data.samples import TrainSamples
from tasks.detection import detector_arguments
from tasks.detection.batches import Batch, OrientedTrainLoader, origin, stack_to_train
from tasks.detection.settings import settings_of
from tasks.segmentation.augment import fitted
from tools.check.data import NAME_LENGTH, class_table
from tools.check.effects import facts
from tools.check.recipe import Examples, restored
from tools.check.subject import ByHeart, Subject, failed, ok, spread, stack, warning
from tools.shared.boxes import draw_objects
from tools.shared.steps import changed
from utils.errors import listing
from utils.lettering import drawable
from utils.text import short_names, visible

PLAIN = {"DET.POLICY": "resize", "AUG.HFLIP": 0.0}
OBJECTS_SHARE = 0.1  # of the time, for counting objects, for each part
IMBALANCE = 100  # objects of the largest class for one of the smallest, above which it is worth a word
FEW = 50  # objects to validate on below which an average precision says little
SIDES = (8, 16, 32, 64, 128, 256)  # pixels between the classes of sizes
TINY, MANY_TINY = 8, 0.1  # pixels of a side, twice the finest stride; share of such objects that is worth a word


class DetectionSubject(Subject):
    """A configuration of TASK detection. Labels of a batch are (sizes, targets), see tasks/detection/batches.py."""

    by_heart = ByHeart(images=2, rate=1e-3, near_zero=0.3, name="a blind answer's", enough=100)
    stacking = staticmethod(stack_to_train)

    @cached_property
    def settings(self):
        """Of the detector."""
        return settings_of(self.config.DET.HEAD, **detector_arguments(self.config.DET))

    # Batches and losses

    def plain_batch(self, config, indices, part="train"):
        """(padded images at the size of evaluation that nothing else has changed, (sizes, targets))."""
        config = changed(config, {**PLAIN, "DET.SCALES": [config.DET.TEST_SIZE]})
        samples = TrainSamples(self.parts[part], self.transforms(config)[0], config.SEED, joint=True)
        return stack(samples, [(0, index) for index in indices], self.stacking)

    def on_device(self, images, labels):
        """A batch on the device."""
        (sizes, targets), device = labels, self.world.device
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        return images.to(device), (sizes, targets)

    def loss(self, model, images, labels):
        """The sum of the detector's losses."""
        return sum(model.losses(images, *labels).values())

    def first_loss(self, model, images, labels):
        """The losses of classes alone: of proposals, and of each stage."""
        parts, classes = model.losses(images, *labels), self.info.num_classes + 1
        weight = sum(self.settings.stage_weights)
        words = f"ln(2) + {weight:g} ln({classes})" if weight != 1 else f"ln(2) + ln({classes})"
        found = sum(value for name, value in parts.items() if "class" in name).item()
        return found, math.log(2) + weight * math.log(classes), words

    def work(self, model, images):
        """The losses of images with one object each, which fills most of it."""
        height, width = images.shape[2:]
        masks = torch.zeros(1, height, width, dtype=torch.uint8, device=images.device)
        box = torch.tensor([[0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height]], device=images.device)
        target = {"boxes": box, "labels": torch.zeros(1, dtype=torch.int64, device=images.device), "masks": masks}
        return self.loss(model, images, ([(height, width)] * len(images), [target] * len(images)))

    def blind_loss(self, labels):
        """What a detector that tells no classes apart loses of them, masks included."""
        weight, halves = sum(self.settings.stage_weights), math.log(2)
        return halves + weight * (math.log(self.info.num_classes + 1) + halves * self.settings.masks)

    def classes_of(self, labels):
        """The classes that occur."""
        return torch.cat([target["labels"] for target in labels[1]]).unique().tolist()

    def various(self, count):
        """Indices of training images, evenly over them."""
        return spread(len(self.parts["train"]), count)

    def loader(self, samples, sampler, reader):
        """The training loader of a trial."""
        return OrientedTrainLoader(reader(samples, stack=stack_to_train), sampler)

    def joined(self, batches):
        """One Batch of several."""
        sizes = [size for batch in batches for size in batch.sizes]
        images = [image for batch in batches for image in batch.images]
        targets = [target for batch in batches for target in batch.targets]
        images = [image[:, :height, :width] for image, (height, width) in zip(images, sizes, strict=True)]
        cut = [
            {name: value[:, :height, :width] if name == "masks" else value for name, value in target.items()}
            for target, (height, width) in zip(targets, sizes, strict=True)
        ]
        images, (sizes, targets) = stack_to_train(images, cut)
        return Batch(images, sizes, targets)

    # Configurations

    def recipe(self, config):
        """What a run does with images, and how it judges, as comparable facts."""
        return [facts(self.transforms(config)), config.DET.MASK_AREA if self.settings.masks else ""]

    def sized(self, config):
        """Changes that make images as much smaller as the trial's are."""
        share = self.trial.size[0] / self.img_size[0]
        det, keys = config.DET, ("SCALES", "CROP_SCALES", "CROP_SIZES", "TEST_SIZE", "MAX_SIZE")
        values = {f"DET.{key}": det[key] for key in keys}
        return {
            key: [max(1, round(share * side)) for side in value] if isinstance(value, list) else round(share * value)
            for key, value in values.items()
        }

    def at_trial_size(self, changes):
        """See Subject."""
        return super().at_trial_size({**self.sized(self.config), **changes})

    def rehearsal(self, images):
        """Changes to a configuration with which so many training images are drawn shapes."""
        return {"DATA.DATASET": f"detection_shapes:train={images},val=2", **self.sized(self.config)}

    @cached_property
    def evaluation_work(self):
        """How many times the pixels of a training image go through the model for one of the evaluation."""
        det = self.config.DET
        sides = [det.MAX_SIZE] if det.POLICY == "jitter" else det.SCALES
        return (det.TEST_SIZE / (sum(sides) / len(sides))) ** 2

    # Findings

    def class_findings(self):
        """Objects of each class and of each size in every part."""
        names, findings, counts, sides, looked = self.info.class_names, [], {}, {}, []
        for part, images in self.parts.items():
            labels, sides[part], seen = self.objects(part)
            counts[part] = np.bincount(labels, minlength=len(names))
            looked.append(f"{len(labels):,} in {seen:,} of {len(images):,} images in {part}")
            findings += balance(part, counts[part], names, seen == len(images))
        tiny = float((sides["train"] < TINY).mean()) if len(sides["train"]) else 0
        if tiny > MANY_TINY:
            text = f"train: {100 * tiny:.0f} % of the objects are below {TINY}x{TINY} pixels at the size of evaluation"
            findings.append(warning(text, "larger DET.SCALES, DET.TEST_SIZE and DET.MAX_SIZE"))
        rows = [*class_table(counts, names, "objects", "{:10,}"), *size_table(sides)]
        return [*findings, ok(f"{len(names)} classes, objects: {', '.join(looked)}", rows=rows)]

    def objects(self, part):
        """(labels (n,), sides (n,) at the size of evaluation, how many images were looked at) of a part, at random."""
        images, det, seen = self.parts[part], self.config.DET, 0
        number = {category: label for label, category in enumerate(self.info.category_ids)}
        labels, sides = [], []
        for index in self.until(OBJECTS_SHARE, np.random.RandomState(0).permutation(len(images)).tolist()):
            source, place = origin(images, index)
            height, width = source.size(place)
            scale = fitted(height, width, (det.MAX_SIZE, det.TEST_SIZE))[0] / height
            there = [one for one in source.truth(place) if not one["iscrowd"]]
            labels += [number[one["category_id"]] for one in there]
            sides += [scale * math.sqrt(one["bbox"][2] * one["bbox"][3]) for one in there]
            seen += 1
        return np.array(labels, dtype=int), np.array(sides), seen

    def examples(self, indices, augmented, labels):
        """Images as they are and augmented, each with its objects drawn."""
        names = short_names(list(map(drawable, self.info.class_names)), NAME_LENGTH, "..")
        rows = []
        for name, images, (sizes, targets) in (
            ("as they are", *self.plain_batch(self.config, indices)),
            ("augmented", augmented, labels),
        ):
            pixels, drawings = (restored(images, self.info).numpy() * 255).round().astype(np.uint8), []
            for image, (height, width), target in zip(pixels, sizes, targets, strict=True):
                boxes, masks = target["boxes"].numpy(), target.get("masks")
                masks = None if masks is None else masks[:, :height, :width].numpy()
                whole = Image.fromarray(image[:height, :width])
                drawings.append(np.asarray(draw_objects(whole, boxes, target["labels"].tolist(), names, masks=masks)))
            rows.append((name, drawings, [""] * len(drawings)))
        return Examples(rows)


def balance(part, counts, names, complete):
    """Findings about the objects (K,) of the classes in a part; `complete`: all of its images were looked at."""
    if not counts.any():
        return [failed(f"{part}: no objects", "look at the annotations")]
    findings, where = [], "" if complete else " in the images looked at"
    absent = [visible(names[label]) for label in np.flatnonzero(counts == 0)]
    if absent:
        say = failed if part == "train" and complete else warning
        advice = "it cannot be learnt" if part == "train" else "its AP is null"
        findings.append(say(f"{part}: no object of {listing(absent, 5)}{where}", advice))
    if part != "train" and complete and counts.sum() < FEW:
        findings.append(warning(f"{part}: only {counts.sum()} objects", "differences of an AP say little"))
    large, small = counts.argmax(), np.where(counts > 0, counts, counts.max()).argmin()
    if part == "train" and counts[large] > IMBALANCE * counts[small]:
        one, other = (f"{counts[label]:,} of {visible(names[label])!r}" for label in (large, small))
        findings.append(warning(f"{part}: {one}, but {other}", "rare classes need more images"))
    return findings


def size_table(sides):
    """Lines with the share of objects of each size, by the square root of the area of their boxes."""
    head = f"{'pixels, evaluated':<{NAME_LENGTH}}" + "".join(f"{part:>10}" for part in sides)
    shares = {part: np.bincount(np.searchsorted(SIDES, found, "right"), minlength=len(SIDES) + 1) / max(1, len(found))
              for part, found in sides.items()}  # fmt: skip
    names = [f"below {SIDES[0]}", *(f"{low} to {high}" for low, high in zip(SIDES, SIDES[1:], strict=False)),
             f"{SIDES[-1]} or more"]  # fmt: skip
    rows = zip(names, *shares.values(), strict=True)
    return [head, *(f"{name:<{NAME_LENGTH}}" + "".join(f"{100 * share:8.1f} %" for share in found)
                    for name, *found in rows)]  # fmt: skip
