"""Which weights of which file are evaluated, and how the result is said."""

from itertools import zip_longest

from models.pretrained import load_exact, read_weights
from utils import checkpoint
from utils.errors import MismatchError
from utils.summary import counts


def load_for_evaluation(model, info, config, log):
    """Put the weights of MODEL.RESUME into `model`, all of them, or raise MismatchError."""
    path = config.MODEL.RESUME
    payload = checkpoint.load(path)
    check_classes(payload, info, path)
    if "optimizer" in payload or "ema" in payload:  # one of ours
        payload = {"model": choose_weights(payload, config.TEST.WEIGHTS, path)}
    load_exact(model, read_weights(payload, path, log.info, own=model.state_dict()), path)


def check_classes(payload, info, path):
    """Raise MismatchError if a checkpoint was trained on other classes, or the same in another order."""
    stored, here = payload.get("data", {}).get("classes", []), list(info.class_names)
    if stored and stored != here:
        first, second = next((a, b) for a, b in zip_longest(stored, here) if a != b)
        raise MismatchError(f"{path}: its classes are not those of {info.name}: {first!r} there, {second!r} here")


def result_text(name, result):
    """`val: 84.12 % (8412/10000), top-5 ..., loss ...` of an EvalResult."""
    row = {"correct": result.correct, "total": result.total}
    top5 = counts({"correct": result.correct5, "total": result.total})
    return f"{name}: top-1 {counts(row)}, top-5 {top5}, loss {result.loss:.4f}"


def choose_weights(payload, which, path):
    """The state dict of a checkpoint that TEST.WEIGHTS names: 'auto' is the EMA if there is one, as when training."""
    if which == "auto":
        which = "ema" if payload.get("ema") is not None else "model"
    if payload.get(which) is None:
        held = ", ".join(name for name in ("model", "ema") if payload.get(name) is not None)
        raise MismatchError(f"{path}: holds no {which!r} weights, only {held}; use --opts TEST.WEIGHTS {held}")
    return payload[which]
