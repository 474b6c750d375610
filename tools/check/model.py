"""The model at the configured image size: do image, patch and window fit, and is the grid sensible?"""

from models.pretrained import load_pretrained
from tools.check.finding import ok, warning
from utils.flops import count_macs

FEWEST = 16  # tokens in the first level below which there is little for attention to do


def check_model(subject):
    """Build it (a ConfigError says what does not fit and the nearest sizes that do) and count."""
    model = subject.hollow_model
    macs = count_macs(model, subject.img_size)["total"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    height, width = subject.img_size
    findings = [ok(f"{subject.config.MODEL.TYPE}, {parameters / 1e6:.2f} M parameters, {macs / 1e6:,.1f} M multiply-"
                   f"accumulates an image of {height}x{width}{grid_text(model, subject.img_size)}")]  # fmt: skip
    tokens = [rows * columns for rows, columns in grids(model, subject.img_size)]
    if tokens and tokens[0] < FEWEST:
        patch = max(1, min(height, width) // 8)
        advice = f"a smaller MODEL.ARGS.PATCH_SIZE (at most {patch} gives 8x8) or a larger DATA.IMG_SIZE"
        findings = [warning(f"only {tokens[0]} tokens{grid_text(model, subject.img_size)}", advice)]
    if subject.config.MODEL.PRETRAINED:
        findings += pretrained(subject)
    return findings


def pretrained(subject):
    """Load MODEL.PRETRAINED as a run would (its errors are a run's)."""
    said = []
    load_pretrained(subject.new_model(subject.config), subject.config.MODEL.PRETRAINED, log=said.append)
    return [ok(f"{subject.config.MODEL.PRETRAINED} fits{': ' if said else ''}{'; '.join(said)}")]


def grids(model, size):
    """(rows, columns) of tokens of each level that differs from the one before."""
    found = []
    for level in getattr(model, "feature_info", []):
        grid = tuple(side // level["reduction"] for side in size)
        if not found or grid != found[-1]:
            found.append(grid)
    return found


def grid_text(model, size):
    """`, 14x14 tokens` or `, 8x8, 4x4, 2x2 tokens`."""
    found = ", ".join(f"{rows}x{columns}" for rows, columns in grids(model, size))
    return f", {found} tokens" if found else ""
