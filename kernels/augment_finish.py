"""Pixels to what the model takes: normalised, rectangles erased, mixed with the mirrored batch, in any float type."""

import triton
import triton.language as tl

from kernels.augment_crop import plane_and_place

STEP = tl.constexpr(1.0 / (1 << 24))  # between uniforms of 24 bits, exact in float32
NOISE_STREAM = tl.constexpr(3)  # NOISE of data/device/draws.py
CONST, RAND, PIXEL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # ERASE_MODES below
ERASE_MODES = ("const", "rand", "pixel")


@triton.jit
def normal(key, position, channel, index, epoch):
    """A standard normal (float32) for every `position` and a channel, from the words of Philox4x32-10.

    As data/device/draws.py: Box-Muller of words 0 and 1 gives channels 0 (cosine) and 1 (sine), of 2 and 3 channel 2.
    """
    stream, image = position * 0 + NOISE_STREAM, position * 0 + index.to(tl.int32)
    w0, w1, w2, w3 = tl.philox(key, position, stream, image, position * 0 + epoch)
    first, second = tl.where(channel == 2, w2, w0), tl.where(channel == 2, w3, w1)
    radius = tl.sqrt(-2.0 * tl.log(((first >> 8).to(tl.float32) + 1.0) * STEP))
    angle = (second >> 8).to(tl.float32) * STEP * 6.283185307179586
    return radius * tl.where(channel == 1, tl.sin(angle), tl.cos(angle))


@triton.jit
def finished(
    pixels, sample, batch, channel, row, column, inside, mean, std, erase, index, key, epoch,
    H: tl.constexpr, W: tl.constexpr, RECTANGLES: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """A channel of an image at (row, column), normalised with divisions rounded as IEEE has it, and erased: float32."""
    place = row * W + column
    value = tl.load(pixels + (sample * 3 + channel) * (H * W) + place, mask=inside, other=0).to(tl.float32)
    result = tl.div_rn(tl.div_rn(value, tl.full([], 255.0, tl.float32)) - mean, std)
    if RECTANGLES > 0:
        covered = row * 0 - 1  # number of the last rectangle over the pixel, -1 for none
        for number in tl.static_range(RECTANGLES):
            at = erase + (number * batch + sample) * 4
            top, left = tl.load(at), tl.load(at + 1)
            height, width = tl.load(at + 2), tl.load(at + 3)
            within = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
            covered = tl.where(within, number, covered)
        if tl.max(covered, axis=0) >= 0:
            if MODE == CONST:
                noise = result * 0.0
            else:
                position = covered if MODE == RAND else place
                noise = normal(key, position, channel, tl.load(index + sample), epoch)
            result = tl.where(covered >= 0, noise, result)
    return result


@triton.jit(do_not_specialize=["batch", "key", "epoch"])
def finish_kernel(
    pixels, erase, index, weights, boxes, out, batch, key, epoch,
    mean_red, mean_green, mean_blue, std_red, std_green, std_blue,
    H: tl.constexpr, W: tl.constexpr, RECTANGLES: tl.constexpr, MODE: tl.constexpr, MIX: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out (B, 3, H, W) from uint8 pixels of the same shape.

    erase int32 (R, B, 4): top, left, height, width. weights float32 (B,) and boxes int32 (B, 4) (top, bottom, left,
    right): image b becomes w * b + (1 - w) * other, with other = B - 1 - b, and `other` alone inside the box.
    """
    plane, start = plane_and_place(H * W, BLOCK)
    sample, channel = plane // 3, (plane % 3).to(tl.int32)
    place = start + tl.arange(0, BLOCK)
    inside = place < H * W
    row, column = place // W, place % W
    mean = tl.where(channel == 0, mean_red, tl.where(channel == 1, mean_green, mean_blue))
    std = tl.where(channel == 0, std_red, tl.where(channel == 1, std_green, std_blue))
    result = finished(
        pixels, sample, batch, channel, row, column, inside, mean, std, erase, index, key, epoch,
        H, W, RECTANGLES, MODE,
    )  # fmt: skip
    if MIX:
        other = finished(
            pixels, batch - 1 - sample, batch, channel, row, column, inside, mean, std, erase, index, key, epoch,
            H, W, RECTANGLES, MODE,
        )  # fmt: skip
        weight = tl.load(weights + sample)
        top, bottom = tl.load(boxes + sample * 4), tl.load(boxes + sample * 4 + 1)
        left, right = tl.load(boxes + sample * 4 + 2), tl.load(boxes + sample * 4 + 3)
        in_box = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        result = tl.where(in_box, other, weight * result + (1.0 - weight) * other)
    tl.store(out + plane * (H * W) + place, result.to(out.dtype.element_ty), mask=inside)
