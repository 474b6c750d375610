"""The student that learns its teacher's answer to other crops of the same images, and the teacher that follows."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import nn

from utils.amp import whole

HIDDEN, BOTTLENECK = 512, 256  # of the head, as in the code of arXiv 2210.07240 (DINO itself: 2048, 256)
STUDENT_TEMPERATURE = 0.1
CENTER_MOMENTUM = 0.9


class Head(nn.Module):
    """Projection head: an MLP of three layers, normalisation, and a last layer whose rows have length 1.

    forward(x (B, D), moves) -> (B, outputs); moves: 0-d, 1, or 0 for a last layer that gets no gradient.
    """

    def __init__(self, features, outputs):
        super().__init__()
        widths = (features, HIDDEN, HIDDEN, BOTTLENECK)
        layers = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.GELU())]
        self.mlp = nn.Sequential(*layers[:-1])
        for layer in self.mlp[::2]:
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last = nn.Linear(BOTTLENECK, outputs, bias=False)

    def forward(self, x, moves):
        """See the class."""
        weight = self.last.weight
        weight = torch.lerp(weight.detach(), weight, moves)
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(weight, dim=1))


class Pupil(nn.Module):
    """What is there for training alone: the student and its head, the teacher's head, and the centre of its answers.

    The centre moves after a step, towards the mean answer of all its micro-batches and ranks.
    """

    def __init__(self, student, head, teacher_head):
        super().__init__()
        self.student, self.head, self.teacher_head = student, head, teacher_head.requires_grad_(False)
        center = torch.zeros(head.last.out_features, device=head.last.weight.device)
        self.register_buffer("center", center)
        self.register_buffer("seen", torch.zeros_like(center), persistent=False)  # sum of this step's mean answers
        self.register_buffer("batches", center.new_zeros(()), persistent=False)


class Dinos(nn.Module):
    """forward(global crops (B, 2, C, H, W), local crops (B, L, C, h, w), temperature, moves) -> (loss, parts).

    The loss is the mean cross-entropy between the teacher's answer to a global crop and the student's to every other
    crop (equation 3). Its parts are the entropy of the teacher's answers and the divergence from them: an entropy near
    log(outputs), or near 0, is that of answers which have collapsed.
    model: the teacher. schedule: see schedule.py. world: that of the run.
    """

    def __init__(self, model, student, head, schedule, world):
        super().__init__()
        teacher_head = Head(head.mlp[0].in_features, head.last.out_features).to(head.last.weight.device)
        teacher_head.load_state_dict(head.state_dict())
        self.model, self.extra = model, Pupil(student, head, teacher_head)
        self.schedule, self.world = schedule, world

    def forward(self, large, small, temperature, moves):
        """See the class."""
        extra = self.extra
        large, small = (crops.transpose(0, 1) for crops in (large, small))  # (crops, B, C, H, W)
        views = large.flatten(0, 1)
        with torch.no_grad():
            answers = whole(extra.teacher_head(self.model(views), torch.ones_like(moves)))
            extra.seen += answers.mean(dim=0)
            extra.batches += 1
            answers = ((answers - extra.center) / temperature).softmax(dim=1).unflatten(0, large.shape[:2])
        guesses = [extra.head(extra.student(views), moves).unflatten(0, large.shape[:2])]
        if len(small):
            guesses.append(extra.head(extra.student(small.flatten(0, 1)), moves).unflatten(0, small.shape[:2]))
        guesses = (whole(torch.cat(guesses)) / STUDENT_TEMPERATURE).log_softmax(dim=2)
        loss = between_views(answers, guesses)
        entropy = -(answers * answers.clamp_min(torch.finfo(answers.dtype).tiny).log()).sum(dim=2).mean()
        return loss, {"entropy": entropy, "divergence": loss - entropy}

    @torch.no_grad()
    def after_step(self, step, finite):
        """The teacher and its head go a little towards the student's; the centre too, unless the step was refused."""
        extra, share = self.extra, 1 - self.schedule.momentum(step)
        pairs = (self.model, extra.student), (extra.teacher_head, extra.head)
        for theirs, own in pairs:
            torch._foreach_lerp_(list(theirs.parameters()), list(own.parameters()), share)
        if self.world.size > 1:
            dist.all_reduce(extra.seen)
        mean = extra.seen / (extra.batches * self.world.size)
        extra.center.copy_(torch.where(finite, extra.center.lerp(mean, 1 - CENTER_MOMENTUM), extra.center))
        extra.seen.zero_()
        extra.batches.zero_()


def between_views(answers, guesses):
    """Mean of -sum answer * guess over the pairs of different views: answers (2, B, K), log guesses (2 + L, B, K)."""
    entropies = -torch.einsum("tbk,sbk->ts", answers, guesses) / answers.shape[1]
    pairs = entropies.numel() - len(answers)
    return (entropies.sum() - entropies.diagonal().sum()) / pairs
