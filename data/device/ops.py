"""The colour and geometry operations of an image, numbered, and how timm's magnitudes become their arguments."""

from enum import IntEnum

import torch


class Op(IntEnum):
    """Numbers of the operations in `AugmentDraws.op`; the meaning of `value` in brackets."""

    NONE = -1
    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3  # (degrees, anti-clockwise)
    POSTERIZE = 4  # (bits kept: 0 or less is black, 8 or more the image itself)
    SOLARIZE = 5  # (threshold 0..256: pixels below it stay)
    SOLARIZE_ADD = 6  # (added to pixels below 128)
    COLOR = 7  # (factor: 0 grey, 1 the image)
    CONTRAST = 8  # (factor: 0 the rounded mean of the grey image, 1 the image)
    BRIGHTNESS = 9  # (factor: 0 black, 1 the image)
    SHARPNESS = 10  # (factor: 0 smoothed, 1 the image)
    SHEAR_X = 11  # (columns per row)
    SHEAR_Y = 12  # (rows per column)
    TRANSLATE_X = 13  # (columns)
    TRANSLATE_Y = 14  # (rows)
    GAUSSIAN_BLUR = 15  # (standard deviation in pixels)


AFFINE = {  # and the axes along which pixels move
    Op.ROTATE: "xy",
    Op.SHEAR_X: "x",
    Op.SHEAR_Y: "y",
    Op.TRANSLATE_X: "x",
    Op.TRANSLATE_Y: "y",
}


def truncated(value):
    """Towards zero, as Python's int()."""
    return torch.trunc(value)


def enhance(level, draw):
    """Factor 0.1 to 1.9."""
    return level / 10 * 1.8 + 0.1


def enhance_increasing(level, draw):
    """Factor 1 plus or minus 0.09 per level, at least 0.1."""
    return (1.0 + draw.sign * (level / 10 * 0.9)).clamp(min=0.1)


def posterize(level, draw):
    """Bits kept: fewer for smaller levels."""
    return truncated(level / 10 * 4)


def solarize(level, draw):
    """Threshold, at most 256."""
    return truncated(level / 10 * 256).clamp(max=256)


def desaturate(level, draw):
    """Factor 1 - d with d from 0.5 to 1."""
    return (1.0 - (0.5 + 0.5 * (level / 10)).clamp(0.5, 1.0)).clamp(0.0, 1.0)


def blur(level, draw):
    """Standard deviation 0.1 to 2."""
    return (0.1 + (2.0 - 0.1) * (level / 10)).clamp(0.1, 2.0)


def blur_random(level, draw):
    """Standard deviation, uniform from 0.1 to 2 * level / 10."""
    highest = 2.0 * (level / 10).clamp(0.0, 1.0)
    return 0.1 + (highest - 0.1) * draw.extra


def no_argument(level, draw):
    """For operations without argument."""
    return torch.zeros_like(level)


# timm's name -> (operation, level -> value); timm.data.auto_augment.LEVEL_TO_ARG in tensors. `draw` has the tensors
# `sign` (-1 or 1) and `extra` (uniform in 0..1), and the numbers `rows`, `columns`, `translate_const`, `translate_pct`.
LEVELS = {
    "AutoContrast": (Op.AUTO_CONTRAST, no_argument),
    "Equalize": (Op.EQUALIZE, no_argument),
    "Invert": (Op.INVERT, no_argument),
    "Rotate": (Op.ROTATE, lambda level, draw: draw.sign * (level / 10 * 30.0)),
    "Posterize": (Op.POSTERIZE, posterize),
    "PosterizeIncreasing": (Op.POSTERIZE, lambda level, draw: 4 - posterize(level, draw)),
    "PosterizeOriginal": (Op.POSTERIZE, lambda level, draw: 4 + posterize(level, draw)),
    "Solarize": (Op.SOLARIZE, solarize),
    "SolarizeIncreasing": (Op.SOLARIZE, lambda level, draw: 256 - solarize(level, draw)),
    "SolarizeAdd": (Op.SOLARIZE_ADD, lambda level, draw: truncated(level / 10 * 110).clamp(max=128)),
    "Color": (Op.COLOR, enhance),
    "ColorIncreasing": (Op.COLOR, enhance_increasing),
    "Contrast": (Op.CONTRAST, enhance),
    "ContrastIncreasing": (Op.CONTRAST, enhance_increasing),
    "Brightness": (Op.BRIGHTNESS, enhance),
    "BrightnessIncreasing": (Op.BRIGHTNESS, enhance_increasing),
    "Sharpness": (Op.SHARPNESS, enhance),
    "SharpnessIncreasing": (Op.SHARPNESS, enhance_increasing),
    "ShearX": (Op.SHEAR_X, lambda level, draw: draw.sign * (level / 10 * 0.3)),
    "ShearY": (Op.SHEAR_Y, lambda level, draw: draw.sign * (level / 10 * 0.3)),
    "TranslateX": (Op.TRANSLATE_X, lambda level, draw: draw.sign * (level / 10 * draw.translate_const)),
    "TranslateY": (Op.TRANSLATE_Y, lambda level, draw: draw.sign * (level / 10 * draw.translate_const)),
    "TranslateXRel": (Op.TRANSLATE_X, lambda level, draw: draw.sign * (level / 10 * draw.translate_pct) * draw.columns),
    "TranslateYRel": (Op.TRANSLATE_Y, lambda level, draw: draw.sign * (level / 10 * draw.translate_pct) * draw.rows),
    "Desaturate": (Op.COLOR, desaturate),
    "GaussianBlur": (Op.GAUSSIAN_BLUR, blur),
    "GaussianBlurRand": (Op.GAUSSIAN_BLUR, blur_random),
}


def affine_matrices(op, value, rows, columns):
    """The inverse affine map of every operation of AFFINE, float64 (..., 6), the identity for the others.

    Output pixel centre (x + 0.5, y + 0.5) is taken from (a x' + b y' + c, d x' + e y' + f) with x' = x + 0.5: PIL's
    `Image.transform`, and `Image.rotate` about the centre of `rows` x `columns` pixels. `op` and `value`: same shape.
    """
    value = value.double()
    matrix = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64, device=value.device).repeat(*value.shape, 1)
    for number, place in ((Op.SHEAR_X, 1), (Op.SHEAR_Y, 3), (Op.TRANSLATE_X, 2), (Op.TRANSLATE_Y, 5)):
        matrix[..., place] = torch.where(op == number, value, matrix[..., place])
    angle = -torch.deg2rad(torch.remainder(value, 360.0))
    cosine, sine = torch.round(torch.cos(angle), decimals=15), torch.round(torch.sin(angle), decimals=15)
    x, y = columns / 2, rows / 2
    turned = torch.stack(
        [cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y], dim=-1
    )
    return torch.where((op == Op.ROTATE)[..., None], turned, matrix)
