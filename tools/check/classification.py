"""What the checks ask of a classification: images as they are evaluated, images per class, mixed examples."""

import math

import numpy as np
from torch.nn.functional import cross_entropy

from data import HostBatch
from data.samples import EvalSamples
from tools.check.effects import facts
from tools.check.recipe import Examples, restored
from tools.check.subject import ByHeart, Subject, failed, ok, spread, stack, warning
from utils.errors import listing
from utils.lettering import drawable
from utils.text import short_names

IMBALANCE = 10  # images of the largest class for one of the smallest, above which it is worth a word
FEW = 100  # validation images below which an accuracy says little
MIXED_ROWS = 2  # steps of the run whose draws are shown: the first ones that mix visibly
FIRST_STEPS, VISIBLE = 40, 0.9  # steps that are tried; the largest share of a class in a visible mixture
NAME_LENGTH = 16  # characters of a class name under an image


class ClassificationSubject(Subject):
    """A configuration of TASK classification."""

    by_heart = ByHeart(images=8, rate=1e-3, near_zero=0.05, name="ln(classes)", enough=25)
    evaluation_work = 1.0  # of an image in evaluation, in forward passes of a training image

    def plain_batch(self, config, indices, part="train"):
        """(images (B, 3, H, W) as they are evaluated, labels (B,))."""
        return stack(EvalSamples(self.parts[part], self.transforms(config)[1]), indices)

    def plain_loss(self, outputs, labels):
        """Cross-entropy of (B, K) without smoothing."""
        return cross_entropy(outputs, labels)

    def blind_loss(self, labels):
        """Of an answer that gives every class the same probability."""
        return math.log(self.info.num_classes)

    def classes_of(self, labels):
        """The classes that occur."""
        return labels.unique().tolist()

    def various(self, count):
        """Indices of training images of as many classes as possible."""
        return one_of_each(self.parts["train"].labels, count)

    def mixing(self, config):
        """Mixup, CutMix and the loss."""
        return self.given(config).mixing

    def recipe(self, config):
        """What a run does with images and labels, as comparable facts."""
        mixing = self.mixing(config)
        images = facts([transform.transforms for transform in self.transforms(config)])
        return [images, mixing.describe(), facts(mixing.criterion)]

    def rehearsal(self, images):
        """Changes to a configuration with which so many training images are noise."""
        return {"DATA.DATASET": f"fake:train={images},val=2,classes=2"}

    def class_findings(self):
        """Images per class, in every part."""
        names, findings, sizes = self.info.class_names, [], {}
        for part, images in self.parts.items():
            counts = np.bincount(images.labels, minlength=len(names))
            few, many, total = counts.min(), counts.max(), counts.sum()
            sizes[part] = f"{few:,}" if few == many else f"{few:,} to {many:,}"
            if few == 0:
                empty = [names[label] for label in np.flatnonzero(counts == 0)]
                findings.append(failed(f"{part}: no image of {listing(empty, 5)}", "remove the class or add images"))
                continue
            if many > IMBALANCE * few:
                large, small = names[counts.argmax()], names[counts.argmin()]
                advice = f"always answering {large!r} is right in {100 * many / total:.1f} %"
                findings.append(warning(f"{part}: {many:,} images of {large!r} but {few:,} of {small!r}", advice))
            if part != "train" and total < FEW:
                advice = f"an accuracy has a standard error of up to {50 / total**0.5:.0f} points"
                findings.append(warning(f"{part}: only {total} images", advice))
        each = f"{sizes['train']} images each to train: {listing(names, 5)}"
        return findings or [ok(f"the same {len(names)} in every part, {each}")]

    def examples(self, indices, augmented, targets):
        """Images as evaluated, augmented and mixed."""
        plain, labels = self.plain_batch(self.config, indices)
        names = short_names(list(map(drawable, self.info.class_names)), NAME_LENGTH, "..")
        mixing = self.mixing(self.config)
        rows = [
            ("as evaluated", plain, [names[label] for label in labels.tolist()]),
            ("augmented", augmented, [names[label] for label in targets.tolist()]),
            *mixed_rows(mixing, augmented, targets, self.config.SEED, names),
        ]
        mixed = "" if len(rows) > 2 else ", hardly ever mixed" if mixing.active else ", mixing is off"
        shown = [(name, restored(images, self.info).numpy(), captions) for name, images, captions in rows]
        return Examples(shown, mixed)


def one_of_each(labels, count):
    """`count` indices, from as many classes as possible, spread over the classes."""
    order = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])  # place of an image in its class
    by_turns = order[np.lexsort((labels[order], rank))]  # the first of every class, then the second of every class
    pool = by_turns[: max(count, len(np.unique(labels)))]
    return [int(pool[place]) for place in spread(len(pool), count)]


def mixed_rows(mixing, images, targets, seed, names):
    """Rows of the batch mixed as in steps of a run; none if mixing is off."""
    rows = []
    for step in range(FIRST_STEPS if mixing.active else 0):
        mixed, soft = mixing(HostBatch(images, targets), (seed, "mix", step, 0, 0), "cpu")
        shares = (soft - mixing.smoothing / soft.shape[1]) / (1 - mixing.smoothing)  # the label smoothing taken out
        if shares.max(dim=1).values.min() <= VISIBLE:
            rows.append((f"mixed, step {step}", mixed, [shares_text(row, names) for row in shares]))
        if len(rows) == MIXED_ROWS:
            break
    return rows


def shares_text(shares, names):
    """`cat 0.63` and `dog 0.37` in two lines, from the shares of all classes (C,)."""
    largest = shares.topk(min(2, len(shares)))
    pairs = zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
    return "\n".join(f"{names[label]} {share:.2f}" for share, label in pairs if share > 0.005)
