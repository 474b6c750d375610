"""A whole small run rehearsed in a temporary folder: uninterrupted, and stopped by a signal and continued.

The real thing but for the data (noise), the number of steps and the size of the images. It shows whether a stopped run
continues as if it had not been, and which keys of the configuration a run asks for.
"""

import functools
import math
import tempfile

import torch
from yacs.config import CfgNode

from engine.build import build, build_state
from engine.resume import to_payload
from engine.run import Run
from engine.sync import Wishes
from engine.train import train_one_epoch
from logger import Logger
from tools.check.subject import failed, ok, warning
from tools.shared.steps import changed
from utils import checkpoint
from utils.errors import Interrupted, listing
from utils.run_folder import RunFolder

STEPS, STOP = 4, 2  # optimizer steps in all, and after how many the one run is stopped
BATCH = 2
SIGNAL = "SIGUSR1"
PARTS = ("model", "ema", "optimizer", "scaler")
COPIES = 3  # of the weights in a checkpoint: themselves and two averages of the optimizer
RATE = 20 * 2**20  # bytes of a checkpoint for each second that all checks have


def check_resume(subject):
    """Compare weights, averages and optimizer of the stopped and continued run with the uninterrupted one, by bits."""
    weights = sum(parameter.numel() for parameter in subject.hollow_model(subject.config).parameters())
    size = COPIES * 4 * weights
    if size > RATE * subject.seconds:
        text = f"not tried, a checkpoint of {weights / 1e6:.0f} M parameters has about {size / 2**30:.1f} GiB"
        return [warning(text, f"--seconds {math.ceil(size / RATE)} gives the time")]
    straight, _ = straight_run(subject)
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        config = shortened(subject, folder)
        run_until(config, subject.world, STOP)
        size = (RunFolder.of(config).checkpoints / checkpoint.LAST).stat().st_size
        resumed = run_until(config, subject.world)
    different = [place for part in PARTS for place in differences(straight[part], resumed[part], part)]
    same_place = straight["progress"]["step"] == resumed["progress"]["step"] == STEPS
    run = f"{STOP} steps, stopped, {STEPS - STOP} more, against {STEPS} at once, batches of {BATCH} noise images"
    run += subject.trial.remark
    if different or not same_place:
        advice = "something that training changes is neither in state_dict() nor a function of seed and step"
        return [failed(f"{len(different)} tensors differ, {listing(different, 4)}: {run}", advice)]
    count = sum(len(leaves(straight[part], part)) for part in PARTS)
    return [ok(f"{count} values and tensors bit for bit the same: {run}; checkpoint {size / 2**20:.1f} MiB")]


def leaves(tree, place):
    """{place: value} of everything in nested dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else None
    if items is None:
        return {place: tree}
    return {inner: leaf for key, value in items for inner, leaf in leaves(value, f"{place}.{key}").items()}


def differences(first, second, name):
    """Places where two nested structures are not bit for bit the same."""
    here, there = leaves(first, name), leaves(second, name)
    if here.keys() != there.keys():
        return [f"{name} (other entries)"]
    return [place for place, value in here.items() if not same(value, there[place])]


def same(first, second):
    """Equality of tensors or plain values."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    return first == second


@functools.lru_cache(maxsize=1)  # two checks look at it
def straight_run(subject):
    """(what a checkpoint of the uninterrupted run would hold after STEPS steps, the keys that it asked for)."""
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        recording = Recording(shortened(subject, folder))
        return run_until(recording, subject.world), recording.read


def shortened(subject, folder):
    """The configuration with noise for data, a few small batches and a folder of its own; the recipe stays."""
    accumulation = min(2, subject.config.TRAIN.ACCUMULATION_STEPS)
    images = BATCH * accumulation * STEPS
    return changed(
        subject.config,
        {
            "OUTPUT": folder,
            "COMPILE": False,
            "TENSORBOARD": False,
            "PRINT_FREQ": 10**9,
            "SAVE.STEPS": 0,
            "SAVE.MINUTES": 0.0,
            "MODEL.NUM_CLASSES": 0,
            "MODEL.PRETRAINED": "",
            "MODEL.RESUME": "",
            "DATA.DATASET": f"fake:train={images},val=2,classes=2",
            "DATA.IMG_SIZE": list(subject.trial.size),
            "DATA.BATCH_SIZE": BATCH,
            "DATA.NUM_WORKERS": 0,
            "DATA.PIXEL_CACHE": f"{folder}/pixels",
            "DATA.VAL_SPLIT": 0.0,
            "DATA.ZIP_MODE": False,
            "TRAIN.ACCUMULATION_STEPS": accumulation,
            "TRAIN.STEPS": 0,
            "TRAIN.WARMUP_STEPS": 0,
            "TEST.EPOCHS": 1,
            "TEST.STEPS": 0,
            "TRAIN.WARMUP_EPOCHS": 0.0,  # the first rates may be too small to change a weight
            "TRAIN.AUTO_RESUME": True,
        },
    )


def run_until(config, world, stop=None):
    """Start or continue a run to the end of its only epoch, or until a signal comes in step `stop`; its payload.

    A stopped run saves its checkpoint as runs do; one that reached the end writes nothing.
    """
    log = Logger(enabled=False)
    task, model = build(config, world, log)
    state = build_state(config, world, task, model)
    try:
        with StoppedRun(task, state, config, world, log) as session:
            session.stop_at = stop
            session.start("tools.check", "")
            train_one_epoch(state, task, task.data.train, 0, session.settings, session)
    except Interrupted:
        if session.stop.requested:  # a real signal: somebody wants the check itself to end
            raise KeyboardInterrupt from None
    return to_payload(state, config, task.facts(), world, session.between)


class StoppedRun(Run):
    """A run that is asked to stop after step `stop_at`."""

    stop_at = None

    def wishes(self):
        """Those of a run, and the signal."""
        return Wishes(SIGNAL) if self.state.progress.step + 1 == self.stop_at else super().wishes()


class Recording(CfgNode):
    """Reads like the CfgNode that it copies; `read` collects the full names of the values asked for.

    Asking a section for all its items asks for each of them (tasks.backbone reads MODEL.SHORTCUT so); copying the whole
    tree from its root, as a checkpoint does, asks for none.
    """

    def __init__(self, node, read=None, prefix=""):
        super().__init__()
        read = set() if read is None else read
        self.__dict__.update(read=read, node=node, prefix=prefix)
        for name, value in node.items():
            self[name] = Recording(value, read, f"{prefix}{name}.") if isinstance(value, CfgNode) else value

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if not isinstance(value, CfgNode):
            self.read.add(self.prefix + name)
        return value

    def get(self, name, default=None):
        """The value of `name`, or `default`."""
        if name not in self:
            return default
        return self[name]

    def items(self):
        """(name, value) pairs."""
        if self.prefix:
            self.read.update(self.prefix + name for name, value in self.node.items() if not isinstance(value, CfgNode))
        return self.node.items()
