"""What a checkpoint holds, which one continues a run, and whether it may."""

from dataclasses import asdict
from pathlib import Path

from config import changes_results, completed, difference, to_plain
from engine.train import Progress
from models.weights.pretrained import load_exact, read_weights
from utils import checkpoint
from utils.errors import MismatchError, OutputError

FORMAT = 1


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
    }


def restore(state, payload, path, per_epoch):
    """Put a checkpoint's content into `state`. Raises MismatchError naming what does not fit."""
    if "optimizer" not in payload or "progress" not in payload:
        raise MismatchError(f"{path}: holds weights only, nothing to resume; use --pretrained to start from them")
    load_exact(state.model, payload["model"], path)
    if state.ema:
        load_exact(state.ema.module, payload["ema"] or payload["model"], path)
    state.optimizer.load_state_dict(payload["optimizer"])
    if state.scaler and payload["scaler"]:
        state.scaler.load_state_dict(payload["scaler"])
    state.progress = Progress(**payload["progress"])
    if payload["steps_per_epoch"] != per_epoch:  # another global batch (TRAIN.ALLOW_CHANGES)
        epochs, inside = divmod(state.progress.step, payload["steps_per_epoch"])
        if inside:
            raise MismatchError(f"{path}: in the middle of an epoch, which another global batch size cannot continue")
        state.progress.step = epochs * per_epoch


def check_same_run(config, world, payload, path, pipeline="cpu"):
    """[(key, old, new)] in which a checkpoint's run differs from this one. Raises MismatchError unless that is allowed.

    `pipeline`: the data path of this run.
    """
    changes = difference(completed(payload["config"]), to_plain(config))
    changes = [(key, old, new) for key, old, new in changes if changes_results(key)]
    trained_by = payload.get("data", {}).get("pipeline", "cpu")
    if trained_by != pipeline and "DATA.PIPELINE" not in [key for key, *_ in changes]:
        changes.append(("DATA.PIPELINE", trained_by, pipeline))  # what 'auto' chose then and what it chooses here
    if payload["world_size"] != world.size:
        changes.append(("processes", payload["world_size"], world.size))
    if changes and not config.TRAIN.ALLOW_CHANGES:
        listed = ", ".join(f"{key} {old!r} -> {new!r}" for key, old, new in changes)
        raise MismatchError(
            f"{path}: made with another configuration: {listed}; use another --tag, or TRAIN.ALLOW_CHANGES True",
        )
    return changes


def choose_checkpoint(folder, resume, auto_resume, warn):
    """(path, payload) to continue from, or None for a fresh start.

    The folder's own newest checkpoint continues the run. `resume` names a file to start from when the folder has none
    yet; afterwards the same command continues the folder's run. Raises MismatchError where that would lose a run.
    """
    own = checkpoint.find_newest(folder, warn) if folder.is_dir() else None
    if own and not (auto_resume or resume):
        raise OutputError(f"{folder.parent} already holds a run and TRAIN.AUTO_RESUME is False; use another --tag")
    if not resume:
        return own
    if own is None or checkpoint.same_file(own[0], resume):
        return resume, checkpoint.load(resume)
    if Path(own[1]["config"]["MODEL"]["RESUME"]).resolve() == Path(resume).resolve():
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
    task.check_facts(payload.get("data", {}), path)
    if "optimizer" in payload or "ema" in payload:  # one of ours
        payload = {"model": choose_weights(payload, config.TEST.WEIGHTS, path)}
    load_exact(model, read_weights(payload, path, log.info, own=model.state_dict()), path)
