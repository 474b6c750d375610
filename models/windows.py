"""Windows of a grid of tokens: cutting, relative positions, and which tokens of a shifted window belong together."""

import torch


def to_windows(x, window: int):
    """(B, H, W, C) -> (B * H/w * W/w, w*w, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x, window: int, grid: tuple[int, int]):
    """(B * H/w * W/w, w*w, C) -> (B, H, W, C)."""
    rows, columns = grid[0] // window, grid[1] // window
    x = x.view(-1, rows, columns, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, grid[0], grid[1], x.shape[-1])


def relative_position_index(window):
    """(w*w, w*w) row of the bias table for each pair of positions: (dy + w - 1) * (2w - 1) + dx + w - 1."""
    y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def log_displacements(window):
    """((2w - 1)^2, 2): (dy, dx) of each row of the bias table, from -8 to 8, then sign(d) * log2(|d| + 1) / log2(8).

    The order of operations is the published one, in float32, because float64 results depend on its rounding.
    """
    steps = torch.arange(-(window - 1), window, dtype=torch.float32) / max(window - 1, 1) * 8
    steps = torch.sign(steps) * torch.log2(torch.abs(steps) + 1.0) / 3
    return torch.cartesian_prod(steps, steps)


def mask_for(grid: tuple[int, int], mask: torch.Tensor | None, mask_grid: tuple[int, int], window: int, shift: int):
    """The prepared mask if it is for this grid, else a new one."""
    if mask is not None and grid[0] == mask_grid[0] and grid[1] == mask_grid[1]:
        return mask
    return shift_mask(grid, window, shift)


def shift_mask(grid: tuple[int, int], window: int, shift: int):
    """(windows, w*w, w*w): 0 where two tokens of a rolled window were neighbours before rolling, -100 elsewhere."""
    regions = window_regions(grid, window, shift)
    return (regions[:, None, :] != regions[:, :, None]).float() * -100.0


def window_regions(grid: tuple[int, int], window: int, shift: int):
    """(windows, w*w): 0 to 8, which of the parts that rolling brings together a token belongs to."""
    regions = 3 * regions_along(grid[0], window, shift)[:, None] + regions_along(grid[1], window, shift)  # (H, W)
    return to_windows(regions[None, :, :, None], window).squeeze(2)


def regions_along(length: int, window: int, shift: int):
    """(length,): 0, 1 or 2, the parts of an axis that rolling brings together in the last window."""
    position = torch.arange(length)
    return (position >= length - window).long() + (position >= length - shift).long()
