"""Images per second of training on real images, everything included: decoding, augmentation, mixing, step.

python -m benchmarks.end_to_end --data-path DIR [--cfg FILE] [--batch 128 512] [--device cuda] [--output DIR]
    [--opts KEY VALUE ...]

Compares, interleaved in one process: the original code's way (PIL in worker processes, float16 with a scaler, a wait in
every step), timm's ViT-Tiny compiled behind timm's own loader, and ours step by step: PIL workers, the data on the
device (plain PyTorch, then Triton), the fused shortcut with CUDA graphs. Beside each stands the share of the time in
which the host waited for data and, on a GPU, the share in which the GPU had nothing to do.
"""

import sys
import time
from dataclasses import asdict, dataclass

import torch
from timm.data import create_loader
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset

from benchmarks.command import add_batches, add_data, cfg_of, device_of, exit_code, parser, result_name
from benchmarks.model_step import BATCH, COMPILED, FUSED, GRAPHS, PACE, TIMM, UNFUSED, lower
from benchmarks.protocol import AGAIN, interleaved, ratio_text, spread
from benchmarks.record import machine, write
from benchmarks.steps import configuration, original_step, our_step, timm_step
from data.build import build_data, worker_count
from data.randaugment import guard_posterize
from utils.throughput import endless, endless_to_mix, synchronize

CPU_DATA, DEVICE_DATA = ("DATA.PIPELINE", "cpu"), ("DATA.PIPELINE", "device")
TORCH, TRITON = ("DATA.AUGMENT_IMPL", "torch"), ("DATA.AUGMENT_IMPL", "triton")
OURS = {
    "ours, PIL workers, eager": (*CPU_DATA, *UNFUSED),
    "ours, PIL workers, compiled": (*CPU_DATA, *UNFUSED, *COMPILED),
    "ours, data on the device, eager": (*DEVICE_DATA, *TORCH, *UNFUSED),
    "ours, data on the device, compiled": (*DEVICE_DATA, *TORCH, *UNFUSED, *COMPILED),
    "ours, Triton augmentation, compiled": (*DEVICE_DATA, *TRITON, *UNFUSED, *COMPILED),
    "ours, Triton augmentation, fused shortcut, CUDA graphs": (*DEVICE_DATA, *TRITON, *FUSED, *GRAPHS),
}
GPU_ONLY = ("Triton", "fused", "CUDA graphs")
PREFETCH = 2  # batches that a worker prepares ahead, of torch's loaders and timm's


@dataclass
class Waiting:
    """An iterator that adds up the seconds its reader waits for it."""

    batches: object
    seconds: float = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch


def quiet(_line):
    """A log that nobody reads."""


class ForTimm(Dataset):
    """Our images as timm's datasets are: its loader sets `transform`."""

    def __init__(self, images):
        self.images, self.transform = images, None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        return self.transform(image), label


def timm_batches(config, data, device):
    """Endless batches of timm's own loader."""
    loader = timm_loader(config, data, device)
    while True:
        yield from loader


def timm_loader(config, data, device):
    """timm's own loader with the configuration's recipe, as timm's train.py builds it.

    Only its posterize is ours: with Pillow 13 timm's raises an error within a few batches.
    """
    size = config.DATA.IMG_SIZE
    loader = create_loader(
        ForTimm(data.train.samples.images),
        input_size=(3, size, size) if isinstance(size, int) else (3, *size),
        batch_size=config.DATA.BATCH_SIZE,
        is_training=True,
        scale=tuple(config.AUG.SCALE),
        ratio=tuple(config.AUG.RATIO),
        hflip=config.AUG.HFLIP,
        vflip=config.AUG.VFLIP,
        color_jitter=config.AUG.COLOR_JITTER,
        auto_augment=config.AUG.AUTO_AUGMENT or None,
        re_prob=config.AUG.REPROB,
        re_mode=config.AUG.REMODE,
        interpolation=config.DATA.INTERPOLATION,
        mean=data.info.mean,
        std=data.info.std,
        num_workers=worker_count(-1, 1),
        device=device,
        use_prefetcher=device.type == "cuda",
        persistent_workers=True,
    )
    for step in loader.dataset.transform.transforms:
        if isinstance(step, (RandAugment, AutoAugment, AugMixAugment)):
            guard_posterize(step)
    return loader


def cases(cfg, batch, device, options, compiled=True):
    """{name: (step(), Waiting)} of everything that runs on `device`."""
    config = configuration(cfg, batch, *CPU_DATA, *options)
    data = build_data(config, device=device, log=quiet)
    classes = data.info.num_classes
    found = {}
    unfused = configuration(cfg, batch, *CPU_DATA, *UNFUSED, *options)
    waiting = Waiting(endless(data.train))
    found["original's way"] = original_step(unfused, classes, device, waiting), waiting
    name = TIMM.get(config.MODEL.TYPE)
    if name:
        waiting = Waiting(timm_batches(config, data, device))
        step = timm_step(name, config, classes, device, waiting, compiled=compiled, **lower(config.MODEL.ARGS))
        found[f"timm {name} with its loader, {'compiled' if compiled else 'eager'}"] = step, waiting
    for title, ours in OURS.items():
        wanted = compiled or "True" not in ours
        if wanted and (device.type == "cuda" or not any(part in title for part in GPU_ONLY)):
            config = configuration(cfg, batch, *ours, *options)
            waiting = Waiting(endless_to_mix(build_data(config, device=device, log=quiet).train))
            found[title] = our_step(config, classes, device, waiting), waiting
    return found


def batches_ahead():
    """How many batches may be ready before the first one is asked for: they tell nothing of a loader's speed."""
    return PREFETCH * worker_count(-1, 1) + 1


def waiting_share(step, waiting, steps, device):
    """Share of the time of `steps` steps in which the host waited for data, and nothing was ready before."""
    for _ in range(batches_ahead()):
        step()
    synchronize(device)
    start, before = time.perf_counter(), waiting.seconds
    for _ in range(steps):
        step()
    synchronize(device)
    return (waiting.seconds - before) / (time.perf_counter() - start)


def idle_share(step, steps, device):
    """Share of the time from the first to the last kernel of `steps` steps in which none ran; None on a CPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(steps):
            step()
        synchronize(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - spans[0][0])


def measure(cfg, batch, device, pace, options, compiled=True):
    """{name: figures} at one batch size: the Timing, the share of waiting and the share of an idle GPU."""
    found = cases(cfg, batch, device, options, compiled)
    steps = {name: step for name, (step, _) in found.items()}
    timings = interleaved(steps, batch, device, settle=batches_ahead(), **pace)
    results = {name: asdict(timing) for name, timing in timings.items()}
    for name, (step, waiting) in found.items():
        results[name]["waiting"] = waiting_share(step, waiting, pace["steps"], device)
        results[name]["idle"] = idle_share(step, 10, device)
    return timings, results


def percent(share):
    """`3.1 %`, or a dash for what was not measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def rows_of(batch, timings, results):
    """Rows of the table; ratios are to the original code's way, which comes first."""
    baseline, uncertainty = next(iter(timings.values())), spread(timings)
    rows = []
    for name, timing in timings.items():
        again = name.endswith(AGAIN)
        ratio = f"(±{100 * uncertainty:.1f} %)" if again else ratio_text(timing, baseline, uncertainty)
        shares = [percent(results[name].get(key)) for key in ("waiting", "idle")]
        rows.append([batch, name, f"{timing.median:.1f}", f"{timing.low:.1f} to {timing.high:.1f}", ratio, *shares])
    return rows


def run(argv):
    """Measure and write results/end_to_end_<device>.{json,md}."""
    arguments = parser("end_to_end", __doc__)
    add_data(arguments)
    add_batches(arguments)
    options = arguments.parse_args(argv)
    device = device_of(options)
    cfg, extra = cfg_of(options, device), ["DATA.DATA_PATH", options.data_path, *options.opts]
    results, rows = {}, []
    for batch in options.batch or BATCH[device.type]:
        timings, figures = measure(cfg, batch, device, PACE[device.type], extra, not options.eager)
        results[str(batch)] = figures
        rows += rows_of(batch, timings, figures)
    header = ["batch", "case", "img/s, median", "range", "times the first", "waiting for data", "GPU idle"]
    title = f"Training end to end: {cfg} {' '.join(options.opts)}".strip()
    content = {"cfg": cfg, "opts": options.opts, "results": results}
    name = result_name("end_to_end", device, cfg)
    write(name, title, machine(device), content, header, rows, options.output)


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
