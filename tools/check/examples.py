"""A picture of what the model is shown: images as they are evaluated, augmented, and mixed, with their classes."""

import torch

from tools.check.finding import failed, ok
from tools.check.subject import spread, stack
from utils.run_folder import storage_errors

COLUMNS = 8
NAME = "examples.png"
MIXED_ROWS = 2  # steps of the run whose draws are shown: the first ones that mix visibly
FIRST_STEPS, VISIBLE = 40, 0.9  # steps that are tried; the largest share of a class in a visible mixture
LONGEST = 16  # characters of a class name


def check_examples(subject):
    """Write the picture. Images that are not finite, or all of one colour after augmentation, are a failure."""
    config, indices = subject.config, spread(len(subject.parts["train"]), COLUMNS)
    plain, labels = stack(subject.plain_samples(config), indices)
    augmented, targets = stack(subject.train_samples(config), [(0, index) for index in indices])
    problem = problem_with(augmented)
    if problem:
        return [failed(problem, "look at DATA.MEAN, DATA.STD and the AUG section")]
    names = subject.info.class_names
    rows = [
        ("as evaluated", plain, [short(names[label]) for label in labels.tolist()]),
        ("augmented", augmented, [short(names[label]) for label in targets.tolist()]),
        *mixed_rows(subject.mixing(config), augmented, targets, config.SEED, names),
    ]
    path = subject.folder / NAME
    draw([(name, restored(images, subject.info), captions) for name, images, captions in rows], path)
    mixed = "" if len(rows) > 2 else ", hardly ever mixed" if subject.mixing(config).active else ", mixing is off"
    return [ok(f"{', '.join(name for name, *_ in rows)}{mixed}: {len(indices)} images each, saved as {path}")]


def problem_with(images):
    """What is wrong with augmented images (B, 3, H, W), or ''."""
    if not torch.isfinite(images).all():
        return f"{int((~torch.isfinite(images)).flatten(1).any(1).sum())} of {len(images)} are not finite"
    flat = [image for image in images if image.max() == image.min()]
    return "all of them have one colour all over" if len(flat) == len(images) else ""


def mixed_rows(mixing, images, targets, seed, names):
    """Rows of the batch mixed as in steps of a run; none if mixing is off."""
    rows = []
    for step in range(FIRST_STEPS if mixing.active else 0):
        mixed, soft = mixing(images.clone(), targets.clone(), key=(seed, "mix", step, 0, 0))
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
    return "\n".join(f"{short(names[label])} {share:.2f}" for share, label in pairs if share > 0.005)


def restored(images, info):
    """Normalised (B, 3, H, W) -> pixels (B, H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def short(name):
    """A class name that fits under an image."""
    return name if len(name) <= LONGEST else name[: LONGEST - 2] + ".."


def draw(rows, path):
    """Rows of (name, pixels (B, H, W, 3), captions) as a PNG. Raises StorageError."""
    from matplotlib.figure import Figure  # slow to import; the object API needs no display

    columns = len(rows[0][2])
    figure = Figure(figsize=(1.7 * columns + 0.4, 2.1 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pixels, captions) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name, fontsize=11)
        for axes, image, caption in zip(line, pixels, captions, strict=True):
            axes.imshow(image.numpy(), interpolation="nearest")
            axes.set_title(caption, fontsize=9)
            axes.set(xticks=[], yticks=[])
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
