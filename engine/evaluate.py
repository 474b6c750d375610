"""Exact evaluation, of the model in training and of a checkpoint (--eval)."""

import torch

from engine.build import build, build_settings, compiled
from engine.resume import load_for_evaluation
from engine.sync import Wishes, next_batch
from utils.errors import Interrupted
from utils.run_folder import RunFolder
from utils.signals import STOP_SIGNALS, StopSignals


@torch.inference_mode()
def evaluate(task, loader, model, settings, stop, runner=None):
    """The row of the task's meter over the whole set: every image once, whatever the number of ranks; see Task.meter.

    `runner`: the compiled form of `model`, called for batches of the first one's size; the last one may be smaller and
    is not worth a compilation of its own. `stop`: StopSignals.
    Raises Interrupted on all ranks together if any of them is asked to stop meanwhile.
    """
    model.eval()
    world = settings.world
    meter, whole, seen = task.meter(world.device), None, 0
    batches = iter(loader)
    for _ in range(loader.batches):
        name = Wishes.from_flags(world.sum(Wishes(stop.requested).flags())).stop
        if name:
            raise Interrupted(name, STOP_SIGNALS[name])
        try:
            batch = next_batch(batches)
        except StopIteration:
            continue  # this rank's share is a batch shorter than another's
        size = task.size(batch)
        whole, seen = whole or size, seen + size
        with settings.forward():
            meter.add(runner if runner is not None and size == whole else model, batch)
    (total,) = world.sum([seen])
    if total != loader.size:
        raise RuntimeError(f"evaluated {total:.0f} images of {loader.size}")
    return meter.merged(world)


def evaluate_checkpoint(config, world, log):
    """--eval --resume FILE: the exact figures of that file, and of no other."""
    task, model = build(config, world, log, training=False)
    world.together(lambda: load_for_evaluation(task, model, config, log))
    settings, runner = build_settings(config, world, model), compiled(model, config, world)
    with StopSignals() as stop:
        for name, loader in (("val", task.data.val), ("test", task.data.test)):
            if loader is not None:
                row = evaluate(task, loader, model, settings, stop, runner)
                log.heading(f"{name}: {task.describe(row)}")
                world.together(lambda name=name, row=row: keep_results(config, row, name, log))


def keep_results(config, row, name, log):
    """Write the results that a row brings, if any, into the run folder. Raises StorageError or OutputError."""
    results, folder = row.pop("results", None), RunFolder.of(config)
    if results is not None:
        folder.create()
        log.info(f"results: {folder.write_results(name, results)}")
