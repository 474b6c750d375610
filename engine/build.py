"""From a configuration to everything that trains or is evaluated."""

import warnings

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch.nn.parallel import DistributedDataParallel

import tasks
from engine import halving
from engine.freeze import freeze
from engine.sync import RunningStatistics, StepSync
from engine.train import StepSettings, TrainState, steps_per_epoch
from lr_scheduler import build_scheduler
from models.weights.pretrained import load_pretrained
from optimizer import build_optimizer
from utils.amp import amp_dtype, set_float32_products
from utils.errors import ConfigError
from utils.flops import count_macs
from utils.seed import seed_all


def build(config, world, log, training=True):
    """(task, model on its device), the same on all ranks, with what they are written to the log."""
    torch.use_deterministic_algorithms(config.DETERMINISTIC)
    set_float32_products(config.AMP.TF32, world.device)
    task = world.together(lambda: tasks.find(config.TASK)(config, world, log, training))
    seed_all(config.SEED, "weights")
    model = world.together(task.model)
    if training and config.MODEL.PRETRAINED:
        classes = task.facts().get("classes", ())
        world.together(lambda: load_pretrained(model, config.MODEL.PRETRAINED, log=log.info, classes=classes))
    for line in task.data.description:
        if training or line.startswith(("data:", "eval:")):
            log.info(line)
    if config.COMPILE:
        log.info("compiled: mode {}, {}".format(*compile_mode(config, world)))
    return task, model.to(world.device)


def build_settings(config, world, model=None):
    """`StepSettings` of a configuration; `model` is what AMP.DTYPE auto is decided by on CPUs."""

    def macs():
        return count_macs(model, config.DATA.IMG_SIZE)["total"] if model is not None else 0

    dtype = amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, world.device, macs)
    return StepSettings(
        world=world,
        seed=config.SEED,
        accumulation=config.TRAIN.ACCUMULATION_STEPS,
        clip_grad=config.TRAIN.CLIP_GRAD,
        amp_dtype=dtype,
        image_dtype=None if model is not None and wants_whole_images(model) else dtype,
        halve=config.TRAIN.HALVE_ON_OOM,
        max_skipped=config.TRAIN.MAX_SKIPPED_STEPS,
        print_freq=config.PRINT_FREQ,
    )


def wants_whole_images(model):
    """Whether something comes before the model's first product, so that images must not be rounded for it."""
    return any(getattr(module, "whole_images", False) for module in model.modules())


def build_state(config, world, task, model):
    """`TrainState` around `model`, which is already on its device."""
    sync_bn = uses_sync_bn(config.TRAIN.SYNC_BN, world)
    if sync_bn:
        model = convert_sync_batchnorm(model)  # timm's: torch's own takes the activation away from norms with one
    if config.TRAIN.HALVE_ON_OOM:
        halving.check(model)
    if config.TEST.WEIGHTS == "ema" and not config.TRAIN.EMA.ENABLE:
        raise ConfigError("TEST.WEIGHTS: 'ema', but TRAIN.EMA.ENABLE is False; use 'auto'")
    ema = None
    if config.TRAIN.EMA.ENABLE:
        ema = ModelEmaV3(model, decay=config.TRAIN.EMA.DECAY, use_warmup=config.TRAIN.EMA.WARMUP)
    frozen = world.together(lambda: freeze(model, config.TRAIN.FREEZE))
    statistics = RunningStatistics(model, without=frozen)
    learner = world.together(lambda: task.learner(model))
    runner = compiled(learner, config, world)
    if world.size > 1:
        runner = distribute(runner, world.device)
    per_epoch = steps_per_epoch(task.data.train.batches_per_epoch, config.TRAIN.ACCUMULATION_STEPS)
    schedule = build_scheduler(config, per_epoch, global_batch(config, world))
    fp16 = amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, world.device) is torch.float16
    evaluator = eval_model(model, ema, config.TEST.WEIGHTS)
    return TrainState(
        model=model,
        frozen=frozen,
        learner=learner,
        runner=runner,
        evaluator=evaluator,
        eval_runner=compiled(evaluator, config, world) if task.one_size else evaluator,
        optimizer=build_optimizer(config, model, schedule.base_lr, getattr(learner, "extra", None)),
        schedule=schedule,
        statistics=statistics,
        sync=StepSync(world, statistics, average_statistics=not sync_bn),
        scaler=torch.amp.GradScaler(world.device.type) if fp16 else None,
        ema=ema,
    )


def global_batch(config, world):
    """Images of one optimizer step over all ranks."""
    return config.DATA.BATCH_SIZE * world.size * config.TRAIN.ACCUMULATION_STEPS


def uses_sync_bn(setting, world):
    """SyncBatchNorm needs GPUs; elsewhere (and with 'off') running statistics are averaged after every step."""
    if setting == "on" and world.device.type != "cuda":
        raise ConfigError("TRAIN.SYNC_BN: 'on' needs GPUs; use 'auto', which averages running statistics on CPUs")
    return world.size > 1 and world.device.type == "cuda" and setting != "off"


def compiled(module, config, world):
    """`module` compiled for fixed shapes if COMPILE is on, else as it is."""
    return torch.compile(module, mode=compile_mode(config, world)[0], dynamic=False) if config.COMPILE else module


def compile_mode(config, world):
    """(mode of torch.compile, what it means in words): COMPILE_MODE, where 'auto' takes CUDA graphs if it can."""
    if config.COMPILE_MODE != "auto":
        return config.COMPILE_MODE, "as asked for"
    if world.device.type != "cuda":
        return "default", f"no CUDA graphs on {world.device.type}"
    if world.size > 1:
        return "default", "no CUDA graphs with several processes, unless COMPILE_MODE asks for them"
    if config.TRAIN.ACCUMULATION_STEPS > 1:
        return "default", "no CUDA graphs with TRAIN.ACCUMULATION_STEPS: a graph overwrites its gradients"
    return "reduce-overhead", "with CUDA graphs"


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
