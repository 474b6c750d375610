"""All that is random about the augmentation of a batch, as tensors: drawn once, then applied by any implementation.

Every number is a function of (seed, epoch, image index). The distributions are those of the CPU path: the algorithms of
timm (random resized crop, RandAugment, random erasing) and torchvision (padded crop, flips, colour jitter), on the
same integer grids. Drawing happens on the CPU in float64, so that every device gets the same draws.
"""

import math
from dataclasses import dataclass, fields, replace

import torch

from data.device.ops import Op, affine_matrices
from data.device.random import uniforms
from utils.seed import derive_seed

ATTEMPTS = 10  # of timm to find a crop or a rectangle that fits
CROP, FLIP, ERASE, NOISE, STAGE = 0, 1, 2, 3, 8  # Philox streams; stage s of the recipe has STAGE + s


@dataclass(frozen=True)
class AugmentDraws:
    """Parameters of B images; L layers, R erased rectangles at most. Tensors lie on one device.

    crop    int32 (B, 4): top, left, height, width of the window on the recipe's frame; what lies outside the frame
            (padded crop only) is black
    hflip   bool (B,), vflip bool (B,): after the crop, horizontally first (the order does not matter)
    op      int32 (L, B): `ops.Op`, -1 for none
    value   float32 (L, B): its argument, see `ops.Op`; 0 where there is none
    matrix  float64 (L, B, 6): inverse affine map of the operations ops.AFFINE, identity elsewhere (float32 on MPS,
            which has no float64); see `ops.affine_matrices`
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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: function(name, value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)

    def part(self, start, stop, on_host=None):
        """The draws of images `start` to `stop`; `on_host` is the same object on the CPU if this one is elsewhere."""
        part = self.map(lambda name, tensor: tensor.narrow(BATCH_DIM.get(name, 0), start, stop - start))
        if on_host is None:
            return part.counted()
        host = on_host.part(start, stop)
        return replace(part, counts=host.counts, areas=host.areas)

    def counted(self):
        """The same with `counts` and `areas` filled in; on the CPU, so that no device is waited for."""
        counts = tuple(dict(zip(*counted_values(layer), strict=True)) for layer in self.op)
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


def counted_values(layer):
    """(values, how often) of an int tensor, as lists."""
    return [part.tolist() for part in layer.unique(return_counts=True)]


BATCH_DIM = {"op": 1, "value": 1, "matrix": 1, "erase": 1}  # the others have the batch first


def philox_key(seed):
    """The Philox key of a run."""
    return derive_seed(int(seed), "device augment")


def draw(recipe, key, epoch, index):
    """The AugmentDraws of images `index` (int64 (B,), CPU) in `epoch`; `key` from `philox_key`."""

    def take(stream, count):
        return uniforms(key, epoch, index, stream, count)

    hflip, vflip = (take(FLIP, 2) < torch.tensor([recipe.hflip, recipe.vflip], dtype=torch.float64)).unbind(1)
    op, value = draw_layers(recipe, take, len(index))
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


def draw_layers(recipe, take, batch):
    """(op int64, value float64), each (L, B)."""
    drawn = [stage.draw(take(STAGE + place, stage.numbers), recipe.size) for place, stage in enumerate(recipe.stages)]
    if not drawn:
        return torch.full((0, batch), int(Op.NONE)), torch.zeros(0, batch, dtype=torch.float64)
    return tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))


def between(uniform, low, high):
    """Uniform in low..high."""
    return low + (high - low) * uniform


def below(uniform, count):
    """Uniform among the integers 0..count-1; `count` a tensor or an integer."""
    return (uniform * count).floor().long()


def first_fit(fits, *values):
    """(any fits (B,), values of the first attempt that fits) from (B, attempts) tensors."""
    first = fits.int().argmax(dim=1, keepdim=True)
    return fits.any(dim=1), *(value.gather(1, first)[:, 0] for value in values)


def draw_resized_crop(recipe, take, batch):
    """Windows (B, 4) by timm's RandomResizedCropAndInterpolation.get_params.

    Ten attempts, then the largest window of an allowed ratio from the centre.
    """
    rows, columns = recipe.geometry.frame[2:]
    numbers = take(CROP, 4 * ATTEMPTS).unflatten(1, (ATTEMPTS, 4))
    area = between(numbers[..., 0], *recipe.scale) * (rows * columns)
    ratio = torch.exp(between(numbers[..., 1], *(math.log(bound) for bound in recipe.ratio)))
    width, height = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    found, width, height, row, column = first_fit(
        (width <= columns) & (height <= rows), width, height, numbers[..., 2], numbers[..., 3]
    )
    window = torch.stack([below(row, rows - height + 1), below(column, columns - width + 1), height, width], dim=1)
    return torch.where(found[:, None], window.long(), torch.tensor(central_window(rows, columns, recipe.ratio)))


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


def whole_frame(recipe, take, batch):
    """The frame itself as windows (B, 4)."""
    return torch.tensor((0, 0, *recipe.geometry.frame[2:])).repeat(batch, 1)


CROPS = {"resized": draw_resized_crop, "padded": draw_padded_crop, "none": whole_frame}


def draw_rectangles(recipe, take, batch):
    """Erased rectangles (R, B, 4) by timm's RandomErasing: up to ten attempts each."""
    erase, (rows, columns) = recipe.erase, recipe.size
    if erase is None:
        return torch.zeros(0, batch, 4)
    fewest, most = erase.count
    numbers = take(ERASE, 2 + most * 4 * ATTEMPTS)
    count = fewest + below(numbers[:, 1], most - fewest + 1)
    wanted = torch.where(numbers[:, 0] < erase.prob, count, 0)
    numbers = numbers[:, 2:].unflatten(1, (most, ATTEMPTS, 4))
    rectangles = []
    for place in range(most):
        u = numbers[:, place]
        area = between(u[..., 0], *erase.area) * (rows * columns) / count[:, None]
        ratio = torch.exp(between(u[..., 1], *erase.log_ratio))
        height, width = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
        found, height, width, row, column = first_fit(
            (width < columns) & (height < rows), height, width, u[..., 2], u[..., 3]
        )
        box = torch.stack([below(row, rows - height + 1), below(column, columns - width + 1), height, width], dim=1)
        rectangles.append(torch.where((found & (place < wanted))[:, None], box.long(), 0))
    return torch.stack(rectangles)
