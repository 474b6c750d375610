"""Distillation from a trained classifier, as in DeiT (arXiv 2012.12877, section 4)."""

import torch.nn.functional as F
from torch import nn

from tasks.methods.teacher import load_teacher
from utils.amp import whole


class Distillation(nn.Module):
    """The teacher's answer to the same mixed images, learned beside the labels: (1 - alpha) labels + alpha teacher.

    kind 'hard': cross-entropy with the teacher's decision (equation 3). 'soft': tau^2 times the Kullback-Leibler
    divergence of the softmaxes at temperature tau (equation 2), divided by the images, or with divide_by='elements' by
    the images times the classes, which is what DeiT's code does.
    It is learned by the class logits, or by the distillation token's of a model that has one and gives (classes,
    distillation) in training: timm's *_distilled_*, which average the two when evaluated.
    """

    levels = ()

    def __init__(self, teacher, *, kind="hard", alpha=0.5, tau=1.0, divide_by="elements"):
        super().__init__()
        self.teacher, self.kind, self.tau, self.divide_by = teacher, kind, tau, divide_by
        self.labels = 1 - alpha

    @staticmethod
    def is_on(config):
        """Whether there is a teacher."""
        return bool(config.DISTILLATION.TEACHER)

    @staticmethod
    def weight(config, _epoch, _epochs):
        """alpha."""
        return config.DISTILLATION.ALPHA

    @classmethod
    def from_config(cls, config, student):
        """With the teacher of the section DISTILLATION."""
        teacher = load_teacher(config, "DISTILLATION", student)
        if hasattr(student.model, "set_distilled_training"):
            student.model.set_distilled_training(True)
        names = ("KIND", "ALPHA", "TAU", "DIVIDE_BY")
        return cls(teacher, **{name.lower(): config.DISTILLATION[name] for name in names})

    def forward(self, images, logits, _maps):
        """The teacher's part of the loss, without its weight."""
        own = whole(logits[-1] if isinstance(logits, tuple) else logits)
        answer = whole(self.teacher.logits(images))
        if self.kind == "hard":
            return F.cross_entropy(own, answer.argmax(dim=1))
        softened = [(scores / self.tau).log_softmax(dim=1) for scores in (own, answer)]
        divergence = F.kl_div(*softened, reduction="sum", log_target=True)
        return self.tau**2 * divergence / (own.numel() if self.divide_by == "elements" else len(own))
