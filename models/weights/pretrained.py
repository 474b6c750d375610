"""Start from weights in a file: read it safely, find our names, adapt what may differ, report, refuse the rest."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

from models.weights import convert
from utils.errors import DataError, MismatchError, listing
from utils.safe_load import read_tensors

WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys under which training code puts the weights
AVERAGES = ("model_ema", "ema", "state_dict_ema")
# Ours and timm's names of the last layer, and of what a dense model has for its classes or for training alone.
HEADS = re.compile(
    r"(head|head_dist|fc|classifier|decode_head\.conv_seg|auxiliary_head"
    r"|roi_head\.\w+\.\d+\.(fc_cls|fc_reg|predictor\.mask_fcn_logits))\."
)
# What has a row for each class.
OF_CLASSES = re.compile(r"(head|head_dist|fc|classifier|(decode|auxiliary)_head\.conv_seg)(\.fc)?\.(weight|bias)")
SHORTCUTS = (".shortcuts.", ".dw_shortcut.")  # in our models and in timm's


@dataclass
class Report:
    """What became of each tensor, by name. skipped: in the file, not used; missing: keeps its initial value."""

    matched: list = field(default_factory=list)
    resized: list = field(default_factory=list)
    skipped: list = field(default_factory=list)
    missing: list = field(default_factory=list)

    def __str__(self):
        return (
            f"{len(self.matched)} tensors matched, {len(self.resized)} resized, "
            f"{len(self.skipped)} skipped, {len(self.missing)} missing"
        )


def load_pretrained(model, path, strict=True, log=print, classes=()):
    """Put the weights of the file into `model` (official layouts are converted) and return a Report.

    A head of another class count keeps its fresh initialisation, but where the file knows its classes, rows go to the
    classes of the same names among `classes`, the model's; positional embeddings and relative position bias tables are
    resized. strict: every other tensor must match by name and shape, except that shortcuts may be missing
    altogether (a plain backbone that is given shortcuts) and that the file may hold something beside the model (the
    decoder of its pretraining). Not strict: at least half of the tensors must match.
    A model with a `body` (models.dense) takes a classifier's weights into that; what only a classifier has is skipped.

    Raises MissingError and DataError as `read_tensors`, MismatchError if the file does not fit the model; then the
    model is unchanged.
    """
    body = getattr(model, "body", model)
    content = read_tensors(path)
    state = read_weights(content, path, log, own={**model.state_dict(), **body.state_dict()})
    map_head(model, state, class_names(content, path), classes, log)
    beyond = []
    if body is not model and not any(name in model.state_dict() for name in state):
        model = body
        beyond = classifier_parts(body, state)
        log(f"{path}: a classifier's weights, for the backbone")
    adapted, report = adapt(model, {name: state[name] for name in state if name not in beyond})
    check(report, model, state, strict, path)
    report.skipped += beyond
    model.load_state_dict(adapted, strict=False)
    log(f"{path}: {report}")
    for name, names in (("resized", report.resized), ("skipped", report.skipped), ("missing", report.missing)):
        if names:
            log(f"  {name}: {listing(names, most=6)}")
    return report


def read_weights(content, path, log=print, own=()):
    """State dict under our names from what a file holds: unwrapped, without prefixes, official layouts converted.

    own: names of the model's tensors; a file that has most of its names from there is the model's own (a timm model
    has timm's names).
    """
    state = strip_prefixes(find_weights(content, path, log), log, own)
    source = convert.recognise(state)
    if source is None or 2 * sum(name in own for name in state) > len(state):
        return state
    log(f"{path}: converted from {source.name}")
    others = {name: state.pop(name) for name in convert.beside(state, source)}
    return convert.rename(state, source) | others


def load_exact(model, state, path):
    """Load a state dict that must be this model's own (resume, evaluation).

    Raises MismatchError that names counts and up to 3 keys, or says how to fine-tune if only the head differs.
    """
    own = model.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    extra = [name for name in state if name not in own]
    heads = [name for name in wrong if HEADS.match(name) and name in state]
    if heads and len(heads) == len(wrong) and not extra:
        background = heads[0].count(".fc_cls.")  # is a class of a detector's boxes, too
        classes = state[heads[0]].shape[0] - background, own[heads[0]].shape[0] - background
        raise MismatchError(
            f"{path}: its head has {classes[0]} classes, the model {classes[1]}; "
            "to fine-tune it with a new head use --pretrained instead of --resume"
        )
    if wrong or extra:
        examples = listing((wrong[:2] + extra)[:3])
        raise MismatchError(
            f"{path}: belongs to another model, {len(wrong)} of {len(own)} tensors missing or of "
            f"another shape, {len(extra)} without a place: {examples}"
        )
    model.load_state_dict(state)


def find_weights(content, path, log=print):
    """The state dict inside what a training code saved, parts of it behind their names ('student.', 'teacher.').

    Of a run of ours it is the one whose accuracy the run reported. Raises MismatchError or DataError if there is none.
    """
    outer = content = reported_weights(content, path, log)
    while inner := next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None):
        content = inner
    if _is_state(content):
        unused = [key for key in AVERAGES if content is not outer and isinstance(outer.get(key), dict) and outer[key]]
        if unused:
            log(f"{path}: averaged weights are there, too, under {unused[0]!r}; they are not used")
        return dict(content)
    average = next((key for key in AVERAGES if isinstance(content.get(key), dict)), None)
    if average:
        raise MismatchError(
            f"{path}: holds only averaged (EMA) weights, under {average!r}; save them as {{'model': ...}} to use them"
        )
    parts = {key: part for key, part in content.items() if isinstance(part, dict) and _is_state(part)}
    if parts:
        return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}
    raise DataError(f"{path}: no weights found (keys: {listing(content, most=5)})")


def _is_state(content):
    pairs = content.items()
    return bool(pairs) and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs)


def reported_weights(content, path, log):
    """The content of a file; of a run with an average only the weights that the run evaluated (its TEST.WEIGHTS)."""
    config = content.get("config")
    if "format" not in content or not all(isinstance(part, dict) for part in (config, content.get("ema"))):
        return content
    if config["TEST"]["WEIGHTS"] == "model":
        log(f"{path}: its weights and not their average (EMA), as the run was evaluated (TEST.WEIGHTS model)")
        return {"model": content["model"]}
    log(f"{path}: the averaged weights (EMA), whose accuracy the run reported")
    return {"model": content["ema"]}


def strip_prefixes(state, log, own=()):
    """The tensors whose names are the model's `own`, or a published code base's, without a prefix that is removed.

    The names of modules around the model, such as `module.` or `model.`; what is not behind it is left out. All
    tensors as they are if they fit so or no prefix helps.
    """
    prefixes = find_prefixes(state, own)
    if not prefixes:
        return state
    prefix, *others = prefixes
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    left = [name for name in state if not name.startswith(prefix)]
    log(f"removed the prefix {prefix!r} from {f'{len(found)} of' if left else 'all'} {len(state)} names")
    if left:
        log(f"  left in the file: {listing(left, most=6)}")
    if others:
        log(f"  weights of the model stand behind {listing(map(repr, others))}, too; they are not used")
    return found


def find_prefixes(names, own):
    """The prefixes behind which most names fit, in their order; none if the names fit as they are, or nowhere.

    Names fit if half of the model's `own` are among them or a published code base is recognised.
    """

    def fit(prefix):
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        known = sum(name in own for name in inside)
        if known and 2 * known >= len(own):
            return known
        return len(inside) if convert.candidates(inside) else 0

    if fit(""):
        return []
    prefixes = dict.fromkeys(name[: dot + 1] for name in names for dot, letter in enumerate(name) if letter == ".")
    fits = {prefix: fit(prefix) for prefix in prefixes}
    most = max(fits.values(), default=0)
    return [prefix for prefix, count in fits.items() if count == most > 0]


def adapt(model, state):
    """({name: tensor that fits the model}, Report)."""
    adapted, report = {}, Report()
    for name, own in model.state_dict().items():
        given = state.get(name)
        if given is None:
            report.missing.append(name)
            continue
        fitting = given if given.shape == own.shape else _resize(model, name, given, own)
        if fitting is None:
            report.skipped.append(f"{name} {tuple(given.shape)} -> {tuple(own.shape)}")
        else:
            adapted[name] = fitting
            (report.matched if fitting is given else report.resized).append(name)
    report.skipped += [name for name in state if name not in model.state_dict()]
    return adapted, report


def class_names(content, path):
    """The names of the classes that a checkpoint of a run, or its exported weights, has a head for; () if unknown."""
    if Path(path).suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get("class_names", "")
        return json.loads(stored) if stored.startswith("[") else ()
    facts = content.get("data")
    return facts.get("classes", ()) if "format" in content and isinstance(facts, dict) else ()


def map_head(model, state, theirs, ours, log):
    """Put the rows of heads in `state` in the order of the class names `ours`, if it differs from `theirs`; a class
    that `theirs` lack has the model's own fresh row. Without a common name everything stays as it is."""
    place = {name: row for row, name in enumerate(theirs)}
    pairs = [(row, place[name]) for row, name in enumerate(ours) if name in place]
    if not pairs or list(theirs) == list(ours):
        return
    here, there = map(list, zip(*pairs, strict=True))
    for name, own in model.state_dict().items():
        given = state.get(name)
        if given is not None and OF_CLASSES.fullmatch(name) and given.shape == (len(theirs), *own.shape[1:]):
            state[name] = own.clone()
            state[name][here] = given[there].to(own.dtype)
    fresh = [name for name in ours if name not in place]
    log(f"head: {len(pairs)} of {len(ours)} classes by name" + (f"; fresh: {listing(fresh)}" if fresh else ""))


def classifier_parts(body, state):
    """Names of tensors that belong to modules which `body`, made of a classifier, has lost: norm, head, class token."""
    kept = {name.partition(".")[0] for name in body.state_dict()}
    return [name for name in state if name.partition(".")[0] not in kept]


def check(report, model, state, strict, path):
    """Raise MismatchError if too little of the file and the model match."""
    lists = model.state_dict(), report.matched + report.resized, report.missing, report.skipped
    own, fitting, missing, wrong = ([name for name in names if not HEADS.match(name)] for names in lists)
    tops = {name.partition(".")[0] for name in model.state_dict()}
    wrong = [name for name in wrong if re.split(r"[. ]", name)[0] in tops]  # the others lie beside the model
    if not any(_is_shortcut(name) for name in state):
        missing = [name for name in missing if not _is_shortcut(name)]
    if (strict and (missing or wrong)) or 2 * len(fitting) < len(own):
        raise MismatchError(
            f"{path}: {len(fitting)} of {len(own)} tensors match, {len(missing)} missing, {len(wrong)} "
            f"do not fit: {listing(wrong[:2] + missing[: 3 - len(wrong[:2])], most=3)}"
        )


def _is_shortcut(name):
    return any(part in name for part in SHORTCUTS)


def _resize(model, name, given, own):
    """`given` interpolated to the shape of `own`, or None if it is not a tensor that may be."""
    positions = re.fullmatch(r"(?:stages\.(\d+)\.)?pos_embed", name)
    if positions and given.shape[-1] == own.shape[-1]:
        if positions[1]:
            grid = model.grid(int(positions[1]))
        else:
            grid = model.grid if hasattr(model, "grid") else model.patch_embed.grid_size  # ours, timm's
        prefix = own.shape[1] - math.prod(grid)
        if math.isqrt(given.shape[1] - prefix) ** 2 != given.shape[1] - prefix:
            return None  # made for an image that is not square; its sides are not known
        return resample_abs_pos_embed(given, grid, num_prefix_tokens=prefix)
    if name.endswith("relative_position_bias_table") and given.shape[1] == own.shape[1]:
        if given.shape[0] == 1:  # a window of one token has one bias, for no displacement
            return given.expand(own.shape).clone()
        window = (math.isqrt(own.shape[0]) + 1) // 2
        return resize_rel_pos_bias_table(given, (window, window), own.shape)
    return None
