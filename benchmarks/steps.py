"""Whole training steps on any source of batches: ours in its stages, the original code's way, and timm's.

Every step does the same work: mixup or CutMix, forward, soft-target loss, backward, gradient clipping, AdamW. `batches`
is an endless iterator of (images, labels); `pool` makes one of random batches, so that no step sees the one before.
"""

import itertools

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch.nn.attention import SDPBackend, sdpa_kernel

from config import load_config
from data.build import mixing_of
from engine import autocast, train_step
from models.build import build_model
from optimizer import parameter_groups
from utils import training_state
from utils.amp import amp_dtype, set_float32_products
from utils.distributed import World
from utils.seed import seed_all
from utils.signals import STOP_SIGNALS

POOL = 8  # random batches
NO_WISHES = [0.0] * (len(STOP_SIGNALS) + 1)
STEPS_PER_EPOCH = 1000  # for the schedule, which costs the same wherever it stands


def pool(batch, img_size, classes, device):
    """An endless iterator over POOL random batches: images (B, 3, H, W) and labels (B,)."""
    generator = torch.Generator(device).manual_seed(0)
    batches = [
        (
            torch.randn(batch, 3, *img_size, device=device, generator=generator),
            torch.randint(classes, (batch,), device=device, generator=generator),
        )
        for _ in range(POOL)
    ]
    return itertools.cycle(batches)


def configuration(path, batch, *options):
    """The frozen configuration of a file with a batch size and `--opts`."""
    return load_config(path, ["DATA.BATCH_SIZE", str(batch), *options])[0]


def our_step(config, classes, device, batches):
    """step() of this project as its configuration says, through the engine's own train_step."""
    world = World(device)
    seed_all(config.SEED, "weights")
    set_float32_products(config.AMP.TF32, device)
    model = build_model(config, classes).to(device)
    mixing = mixing_of(config, classes)
    state = training_state.build_state(config, world, model, mixing.criterion, STEPS_PER_EPOCH)
    settings = training_state.build_settings(config, device)
    state.runner.train()

    def step():
        train_step(state, settings, mixing, world, [next(batches)], lambda: NO_WISHES)
        state.progress.step += 1

    return step


def original_step(config, classes, device, batches):
    """step() as the original code does it: float16 with a scaler, attention written out, and a wait in every step."""
    world = World(device)
    seed_all(config.SEED, "weights")
    model = build_model(config, classes).to(device).train()
    mixing = mixing_of(config, classes)
    groups = parameter_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.NO_WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, lr=config.TRAIN.BASE_LR)
    half = torch.float16 if device.type == "cuda" else None
    scaler = torch.amp.GradScaler(device.type, enabled=half is not None)
    calls = itertools.count()

    def step():
        images, targets = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        images, targets = mixing(images, targets, key=(0, next(calls)))
        with autocast(world.device, half), sdpa_kernel([SDPBackend.MATH]):
            loss = mixing.criterion(model(images), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD)
        scaler.step(optimizer)
        scaler.update()
        return loss.item(), norm.item()  # read by its meters

    return step


def timm_step(name, config, classes, device, batches, *, compiled, **sizes):
    """step() of a timm model as timm's train.py does it: autocast, Mixup, clipping, fused AdamW on CUDA.

    sizes: keywords of the timm model, such as patch_size.
    """
    seed_all(config.SEED, "weights")
    set_float32_products(config.AMP.TF32, device)
    model = timm.create_model(name, num_classes=classes, img_size=config.DATA.IMG_SIZE, **sizes).to(device).train()
    runner = torch.compile(model, dynamic=False) if compiled else model
    mixup = Mixup(
        config.AUG.MIXUP, config.AUG.CUTMIX, label_smoothing=config.MODEL.LABEL_SMOOTHING, num_classes=classes
    )
    criterion = SoftTargetCrossEntropy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.TRAIN.BASE_LR, fused=device.type == "cuda")
    dtype = amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, device)

    def step():
        images, targets = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        images, targets = mixup(images, targets)
        with autocast(device, dtype):
            loss = criterion(runner(images), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD)
        optimizer.step()

    return step
