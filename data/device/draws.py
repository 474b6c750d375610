"""All that is random about the augmentation of a batch, as tensors: drawn once, then applied by any implementation.

Every number is a function of (key, epoch, image, stream, position) through Philox4x32-10, the counter-based generator
of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section 4: ten rounds turn a counter of four
32-bit words (position, stream, image index, epoch) and a key of two into four random words. Nothing has a state, so no
draw depends on another one, on the batch around an image or on the number of processes. Triton's `tl.philox(key,
position, stream, index, epoch)` gives the same words.

The distributions are those of the CPU path: the algorithms of timm (random resized crop, RandAugment, random erasing)
and torchvision (padded crop, flips, colour jitter), on the same integer grids. Drawing happens on the CPU in float64,
so that every device gets the same draws.
"""

import math
from dataclasses import dataclass, replace

import torch

from data.device.pillow import affine_matrices
from utils.seed import derive_seed

ATTEMPTS = 10  # of timm to find a crop or a rectangle that fits
CROP, FLIP, ERASE, NOISE, STAGE = 0, 1, 2, 3, 8  # Philox streams; stage s of the recipe has STAGE + s
WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key grows by in every round
ROUNDS = 10


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
        # A product may need all 64 bits: int64 wraps, and the mask takes away the sign that the shift fills in.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (second >> 32) & WORD ^ c1 ^ key[0], (first >> 32) & WORD ^ c3 ^ key[1]
        c1, c3 = second & WORD, first & WORD
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


@dataclass(frozen=True)
class AugmentDraws:
    """Parameters of B images; L layers, R erased rectangles at most. Tensors lie on one device.

    crop    int32 (B, 4): top, left, height, width of the window on the recipe's frame; what lies outside the frame
            (padded crop only) is black
    hflip   bool (B,), vflip bool (B,): after the crop, horizontally first (the order does not matter)
    op      int32 (L, B): `pillow.Op`, -1 for none
    value   float32 (L, B): its argument, see `pillow.Op`; 0 where there is none
    matrix  float64 (L, B, 6): inverse affine map of the operations of AFFINE, identity elsewhere (float32 on MPS,
            which has no float64); see `affine_matrices`
    erase   int32 (R, B, 4): top, left, height, width; height and width 0 for none; later ones go over earlier ones
    index   int64 (B,): the image's index in its dataset: with `key` and `epoch` the key of its noise
    key     64-bit Philox key of the run
    epoch   epoch of the draws
    counts  on the host, for implementations that go op by op: {Op: number of images} of each layer, ascending
    areas   on the host: erased pixels of all images, for each of the R rectangles
    """

    crop: torch.Tensor
    hflip: torch.Tensor
    vflip: torch.Tensor
    op: torch.Tensor
    value: torch.Tensor
    matrix: torch.Tensor
    erase: torch.Tensor
    index: torch.Tensor
    key: int
    epoch: int
    counts: tuple = ()
    areas: tuple = ()

    def __len__(self):
        return len(self.index)

    def map(self, function):
        """The same with `function(name, tensor)` applied to every tensor."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: function(name, value) for name, value in tensors.items()})

    def part(self, start, stop, on_host=None):
        """The draws of images `start` to `stop`; `on_host` is the same object on the CPU if this one is elsewhere."""
        part = self.map(lambda name, tensor: tensor.narrow(BATCH_DIM.get(name, 0), start, stop - start))
        if on_host is None:
            return part.counted()
        host = on_host.part(start, stop)
        return replace(part, counts=host.counts, areas=host.areas)

    def counted(self):
        """The same with `counts` and `areas` filled in; on the CPU, so that no device is waited for."""
        found = (layer.unique(return_counts=True) for layer in self.op)
        counts = tuple(dict(zip(ops.tolist(), numbers.tolist(), strict=True)) for ops, numbers in found)
        return replace(self, counts=counts, areas=tuple((self.erase[..., 2] * self.erase[..., 3]).sum(1).tolist()))

    def pinned(self):
        """The same in pinned memory, from which `to` copies while the device works."""
        return self.map(lambda name, tensor: tensor.pin_memory())

    def to(self, device):
        """The draws on `device`."""
        device = torch.device(device)

        def move(name, tensor):
            tensor = tensor.float() if device.type == "mps" and tensor.dtype == torch.float64 else tensor
            return tensor.to(device, non_blocking=device.type == "cuda")  # MPS may read memory that is freed

        return self.map(move)


BATCH_DIM = {"op": 1, "value": 1, "matrix": 1, "erase": 1}  # the others have the batch first


def philox_key(seed):
    """The Philox key of a run."""
    return derive_seed(int(seed), "device augment")


def draw(recipe, key, epoch, index):
    """The AugmentDraws of images `index` (int64 (B,), CPU) in `epoch`; `key` from `philox_key`."""

    def take(stream, count):
        return uniforms(key, epoch, index, stream, count)

    hflip, vflip = (take(FLIP, 2) < torch.tensor([recipe.hflip, recipe.vflip], dtype=torch.float64)).unbind(1)
    layers = [stage.draw(take(STAGE + place, stage.numbers), recipe.size) for place, stage in enumerate(recipe.stages)]
    layers.append((torch.zeros(0, len(index), dtype=torch.int64), torch.zeros(0, len(index), dtype=torch.float64)))
    op, value = (torch.cat(parts) for parts in zip(*layers, strict=True))
    return AugmentDraws(
        crop=CROPS[recipe.crop](recipe, take, len(index)).int(),
        hflip=hflip,
        vflip=vflip,
        op=op.int(),
        value=value.float(),
        matrix=affine_matrices(op, value, *recipe.size),
        erase=draw_rectangles(recipe, take, len(index)).int(),
        index=index,
        key=key,
        epoch=epoch,
    ).counted()


def between(uniform, low, high):
    """Uniform in low..high."""
    return low + (high - low) * uniform


def below(uniform, count):
    """Uniform among the integers 0..count-1; `count` a tensor or an integer."""
    return (uniform * count).floor().long()


def first_window(fits, height, width, numbers, rows, columns):
    """(whether any fits (B,), window (B, 4)) of the first attempt that fits, from (B, attempts) tensors.

    The last two of `numbers` (B, attempts, 4) choose its place in `rows` x `columns`.
    """
    first = fits.int().argmax(dim=1, keepdim=True)
    values = height, width, numbers[..., 2], numbers[..., 3]
    height, width, row, column = (value.gather(1, first)[:, 0] for value in values)
    window = torch.stack([below(row, rows - height + 1), below(column, columns - width + 1), height, width], dim=1)
    return fits.any(dim=1), window.long()


def draw_resized_crop(recipe, take, batch):
    """Windows (B, 4) by timm's RandomResizedCropAndInterpolation.get_params.

    Ten attempts, then the largest window of an allowed ratio from the centre.
    """
    rows, columns = recipe.geometry.frame[2:]
    numbers = take(CROP, 4 * ATTEMPTS).unflatten(1, (ATTEMPTS, 4))
    area = between(numbers[..., 0], *recipe.scale) * (rows * columns)
    ratio = torch.exp(between(numbers[..., 1], *(math.log(bound) for bound in recipe.ratio)))
    width, height = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (width <= columns) & (height <= rows)
    found, window = first_window(fits, height, width, numbers, rows, columns)
    return torch.where(found[:, None], window, torch.tensor(central_window(rows, columns, recipe.ratio)))


def central_window(rows, columns, ratio):
    """timm's fall-back window (top, left, height, width)."""
    width, height = columns, rows
    if columns / rows < min(ratio):
        height = int(round(columns / min(ratio)))
    elif columns / rows > max(ratio):
        width = int(round(rows * max(ratio)))
    return (rows - height) // 2, (columns - width) // 2, height, width


def draw_padded_crop(recipe, take, batch):
    """Windows (B, 4) of the frame's size, moved by up to `recipe.padding` either way."""
    numbers = take(CROP, 2)
    moves = [below(numbers[:, axis], 2 * padding + 1) - padding for axis, padding in enumerate(recipe.padding)]
    return torch.stack(moves + [torch.full_like(moves[0], side) for side in recipe.size], dim=1)


CROPS = {
    "resized": draw_resized_crop,
    "padded": draw_padded_crop,
    "none": lambda recipe, take, batch: torch.tensor((0, 0, *recipe.geometry.frame[2:])).repeat(batch, 1),
}


def draw_rectangles(recipe, take, batch):
    """Erased rectangles (R, B, 4) by timm's RandomErasing: up to ten attempts each."""
    erase, (rows, columns) = recipe.erase, recipe.size
    if erase is None:
        return torch.zeros(0, batch, 4)
    fewest, most = erase.min_count, erase.max_count
    numbers = take(ERASE, 2 + most * 4 * ATTEMPTS)
    count = fewest + below(numbers[:, 1], most - fewest + 1)
    wanted = torch.where(numbers[:, 0] < erase.probability, count, 0)
    numbers = numbers[:, 2:].unflatten(1, (most, ATTEMPTS, 4))
    rectangles = []
    for place in range(most):
        u = numbers[:, place]
        area = between(u[..., 0], erase.min_area, erase.max_area) * (rows * columns) / count[:, None]
        ratio = torch.exp(between(u[..., 1], *erase.log_aspect_ratio))
        height, width = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
        found, box = first_window((width < columns) & (height < rows), height, width, u, rows, columns)
        rectangles.append(torch.where((found & (place < wanted))[:, None], box, 0))
    return torch.stack(rectangles)
