"""Does the model learn: is its first loss that of a fair guess, can it learn a few images by heart?"""

import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tools.check.finding import failed, ok, warning
from tools.check.gradients import WITHOUT_DROPOUT
from tools.check.subject import spread, stack

GUESSES = 16  # images of the first loss
USUAL, MOST = 0.5, 1.5  # how far the first loss may be from ln(classes): usual in the families here; too far

BATCH = 8  # images to be learnt by heart, of different classes as far as there are so many
SHARE = 0.4  # of the time
NEAR_ZERO = 0.05  # of ln(classes): the loss below which the batch counts as learnt
LEARNING_RATE, CLIP = 1e-3, 1.0  # of AdamW without weight decay, constant: measured, see docs/check.md
STEPS, ENOUGH = 200, 25  # most steps, and those after which a loss that has not fallen is a failure
FALLEN = 0.7  # of the first loss


def check_first_loss(subject):
    """Cross-entropy of the untrained model on images as they are, in training mode but without dropout."""
    model, config = plain_model(subject)
    indices = spread(len(subject.parts["train"]), GUESSES)
    images, labels = on_device(subject, config, indices)
    with torch.no_grad():
        loss = cross_entropy(model(images), labels).item()
    fair = math.log(subject.info.num_classes)
    text = f"{loss:.3f} on {len(indices)} images, a fair guess has ln({subject.info.num_classes}) = {fair:.3f}"
    if not math.isfinite(loss) or abs(loss - fair) > MOST:
        advice = f"more than {MOST} away: look at the initial weights, the pixels' range and the labels"
        return [failed(text, advice)]
    if abs(loss - fair) > USUAL:
        return [warning(text, f"more than {USUAL} away, the logits start large: look at the initial weights")]
    return [ok(f"{text} (within {USUAL}){subject.trial.remark}")]


def check_by_heart(subject):
    """Train on one batch alone, without augmentation, mixing, dropout, smoothing and decay, until its loss is gone."""
    model, config = plain_model(subject)
    indices = one_of_each(subject.parts["train"].labels, BATCH)
    images, labels = on_device(subject, config, indices)
    target = NEAR_ZERO * math.log(subject.info.num_classes)
    losses = overfit(model, images, labels, target, subject.deadline(SHARE))
    text = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses) - 1} steps on {len(indices)} images"
    text += f" of {len(set(labels.tolist()))} classes{subject.trial.remark}"
    if losses[-1] <= target:
        return [ok(f"{text} (wanted: {target:.3f}, {NEAR_ZERO:.0%} of ln(classes))")]
    if min(losses) <= FALLEN * losses[0]:
        return [warning(f"{text}, on its way to {target:.3f} when the time was up", "--seconds gives more")]
    if len(losses) > ENOUGH:
        return [failed(text, "it does not learn even these: look at gradients, labels and the forward pass")]
    return [warning(f"{text}: too few steps to tell on this device", "--seconds gives more, --device another")]


def overfit(model, images, labels, target, deadline):
    """Losses before each step, until one is below `target`, the deadline passes or STEPS are made."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    while len(losses) <= STEPS:
        loss = cross_entropy(model(images), labels)
        losses.append(loss.item())
        if losses[-1] <= target or deadline.over or not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return losses


def plain_model(subject):
    """(model, configuration) at the trial's size without dropout."""
    config = subject.at_trial_size(WITHOUT_DROPOUT)
    return subject.new_model(config), config


def on_device(subject, config, indices):
    """(images, labels) of the training set, prepared as for evaluation."""
    return [tensor.to(subject.world.device) for tensor in stack(subject.plain_samples(config), indices)]


def one_of_each(labels, count):
    """`count` indices, from as many classes as possible, spread over the classes."""
    order = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])  # place of an image in its class
    by_turns = order[np.lexsort((labels[order], rank))]  # the first of every class, then the second of every class
    pool = by_turns[: max(count, len(np.unique(labels)))]
    return [int(pool[place]) for place in spread(len(pool), count)]
