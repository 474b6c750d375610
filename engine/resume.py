"""What a checkpoint holds, which one continues a run, and whether it may."""

from dataclasses import asdict
from pathlib import Path

from config import changes_results, completed, difference, to_plain
from engine.train import Progress
from models.weights.pretrained import load_exact, read_weights
from optimizer import continue_from
from utils import checkpoint
from utils.errors import MismatchError, OutputError, listing

FORMAT = 1
HELD = {  # what a checkpoint must hold to continue a run
    "config": dict,
    "world_size": int,
    "steps_per_epoch": int,
    "model": dict,
    "optimizer": dict,
    "progress": dict,
}
# A resumed run has its weights from the checkpoint.
ONLY_AT_THE_START = ("MODEL.PRETRAINED", "MODEL.INIT", "MODEL.ARGS.PRETRAINED")


def to_payload(state, config, facts, world, per_epoch):
    """The checkpoint's content: tensors and plain Python values only. `facts`: the task's."""
    return {
        "format": FORMAT,
        "config": to_plain(config),
        "data": facts,
        "world_size": world.size,
        "steps_per_epoch": per_epoch,
        "model": {name: tensor.clone() for name, tensor in state.model.state_dict().items()},  # some are views
        "ema": state.ema.module.state_dict() if state.ema else None,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "progress": asdict(state.progress),
        **({"extra": state.extra.state_dict()} if state.extra is not None else {}),
    }


def is_ours(payload):
    """Whether a file's content was written by this program: by a run, or by a tool that averaged some."""
    return payload.get("format") == FORMAT and isinstance(payload.get("config"), dict)


def check_resumable(payload, path):
    """Raise MismatchError unless the content of a checkpoint file is that of a run that can be continued."""
    absent = [key for key, kind in HELD.items() if not isinstance(payload.get(key), kind)]
    if not is_ours(payload) or absent:
        found = f"another program's run (without {listing(absent, 2)})" if absent else "another program's run"
        found = "weights only" if "optimizer" in absent else found
        raise MismatchError(f"{path}: holds {found}, nothing to resume; use --pretrained to start from its weights")


def restore(state, payload, path, per_epoch):
    """Put a checkpoint's content into `state`. Raises MismatchError naming what does not fit."""
    load_exact(state.model, payload["model"], path)
    if state.ema:
        load_exact(state.ema.module, payload["ema"] or payload["model"], path)
    if state.extra is not None:
        load_exact(state.extra, payload.get("extra", {}), path)
    continue_from(state.optimizer, payload["optimizer"], path)
    if state.scaler and payload["scaler"]:
        state.scaler.load_state_dict(payload["scaler"])
    state.progress = Progress(**payload["progress"])
    if payload["steps_per_epoch"] != per_epoch:  # other images or another global batch (TRAIN.ALLOW_CHANGES)
        epochs, inside = divmod(state.progress.step, payload["steps_per_epoch"])
        if inside:
            raise MismatchError(
                f"{path}: in the middle of an epoch of {payload['steps_per_epoch']} steps, which one of {per_epoch} "
                "cannot continue (other images or another global batch)"
            )
        state.progress.step = epochs * per_epoch


def check_same_run(config, world, payload, path, facts=None, per_epoch=None):
    """[(key, old, new)] in which a checkpoint's run differs from this one. Raises MismatchError unless that is allowed.

    `facts`, `per_epoch`: of this run, as in `to_payload`, the former with Run.cpu_amp. A checkpoint without facts
    about its images is older than they are.
    """
    facts, stored = facts or {}, payload.get("data", {})
    changes = difference(completed(payload["config"]), to_plain(config))
    changes = [(key, old, new) for key, old, new in changes if changes_results(key)]
    for key, old, new in changes:
        if key == "TRAIN.OPTIMIZER.NAME":
            raise MismatchError(f"{path}: the state of {old} cannot be continued by {new} ({key}); use another --tag")
    pipelines = stored.get("pipeline", "cpu"), facts.get("pipeline", "cpu")
    if len(set(pipelines)) > 1 and "DATA.PIPELINE" not in [key for key, *_ in changes]:
        changes.append(("DATA.PIPELINE", *pipelines))  # what 'auto' chose then and what it chooses here
    formats = payload.get("cpu_amp"), facts.get("cpu_amp")  # None: on another device, where it may be another one
    if None not in formats and len(set(formats)) > 1 and "AMP.DTYPE" not in [key for key, *_ in changes]:
        changes.append(("AMP.DTYPE", *formats))
    if payload["world_size"] != world.size:
        changes.append(("processes", payload["world_size"], world.size))
    changes += changed_images(stored.get("parts"), facts.get("parts"))
    if per_epoch and not changes and per_epoch != payload["steps_per_epoch"]:
        changes.append(("steps of an epoch", payload["steps_per_epoch"], per_epoch))
    if changes and not config.TRAIN.ALLOW_CHANGES:
        listed = ", ".join(f"{key} {old!r} -> {new!r}" for key, old, new in changes)
        raise MismatchError(
            f"{path}: made with another configuration: {listed}; use another --tag, or TRAIN.ALLOW_CHANGES True",
        )
    return changes


def changed_images(stored, here):
    """[(what, old, new)] in which two sets of images {part: {'count', 'digest'}} differ; none if one is not known."""
    if not (stored and here):
        return []
    changes = []
    for part in dict.fromkeys([*stored, *here]):
        old, new = stored.get(part, {}), here.get(part, {})
        if old.get("count") != new.get("count"):
            changes.append((f"{part} images", old.get("count"), new.get("count")))
        elif old != new:
            changes.append((f"names or labels of the {part} images", old["digest"][:8], new["digest"][:8]))
    return changes


def describe_change(key, old, new):
    """The line about a change that TRAIN.ALLOW_CHANGES allowed."""
    if key in ONLY_AT_THE_START:
        return f"{key} {new!r} instead of {old!r} has no effect: the weights are the checkpoint's"
    return f"{key} changed from {old!r} to {new!r} (TRAIN.ALLOW_CHANGES)"


def choose_checkpoint(folder, resume, auto_resume, warn):
    """(path, payload) to continue from, or None for a fresh start.

    The folder's own newest checkpoint continues the run. `resume` names a file to start from when the folder has none
    yet; afterwards the same command continues the folder's run. Raises MismatchError where that would lose a run.
    """
    own = checkpoint.find_newest(folder, warn) if folder.is_dir() else None
    if own and not (auto_resume or resume):
        raise OutputError(f"{folder.parent} already holds a run and TRAIN.AUTO_RESUME is False; use another --tag")
    if own is None and not resume:
        return None
    if resume and (own is None or checkpoint.same_file(own[0], resume)):
        own, resume = (resume, checkpoint.load(resume)), ""
    check_resumable(own[1], own[0])
    if not resume or Path(completed(own[1]["config"])["MODEL"]["RESUME"]).resolve() == Path(resume).resolve():
        return own
    raise MismatchError(
        f"--resume {resume}: {folder.parent} already holds a run; use another --tag",
    )


def choose_weights(payload, which, path):
    """The state dict of a checkpoint that TEST.WEIGHTS names: 'auto' is the EMA if there is one, as when training."""
    if which == "auto":
        which = "ema" if payload.get("ema") is not None else "model"
    if payload.get(which) is None:
        held = ", ".join(name for name in ("model", "ema") if payload.get(name) is not None)
        raise MismatchError(f"{path}: holds no {which!r} weights, only {held}; use --opts TEST.WEIGHTS {held}")
    return payload[which]


def load_for_evaluation(task, model, config, log):
    """Put the weights of MODEL.RESUME into `model`, all of them, or raise MismatchError."""
    path = config.MODEL.RESUME
    payload = checkpoint.load(path)
    if is_ours(payload):
        task.check_facts(payload.get("data", {}), path)
    if is_ours(payload) or payload.get("ema") is not None:
        payload = {"model": choose_weights(payload, config.TEST.WEIGHTS, path)}
    load_exact(model, read_weights(payload, path, log.info, own=model.state_dict()), path)
