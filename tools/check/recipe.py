"""What the recipe makes of it: the learning rate over the run as a line of bars, and the images as a picture."""

import torch

from data import HostBatch
from tools.check.subject import failed, ok, spread, stack, warning
from tools.shared.figures import new_figure, save
from utils.lettering import drawable
from utils.text import short_names

WIDTH = 60  # columns of the plot of the learning rate
BARS = " ▁▂▃▄▅▆▇█"
COLUMNS = 8  # images beside each other
NAME = "examples.png"
MIXED_ROWS = 2  # steps of the run whose draws are shown: the first ones that mix visibly
FIRST_STEPS, VISIBLE = 40, 0.9  # steps that are tried; the largest share of a class in a visible mixture
NAME_LENGTH = 16  # characters of a class name under an image


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
    """Write the picture of images as evaluated, augmented and mixed; not finite, or all of one colour: a failure."""
    config, indices = subject.config, spread(len(subject.parts["train"]), COLUMNS)
    plain, labels = stack(subject.plain_samples(config), indices)
    augmented, targets = stack(subject.train_samples(config), [(0, index) for index in indices])
    finite = torch.isfinite(augmented).flatten(1).all(1)
    problem = "" if finite.all() else f"{int((~finite).sum())} of {len(augmented)} are not finite"
    if all(image.max() == image.min() for image in augmented):
        problem = "all of them have one colour all over"
    if problem:
        return [failed(problem, "look at DATA.MEAN, DATA.STD and the AUG section")]
    names = short_names(list(map(drawable, subject.info.class_names)), NAME_LENGTH, "..")
    rows = [
        ("as evaluated", plain, [names[label] for label in labels.tolist()]),
        ("augmented", augmented, [names[label] for label in targets.tolist()]),
        *mixed_rows(subject.mixing(config), augmented, targets, config.SEED, names),
    ]
    path = subject.folder / NAME
    draw([(name, restored(images, subject.info), captions) for name, images, captions in rows], path)
    mixed = "" if len(rows) > 2 else ", hardly ever mixed" if subject.mixing(config).active else ", mixing is off"
    return [ok(f"{', '.join(name for name, *_ in rows)}{mixed}: {len(indices)} images each, saved as {path}")]


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


def restored(images, info):
    """Normalised (B, 3, H, W) -> pixels (B, H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def draw(rows, path):
    """Rows of (name, pixels (B, H, W, 3), captions) as a PNG. Raises StorageError."""
    columns = len(rows[0][2])
    figure = new_figure(1.7 * columns + 0.4, 2.1 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pixels, captions) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name, fontsize=11)
        for axes, image, caption in zip(line, pixels, captions, strict=True):
            axes.imshow(image.numpy(), interpolation="nearest")
            axes.set_title(caption, fontsize=9)
            axes.set(xticks=[], yticks=[])
    save(figure, path)
