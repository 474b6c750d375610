"""What checkpoints make of the same images: the figure of each method of tools.cam."""

from dataclasses import replace

import numpy as np
import torch

from engine import autocast
from tools.cam.draw import Band, Column, maps_figure, responses_figure
from tools.cam.maps import grad_cam, reads_prefix_only, shortcut_responses, token_stages
from tools.cam.rollout import attention_rollout
from tools.shared.behaviour import shortened
from utils.amp import amp_dtype
from utils.errors import ConfigError, nearest

MOST_BLOCKS = 6  # shown unless --blocks names them


class Seen:
    """What one checkpoint makes of the images: their tensors, pictures, and the most probable class of each."""

    def __init__(self, loaded, images, name):
        self.loaded, self.name = loaded, name
        tensors = [loaded.transform(images.load(position)) for position in range(len(images))]
        self.inputs = torch.stack(tensors).to(loaded.device)
        mean, std = (torch.tensor(values)[:, None, None] for values in (loaded.mean, loaded.std))
        self.pictures = [(image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy() for image in tensors]
        dtype = amp_dtype(loaded.config.AMP.ENABLE, loaded.config.AMP.DTYPE, loaded.device)
        with torch.inference_mode(), autocast(loaded.device, dtype):
            logits = loaded.model(self.inputs)
        self.odds = logits.float().softmax(dim=1).cpu()

    def caption(self, position, number=None):
        """`said: cat (84.5%)`, and below it the class `number` of the map if that is another one."""
        said = int(self.odds[position].argmax())
        lines = [f"said: {self.share(position, said)}"]
        if number is not None:
            lines.append(f"map: {self.share(position, number)}")
        return "\n".join(lines)

    def share(self, position, number):
        """`cat (84.5%)`."""
        return f"{shortened(self.loaded.class_names[number])} ({self.odds[position, number]:.1%})"


def class_number(loaded, name):
    """The number of a class. Raises ConfigError with the nearest name."""
    if name not in loaded.class_names:
        raise ConfigError(f"--class {name}: no class of {loaded.path}{nearest(name, loaded.class_names)}")
    return loaded.class_names.index(name)


def gradcam_column(seen, given, log):
    """Grad-CAM of the class asked for, or of the predicted ones."""
    number = None if given.wanted is None else class_number(seen.loaded, given.wanted)
    classes = seen.odds.argmax(dim=1) if number is None else torch.full((len(seen.odds),), number)
    maps = grad_cam(seen.loaded.model, seen.inputs, classes)
    for position in (maps.amax(dim=(1, 2)) == 0).nonzero().flatten().tolist():
        log.info(f"{seen.name}, image {position + 1}: no part speaks for the class, the map is 0 everywhere")
    captions = [seen.caption(position, number) for position in range(len(maps))]
    return Column(seen.name, seen.pictures, list(maps.numpy()), captions)


def rollout_column(seen, given, log):
    """Shares of the patches, times their number."""
    shares = attention_rollout(seen.loaded.model, seen.inputs)
    maps = (shares * shares[0].numel()).numpy()
    return Column(seen.name, seen.pictures, list(maps), [seen.caption(position) for position in range(len(maps))])


def gradcam(checkpoints, names, given, log):
    """The figure of Grad-CAM."""
    columns = [gradcam_column(seen, given, log) for seen in checkpoints]
    return maps_figure(names, columns, "Grad-CAM\n(1 = the map's maximum)", (0, 1))


def rollout(checkpoints, names, given, log):
    """The figure of attention rollout, all maps on one scale."""
    columns = [rollout_column(seen, given, log) for seen in checkpoints]
    maps = np.stack([found for column in columns for found in column.maps])
    return maps_figure(names, columns, "attention rollout\n(1 = an equal share)", (maps.min(), maps.max()))


def shortcut(checkpoints, names, given, log):
    """The figure of shortcut responses."""
    bands, notes = [], []
    for seen in checkpoints:
        found = shortcut_responses(seen.loaded.model, seen.inputs)
        numbers = chosen_blocks(given.blocks, found, seen.name)
        if found[-1].shortcut is not None and len(found) - 1 in numbers and without_effect(seen):
            notes.append(f"{seen.name}: the head reads the class token alone, so the last shortcut is without effect")
        bands.append(
            [
                Band(seen.name, seen.caption(position), [at(found[number], position) for number in numbers])
                for position in range(len(seen.inputs))
            ]
        )
    for note in notes:
        log.info(note)
    rows = [list(row) for row in zip(*bands, strict=True)]
    return responses_figure(names, checkpoints[0].pictures, rows, "\n".join(notes))


def without_effect(seen):
    """Whether the last shortcut does not reach the output."""
    return reads_prefix_only(seen.loaded.model, token_stages(seen.loaded.model, seen.inputs))


def chosen_blocks(wanted, found, name):
    """Positions in `found`: those `wanted`, counted from 1, or at most MOST_BLOCKS from the first to the last."""
    if not wanted:
        spread = np.linspace(0, len(found) - 1, min(MOST_BLOCKS, len(found)))
        return spread.round().astype(int).tolist()
    if max(wanted) > len(found):
        raise ConfigError(f"--blocks {max(wanted)}: {name} has {len(found)} (1 is {found[0].name!r})")
    return [number - 1 for number in wanted]


def at(response, position):
    """The Response of one image."""
    bypass = None if response.shortcut is None else response.shortcut[position]
    return replace(response, output=response.output[position], shortcut=bypass)


METHODS = {"gradcam": gradcam, "rollout": rollout, "shortcut": shortcut}
