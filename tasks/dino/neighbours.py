"""How well features tell classes: the class of an image by a vote of the images that lie nearest to it."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

NEAREST, TEMPERATURE = 20, 0.07  # as DINO's k-NN classifier
AT_ONCE = 1024  # images


class Neighbours:
    """Every image of the evaluation is judged by the others of it: no training image is read, nothing is fitted.

    `correct` counts the images whose class got most of the votes, each weighing exp(cosine / 0.07); `loss` is the mean
    share of the votes that went to other classes.
    """

    def __init__(self, device):
        self.device, self.features, self.labels = device, [], []

    def add(self, model, batch):
        """Keep what `model` makes of (images (B, 3, H, W), labels (B,))."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        self.features.append(F.normalize(model(images).float(), dim=1).cpu())
        self.labels.append(labels.cpu())

    def merged(self, world):
        """The figures over all ranks, made by the first one."""
        parts = [torch.cat(parts) if parts else None for parts in (self.features, self.labels)]
        features, labels = gathered(world, *parts)
        return world.gather(votes(features.to(self.device), labels.to(self.device)) if world.is_main else None)[0]


def gathered(world, features, labels):
    """(features (N, D), labels (N,)) of all ranks, in their order; None, None of a rank that has no image."""
    if world.size == 1:
        return features, labels
    sizes = world.gather(list(features.shape) if features is not None else [0, 0])
    count, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    mine = torch.zeros(count, width + 1, dtype=torch.float64)  # a label is exact in it
    if features is not None:
        mine[: len(features)] = torch.cat([features.double(), labels[:, None].double()], dim=1)
    pieces = [torch.empty_like(mine) for _ in sizes]
    dist.all_gather(pieces, mine, group=world.control)
    whole = torch.cat([piece[: size[0]] for piece, size in zip(pieces, sizes, strict=True)])
    return whole[:, :-1].float(), whole[:, -1].long()


def votes(features, labels):
    """The row of an evaluation: features (N, D) of length 1, labels (N,)."""
    correct, missed = 0, 0.0
    targets, nearest = F.one_hot(labels).float(), min(NEAREST, len(labels) - 1)
    for start in range(0, len(labels), AT_ONCE):
        alike = features[start : start + AT_ONCE] @ features.T
        rows = torch.arange(len(alike), device=alike.device)
        alike[rows, start + rows] = -torch.inf  # not by itself
        alike, index = alike.topk(nearest, dim=1)
        shares = torch.einsum("nk,nkc->nc", (alike / TEMPERATURE).softmax(dim=1), targets[index])
        own = labels[start : start + AT_ONCE]
        correct += int((shares.argmax(dim=1) == own).sum())
        missed += float((1 - shares[rows, own]).double().sum())
    total = len(labels)
    return {"loss": missed / total, "correct": correct, "total": total, "accuracy": 100.0 * correct / total}
