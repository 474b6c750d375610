"""Colour operations of PIL's ImageOps, ImageEnhance and timm on batches, bit for bit: uint8 (n, 3, H, W) -> the same.

Each takes `value` (n,), its argument for each image; see `ops.Op`. On MPS, which has no float64, auto-contrast may be
off by one.
"""

import torch

from data.device.resample import real

LUMA = (19595, 38470, 7471)  # of red, green, blue, in units of 2**-16


def column(value):
    """(n,) -> (n, 1, 1, 1)."""
    return value[:, None, None, None]


def grey(pixels):
    """PIL's convert('L'): int32 (n, 1, H, W)."""
    red, green, blue = (pixels[:, channel].int() * weight for channel, weight in enumerate(LUMA))
    return ((red + green + blue + 0x8000) >> 16)[:, None]


def blend(base, pixels, factor):
    """PIL's Image.blend: base + factor * (pixels - base) in float32, clipped to 0..255 and truncated."""
    base = base.float()
    return (base + column(factor.float()) * (pixels.float() - base)).clamp(0, 255).to(torch.uint8)


def look_up(pixels, table):
    """Tables (n, 3, 256) uint8 applied to each channel."""
    return table.gather(2, pixels.flatten(2).long()).view_as(pixels)


def auto_contrast(pixels, value):
    """Stretch each channel to 0..255."""
    low, high = (side(pixels.flatten(2), dim=2).to(real(pixels.device)) for side in (torch.amin, torch.amax))
    flat = (low == high)[..., None]
    scale = torch.full_like(low, 255.0) / (high - low)  # a number would become a product with the reciprocal
    levels = torch.arange(256, device=pixels.device)
    table = torch.trunc(levels * scale[..., None] + (-low * scale)[..., None]).clamp(0, 255)
    return look_up(pixels, torch.where(flat, levels, table.nan_to_num()).to(torch.uint8))


def histograms(pixels):
    """Counts of the 256 levels, int32 (n, 3, 256)."""
    rows = pixels.shape[0] * pixels.shape[1]
    place = pixels.flatten(0, 1).flatten(1).long() + 256 * torch.arange(rows, device=pixels.device)[:, None]
    counts = torch.zeros(rows * 256, dtype=torch.int32, device=pixels.device)
    ones = torch.ones(1, dtype=torch.int32, device=pixels.device).expand(place.numel())
    return counts.scatter_add_(0, place.flatten(), ones).view(*pixels.shape[:2], 256)


def equalize(pixels, value):
    """Spread the histogram of each channel."""
    counts = histograms(pixels)
    levels = torch.arange(256, device=pixels.device, dtype=torch.int32)
    last = counts.gather(2, torch.where(counts > 0, levels, 0).amax(dim=2, keepdim=True).long())
    step = (counts.sum(dim=2, keepdim=True, dtype=torch.int32) - last) // 255
    before = counts.cumsum(dim=2, dtype=torch.int32) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    unchanged = (step == 0) | ((counts > 0).sum(dim=2, keepdim=True) <= 1)
    return look_up(pixels, torch.where(unchanged, levels, table).to(torch.uint8))


def invert(pixels, value):
    """255 - x."""
    return 255 - pixels


def posterize(pixels, value):
    """Keep the highest `value` bits; none: black."""
    bits = value.clamp(0, 8).int()
    mask = 256 - torch.pow(2, 8 - bits)  # 0 bits: 0
    return pixels & column(mask).to(torch.uint8)


def solarize(pixels, value):
    """Invert pixels from the threshold on."""
    return torch.where(pixels < column(value), pixels, 255 - pixels)


def solarize_add(pixels, value):
    """Add to pixels below 128."""
    return torch.where(pixels < 128, (pixels.int() + column(value).int()).clamp(max=255), pixels).to(torch.uint8)


def color(pixels, value):
    """Between grey (0) and the image (1), and beyond."""
    return blend(grey(pixels), pixels, value)


def contrast(pixels, value):
    """Between the mean of the grey image, rounded (0), and the image (1), and beyond."""
    level = grey(pixels)
    number = level[0].numel()
    mean = (2 * level.sum(dim=(1, 2, 3)) + number) // (2 * number)
    return blend(column(mean), pixels, value)


def brightness(pixels, value):
    """Between black (0) and the image (1), and beyond."""
    return blend(torch.zeros_like(pixels), pixels, value)


def sharpness(pixels, value):
    """Between the smoothed image (0) and the image (1), and beyond; border pixels stay."""
    smooth = pixels.short()
    rows = (smooth[:, :, :-2] + smooth[:, :, 1:-1]).add_(smooth[:, :, 2:])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(smooth[:, :, 1:-1, 1:-1], alpha=4)
    smooth[:, :, 1:-1, 1:-1] = total.mul_(2).add_(13).floor_divide_(26)  # total / 13, rounded
    return blend(smooth, pixels, value)
