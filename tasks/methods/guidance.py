"""Locality guidance, arXiv 2207.10026: maps of a transformer become like those of a small CNN of the same images."""

import torch.nn.functional as F
from torch import nn

from tasks.methods.teacher import load_teacher
from utils.amp import whole
from utils.errors import ConfigError


class Guidance(nn.Module):
    """sum_i mean |1x1_i(s_i) - t_i|^2 over pairs of maps of the student and the teacher (equation 4).

    Both maps are brought to the larger grid of the two, bilinear. shapes: (channels, h, w) of the student's maps after
    `levels`; targets: those of the teacher's after `teacher_levels`.
    """

    labels = 1.0

    def __init__(self, teacher, levels, teacher_levels, shapes, targets):
        super().__init__()
        self.teacher, self.levels, self.teacher_levels = teacher, list(levels), list(teacher_levels)
        pairs = zip(shapes, targets, strict=True)
        self.projections = nn.ModuleList(nn.Conv2d(shape[0], target[0], 1) for shape, target in pairs)

    @staticmethod
    def is_on(config):
        """Whether there is a teacher."""
        return bool(config.GUIDANCE.TEACHER)

    @staticmethod
    def weight(config, _epoch, _epochs):
        """GUIDANCE.WEIGHT."""
        return config.GUIDANCE.WEIGHT

    @classmethod
    def from_config(cls, config, student):
        """With the teacher of the section GUIDANCE: its last levels, evenly spaced ones of the student, unless named.

        DeiT's 12 blocks and the three stages of a ResNet-56 make the published blocks 0, 6 and 11.
        """
        guidance = config.GUIDANCE
        teacher = load_teacher(config, "GUIDANCE", student)
        count, others = (len(list(model.feature_info)) for model in (student.model, teacher.model))
        pairs = len(guidance.LEVELS) or len(guidance.TEACHER_LEVELS) or min(3, count, others)
        levels = guidance.LEVELS or (
            [round(i * (count - 1) / (pairs - 1)) for i in range(pairs)] if pairs > 1 else [-1]
        )
        theirs = guidance.TEACHER_LEVELS or range(others - pairs, others)
        levels = checked("GUIDANCE.LEVELS", levels, count)
        theirs = checked("GUIDANCE.TEACHER_LEVELS", theirs, others)
        if len(levels) != len(theirs):
            raise ConfigError(f"GUIDANCE.LEVELS: {levels}, but the teacher's are {theirs} - allowed: as many")
        method = cls(teacher, levels, theirs, student.shapes(levels), teacher.shapes(theirs, student.info.in_chans))
        student.say(f"guidance: student's levels {levels} towards the teacher's {theirs}, weight {guidance.WEIGHT:g}")
        return method

    def forward(self, images, _logits, maps):
        """The sum over the pairs of maps, without its weight."""
        targets = self.teacher.maps(images, self.teacher_levels)
        pairs = zip(self.projections, maps, targets, strict=True)
        return sum(distance(project(image), target) for project, image, target in pairs)


def checked(key, levels, count):
    """`levels` as an ascending list of positions below `count`; negative ones are from the end. Raises ConfigError."""
    found = sorted({level + count if level < 0 else level for level in levels})
    if not found or len(found) != len(levels) or not all(0 <= level < count for level in found):
        raise ConfigError(f"{key}: {list(levels)} - allowed: different levels among the {count}, 0 to {count - 1}")
    return found


def distance(image, target):
    """Mean squared difference of two maps (B, C, h, w) on the larger grid of the two."""
    grid = [max(sides) for sides in zip(image.shape[2:], target.shape[2:], strict=True)]
    same = [
        one if list(one.shape[2:]) == grid else F.interpolate(one, grid, mode="bilinear") for one in (image, target)
    ]
    return F.mse_loss(*map(whole, same))
