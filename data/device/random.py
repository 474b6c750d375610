"""Random numbers as a function of (key, epoch, image, stream, position): Philox4x32-10, the same bits on every device.

Philox is the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section
4: ten rounds turn a counter of four 32-bit words and a key of two into four random words. Nothing has a state, so no
draw depends on another one, on the batch around an image, on the number of processes, or on what was drawn before.

The counter here is (position, stream, image index, epoch); each use has a stream of its own (`data/device/draws.py`).
Triton's `tl.philox(key, position, stream, index, epoch)` gives the same words.
"""

import math

import torch

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key grows by in every round
ROUNDS = 10


def multiply(words, factor):
    """(high, low) 32 bits of the product of `words` (int64 tensor, 0..2**32-1) and the integer `factor`.

    The product may need all 64 bits: int64 tensors wrap, and the mask takes away the sign that the shift fills in.
    """
    product = words * factor
    return (product >> 32) & WORD, product & WORD


def philox(key, counter):
    """Four int64 tensors of random words (0..2**32-1) from a 64-bit integer and four counter words.

    The counter words are int64 tensors or integers that broadcast against each other, at least one of them a tensor.
    """
    key = [key & WORD, (key >> 32) & WORD]
    device = next(word.device for word in counter if isinstance(word, torch.Tensor))

    def on_device(word):  # `torch.as_tensor(word, device=device)` would copy an integer and wait for CUDA
        return word if isinstance(word, torch.Tensor) else torch.full((), word, dtype=torch.int64, device=device)

    c0, c1, c2, c3 = torch.broadcast_tensors(*(on_device(word) for word in counter))
    for _ in range(ROUNDS):
        high0, low0 = multiply(c0, MULTIPLIERS[0])
        high1, low1 = multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0
        key = [(word + step) & WORD for word, step in zip(key, WEYL, strict=True)]
    return c0, c1, c2, c3


def uniforms(key, epoch, index, stream, count):
    """float64 (B, count) in [0, 1) for the images `index` (int64 (B,)); word k of position p is number 4 * p + k."""
    position = torch.arange(-(-count // 4), device=index.device)
    words = philox(key, (position, stream, index[:, None], epoch))
    return torch.stack(words, dim=-1).flatten(1)[:, :count].double() * 2.0**-32


def box_muller(first, second):
    """A pair of independent standard normals from two uniforms, the first in (0, 1]: (r cos t, r sin t)."""
    radius, angle = torch.sqrt(-2.0 * torch.log(first)), 2.0 * math.pi * second
    return radius * torch.cos(angle), radius * torch.sin(angle)


def normals(key, epoch, index, stream, position):
    """Three standard normals, float32 (..., 3), for every `position`, which broadcasts against `index`.

    The uniforms are the upper 24 bits of the four words, exact in float32: (w >> 8) * 2**-24, and one step more where a
    logarithm is taken. Numbers 0 and 1 are the pair of words 0 and 1, number 2 is the first of words 2 and 3. The words
    are the same everywhere; logarithm, sine and cosine differ between devices by float rounding.
    """
    words = philox(key, (position, stream, index, epoch))
    a, b, c, d = ((word >> 8).float() for word in words)
    step = 2.0**-24
    first, second = box_muller((a + 1) * step, b * step)
    third, _ = box_muller((c + 1) * step, d * step)
    return torch.stack([first, second, third], dim=-1)
