"""What is measured: training steps and data paths, ours in their stages, the original code's way, and timm's.

Every step does the same work: mixup or CutMix, forward, soft-target loss, backward, gradient clipping, AdamW. `batches`
is an endless iterator of a training loader's batches; `pool` makes one of random ones, so that no step sees the one
before. The other files of the benchmarks know nothing of the engine.
"""

import itertools
from types import SimpleNamespace

import timm
import torch
from timm.data import Mixup, create_loader
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.loss import SoftTargetCrossEntropy
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from config import load_config
from data import HostBatch, worker_count
from data.transforms import as_size, guard_posterize
from engine.throughput import endless
from optimizer import parameter_groups
from tasks.backbone import build_model
from tasks.classification.data import build_data, mixing_of
from tools.shared.steps import GivenTask, Steps
from utils.amp import amp_dtype, set_float32_products
from utils.distributed import World
from utils.seed import seed_all

CPU_DATA = ("DATA.PIPELINE", "cpu")
DEVICE_DATA = ("DATA.PIPELINE", "device", "DATA.AUGMENT_IMPL", "torch")
TRITON_DATA = ("DATA.PIPELINE", "device", "DATA.AUGMENT_IMPL", "triton")
PLAIN = ("MODEL.SHORTCUT.KERNELS", "[]")
UNFUSED, FUSED = ("MODEL.SHORTCUT.IMPL", "torch"), ("MODEL.SHORTCUT.IMPL", "triton")
COMPILED = ("COMPILE", "True", "COMPILE_MODE", "default")
GRAPHS = ("COMPILE", "True", "COMPILE_MODE", "reduce-overhead")
BF16_RESIDUAL = ("AMP.RESIDUAL", "bfloat16")
TIMM = {  # MODEL.TYPE: the same model of timm's
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
}
POOL = 8  # random batches
STEPS_PER_EPOCH = 1000  # for the schedule, which costs the same wherever it stands
WORKERS = worker_count(-1, 1)
AHEAD = 2 * WORKERS + 1  # batches that torch's and timm's loaders prepare: they tell nothing of a loader's speed


def configuration(path, batch, *options):
    """The frozen configuration of a file with a batch size and `--opts`."""
    return load_config(path, ["DATA.BATCH_SIZE", str(batch), *options])[0]


def pool(config, classes, device):
    """An endless iterator over POOL random batches on the device, each time a copy: timm mixes in place."""
    generator, batch = torch.Generator(device).manual_seed(0), config.DATA.BATCH_SIZE
    batches = [
        HostBatch(
            torch.randn(batch, 3, *as_size(config.DATA.IMG_SIZE), device=device, generator=generator),
            torch.randint(classes, (batch,), device=device, generator=generator),
        )
        for _ in range(POOL)
    ]
    return (HostBatch(batch.images.clone(), batch.labels) for batch in itertools.cycle(batches))


def data_of(config, device):
    """The data of a configuration: `train` and `val` loaders, `info` and `mixing`."""
    return build_data(config, World(device), lambda line: None)


def finished(batch, device):
    """Images (B, 3, H, W) and labels (B,) of a batch on the device, not mixed."""
    return batch.finish(device=device), batch.labels.to(device, non_blocking=True)


def our_images(config, device):
    """Endless images (B, 3, H, W) of the data path on the device, not mixed."""
    return (finished(batch, device)[0] for batch in endless(data_of(config, device).train))


def our_data_path(config, device):
    """step() of the data path: images and targets of the next batch on the device, mixed."""
    data, calls = data_of(config, device), itertools.count()
    batches = endless(data.train)
    return lambda: data.mixing(next(batches), (config.SEED, next(calls)), device)


class ForTimm(Dataset):
    """Our images as timm's datasets are: its loader sets `transform`."""

    def __init__(self, images):
        self.images, self.transform = images, None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        return self.transform(image), label


def timm_loader(config, data, device):
    """timm's own loader with the configuration's recipe, as timm's train.py builds it.

    Only its posterize is ours: with Pillow 13 timm's raises an error within a few batches.
    """
    loader = create_loader(
        ForTimm(data.train.samples.images),
        input_size=(3, *as_size(config.DATA.IMG_SIZE)),
        batch_size=config.DATA.BATCH_SIZE,
        is_training=True,
        **{key.lower(): config.AUG[key] for key in ("SCALE", "RATIO", "HFLIP", "VFLIP", "COLOR_JITTER")},
        auto_augment=config.AUG.AUTO_AUGMENT or None,
        re_prob=config.AUG.REPROB,
        re_mode=config.AUG.REMODE,
        interpolation=config.DATA.INTERPOLATION,
        mean=data.info.mean,
        std=data.info.std,
        num_workers=WORKERS,
        device=device,
        use_prefetcher=device.type == "cuda",
        persistent_workers=True,
    )
    for step in loader.dataset.transform.transforms:
        if isinstance(step, (RandAugment, AutoAugment, AugMixAugment)):
            guard_posterize(step)
    return loader


def timm_batches(config, device):
    """Endless batches of timm's own loader."""
    loader = timm_loader(config, data_of(config, device), device)
    while True:
        for images, labels in loader:
            yield HostBatch(images, labels)


def our_step(config, classes, device, batches):
    """step() of this project as its configuration says, through the engine's own train_step."""
    seed_all(config.SEED, "weights")
    set_float32_products(config.AMP.TF32, device)
    task = GivenTask(mixing_of(config, classes), SimpleNamespace(batches_per_epoch=STEPS_PER_EPOCH))
    steps = Steps(config, World(device), task, build_model(config, classes).to(device))
    return lambda: steps.take([next(batches)])


def original_step(config, classes, device, batches):
    """step() as the original code does it: float16 with a scaler, attention written out, and a wait in every step."""
    seed_all(config.SEED, "weights")
    model = build_model(config, classes).to(device).train()
    mixing = mixing_of(config, classes)
    groups = parameter_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.NO_WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, lr=config.TRAIN.BASE_LR)
    half = torch.float16 if device.type == "cuda" else None
    scaler = torch.amp.GradScaler(device.type, enabled=half is not None)
    calls = itertools.count()

    def step():
        images, targets = mixing(next(batches), (0, next(calls)), device)
        with torch.autocast(device.type, half, enabled=half is not None), sdpa_kernel([SDPBackend.MATH]):
            loss = mixing.criterion(model(images), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD)
        scaler.step(optimizer)
        scaler.update()
        return loss.item(), norm.item()  # read by its meters

    return step


def timm_step(config, classes, device, batches, compiled):
    """step() of timm's model as its train.py does it: autocast, Mixup, clipping, fused AdamW on CUDA."""
    seed_all(config.SEED, "weights")
    set_float32_products(config.AMP.TF32, device)
    sizes = {key.lower(): value for key, value in config.MODEL.ARGS.items()}
    model = timm.create_model(TIMM[config.MODEL.TYPE], num_classes=classes, img_size=config.DATA.IMG_SIZE, **sizes)
    model = model.to(device).train()
    runner = torch.compile(model, dynamic=False) if compiled else model
    mixup = Mixup(
        config.AUG.MIXUP, config.AUG.CUTMIX, label_smoothing=config.MODEL.LABEL_SMOOTHING, num_classes=classes
    )
    criterion = SoftTargetCrossEntropy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.TRAIN.BASE_LR, fused=device.type == "cuda")
    dtype = amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, device)

    def step():
        images, targets = mixup(*finished(next(batches), device))
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = criterion(runner(images), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD)
        optimizer.step()

    return step
