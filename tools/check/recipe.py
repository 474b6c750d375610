"""What the recipe makes of it: the learning rate over the run as a line of bars, and the images as a picture."""

from typing import NamedTuple

import torch

from tools.check.subject import failed, ok, spread, stack, warning
from tools.shared.figures import new_figure, save

WIDTH = 60  # columns of the plot of the learning rate
BARS = " ▁▂▃▄▅▆▇█"
COLUMNS = 8  # images beside each other
NAME = "examples.png"


class Examples(NamedTuple):
    """rows: (name, B arrays (H, W, 3), captions (B,)) of a picture; remark: what else there is to say; legend: handles
    of one below it."""

    rows: list
    remark: str = ""
    legend: list = []


def check_schedule(subject):
    """The learning rate in effect, after scaling: warm-up, peak and end in steps and epochs, and the whole course."""
    train, per_epoch = subject.config.TRAIN, subject.steps_per_epoch
    schedule = subject.schedule(subject.config)
    total, warmup = schedule.total_steps, schedule.warmup_steps
    rates = [schedule(column * total // WIDTH) for column in range(WIDTH)]
    peak = max(*rates, schedule(min(warmup, total - 1)))
    top = max(peak, schedule.base_lr) or 1.0
    places = {"first step": 0, "warm-up ends": warmup, "half way": total // 2, "last step": total - 1}
    rows = (
        "|" + "".join(BARS[round(rate / top * (len(BARS) - 1))] for rate in rates) + "|",
        *(f"{name:<13} {schedule(step):.2e}  step {step:,}, after {step / per_epoch:.1f} epochs"
          for name, step in places.items() if name != "warm-up ends" or warmup),
    )  # fmt: skip
    scaling = "" if train.LR_SCALING == "none" else f", scaled ({train.LR_SCALING}) from {train.BASE_LR:g}"
    text = f"{schedule.name}, peak {peak:.3g}{scaling}, {total:,} steps of {subject.global_batch} images"
    if peak <= 0:
        return [failed(f"{text}: nothing will be learnt", "TRAIN.BASE_LR above 0")]
    if schedule(0) > schedule.base_lr:
        return [warning(f"{text}, but it falls during the warm-up", "TRAIN.WARMUP_LR below BASE_LR", rows)]
    return [ok(text, rows=rows)]


def check_examples(subject):
    """Write the picture of images as they are and augmented; not finite, or all of one colour: a failure."""
    indices = spread(len(subject.parts["train"]), COLUMNS)
    samples, keys = subject.train_samples(subject.config), [(0, index) for index in indices]
    augmented, targets = stack(samples, keys, subject.stacking)
    finite = torch.isfinite(augmented).flatten(1).all(1)
    problem = "" if finite.all() else f"{int((~finite).sum())} of {len(augmented)} are not finite"
    if all(image.max() == image.min() for image in augmented):
        problem = "all of them have one colour all over"
    if problem:
        return [failed(problem, "look at DATA.MEAN, DATA.STD and the AUG section")]
    examples, path = subject.examples(indices, augmented, targets), subject.folder / NAME
    draw(examples, path)
    shown = ", ".join(name for name, *_ in examples.rows)
    return [ok(f"{shown}{examples.remark}: {len(indices)} images each, saved as {path}")]


def restored(images, info):
    """Normalised (B, 3, H, W) -> pixels (B, H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def draw(examples, path):
    """The Examples as a PNG. Raises StorageError."""
    rows = examples.rows
    columns = len(rows[0][2])
    figure = new_figure(1.7 * columns + 0.4, 2.1 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pixels, captions) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name, fontsize=11)
        for axes, image, caption in zip(line, pixels, captions, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(caption, fontsize=9)
            axes.set(xticks=[], yticks=[])
    if examples.legend:
        figure.legend(handles=examples.legend, loc="outside lower center", ncols=min(len(examples.legend), columns))
    save(figure, path)
