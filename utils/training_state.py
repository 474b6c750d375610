"""Everything that training changes, built from the configuration, saved to and restored from a checkpoint."""

import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from config import completed, difference, to_plain
from engine import LossModel, Progress, StepSettings, TrainState, steps_per_epoch
from lr_scheduler import build_scheduler
from models import flex_windows
from models.pretrained import load_exact
from optimizer import build_optimizer
from utils import checkpoint
from utils.amp import amp_dtype
from utils.batchnorm import RunningStatistics
from utils.errors import ConfigError, MismatchError, OutputError
from utils.step_sync import StepSync

FORMAT = 1
# Keys that may differ when a run is resumed: they change where and how fast it runs, not what it computes.
FREE_KEYS = (
    "COMPILE",
    "COMPILE_MODE",
    "DATA.AUGMENT_IMPL",
    "DATA.CACHE_MODE",
    "DATA.DATA_PATH",
    "DATA.DEVICE_BUDGET",
    "DATA.DOWNLOAD",
    "DATA.NUM_WORKERS",
    "DATA.PIN_MEMORY",
    "DATA.PIXEL_CACHE",
    "DATA.WORKER_TIMEOUT",
    "DEVICE",
    "DIST_TIMEOUT",
    "MODEL.ARGS.ATTENTION",
    "MODEL.NAME",
    "MODEL.RESUME",
    "MODEL.SHORTCUT.IMPL",
    "OUTPUT",
    "PRINT_FREQ",
    "SAVE.EPOCHS",
    "SAVE.KEEP",
    "SAVE.MINUTES",
    "SAVE.STEPS",
    "TAG",
    "TENSORBOARD",
    "TRAIN.ALLOW_CHANGES",
    "TRAIN.AUTO_RESUME",
)


def build_settings(config, device):
    """`StepSettings` of a configuration."""
    return StepSettings(
        seed=config.SEED,
        accumulation=config.TRAIN.ACCUMULATION_STEPS,
        clip_grad=config.TRAIN.CLIP_GRAD,
        amp_dtype=amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, device),
        max_skipped=config.TRAIN.MAX_SKIPPED_STEPS,
        print_freq=config.PRINT_FREQ,
    )


def global_batch(config, world):
    """Images of one optimizer step over all ranks."""
    return config.DATA.BATCH_SIZE * world.size * config.TRAIN.ACCUMULATION_STEPS


def uses_sync_bn(setting, world):
    """SyncBatchNorm needs GPUs; elsewhere (and with 'off') running statistics are averaged after every step."""
    if setting == "on" and world.device.type != "cuda":
        raise ConfigError("TRAIN.SYNC_BN: 'on' needs GPUs; use 'auto', which averages running statistics on CPUs")
    return world.size > 1 and world.device.type == "cuda" and setting != "off"


def check_attention(model, config, device):
    """Raise ConfigError where a model built for FlexAttention would be trained without it, or has to be exact."""
    if not flex_windows.used_in(model):
        return
    if not (config.COMPILE and device.type == "cuda"):
        raise ConfigError("MODEL.ARGS.ATTENTION 'flex': trains on GPUs with --compile only; use 'plain'")
    if config.DETERMINISTIC:
        raise ConfigError("MODEL.ARGS.ATTENTION 'flex': adds up its bias's gradient in any order; use 'plain'")


def compiled(module, config):
    """`module` compiled for fixed shapes if COMPILE is on, else as it is."""
    return torch.compile(module, mode=config.COMPILE_MODE, dynamic=False) if config.COMPILE else module


def build_state(config, world, model, criterion, batches_per_epoch):
    """`TrainState` around `model`, which is already on its device, and the loss that fits its targets."""
    check_attention(model, config, world.device)
    sync_bn = uses_sync_bn(config.TRAIN.SYNC_BN, world)
    if sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.TEST.WEIGHTS == "ema" and not config.TRAIN.EMA.ENABLE:
        raise ConfigError("TEST.WEIGHTS: 'ema', but TRAIN.EMA.ENABLE is False; use 'auto'")
    ema = None
    if config.TRAIN.EMA.ENABLE:
        ema = ModelEmaV3(model, decay=config.TRAIN.EMA.DECAY, use_warmup=config.TRAIN.EMA.WARMUP)
    statistics = RunningStatistics(model)
    runner = compiled(LossModel(model, criterion), config)
    if world.size > 1:
        runner = distribute(runner, world.device)
    per_epoch = steps_per_epoch(batches_per_epoch, config.TRAIN.ACCUMULATION_STEPS)
    schedule = build_scheduler(config, per_epoch, global_batch(config, world))
    fp16 = amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, world.device) is torch.float16
    evaluator = eval_model(model, ema, config.TEST.WEIGHTS)
    return TrainState(
        model=model,
        runner=runner,
        evaluator=evaluator,
        eval_runner=compiled(evaluator, config),
        optimizer=build_optimizer(config, model, schedule.base_lr),
        schedule=schedule,
        statistics=statistics,
        sync=StepSync(world, statistics, average_statistics=not sync_bn),
        scaler=torch.amp.GradScaler(world.device.type) if fp16 else None,
        ema=ema,
    )


def distribute(runner, device):
    """DistributedDataParallel around `runner`; StepSync takes care of the buffers, so it does not broadcast them."""
    # Said of (C, 1, k, k) weights, whose memory is the same in both layouts.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # The new name of the keyword is not known to torch 2.11.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(runner, device_ids=ids, broadcast_buffers=False)


def eval_model(model, ema, weights):
    """The module whose figures are reported: the EMA if there is one, unless `weights` says 'model'."""
    return ema.module if ema is not None and weights != "model" else model


def to_payload(state, config, info, world, per_epoch):
    """The checkpoint's content: tensors and plain Python values only."""
    return {
        "format": FORMAT,
        "config": to_plain(config),
        "data": {
            "classes": list(info.class_names),
            "mean": list(info.mean),
            "std": list(info.std),
            "pipeline": info.pipeline,
        },
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
    if payload["steps_per_epoch"] != per_epoch:
        rescale_position(state.progress, payload["steps_per_epoch"], per_epoch, path)


def rescale_position(progress, old_per_epoch, new_per_epoch, path):
    """Re-express the position for another global batch (TRAIN.ALLOW_CHANGES), which only works between two epochs."""
    if progress.step % old_per_epoch:
        raise MismatchError(f"{path}: in the middle of an epoch, which another global batch size cannot continue")
    progress.step = progress.step // old_per_epoch * new_per_epoch


def check_same_run(config, world, payload, path, pipeline="cpu"):
    """Raise MismatchError listing the keys in which a checkpoint's configuration differs from `config`."""
    stored = completed(payload["config"])
    changes = [entry for entry in difference(stored, to_plain(config)) if entry[0] not in FREE_KEYS]
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
