"""A whole small run in a temporary folder: uninterrupted, and stopped by a signal and continued. The real thing but
for the data (noise), the number of steps and the size of the images."""

import tempfile
from functools import cached_property

from engine import train_one_epoch
from logger import Logger
from tools.check.recording import Recording
from tools.check.variants import changed
from utils import checkpoint, run, training_state
from utils.errors import Interrupted
from utils.run_folder import RunFolder
from utils.signals import STOP_SIGNALS

STEPS, STOP = 4, 2  # optimizer steps in all, and after how many the one run is stopped
BATCH = 2
SIGNAL = "SIGUSR1"


class Rehearsal:
    """The two runs of a configuration. Each is made when it is first asked for, its folder is gone afterwards."""

    def __init__(self, subject):
        self.subject = subject

    @cached_property
    def straight(self):
        """(what a checkpoint of the uninterrupted run would hold after STEPS steps, the keys that it asked for)."""
        with tempfile.TemporaryDirectory(prefix="check-") as folder:
            recording = Recording(shortened(self.subject, folder))
            return run_until(recording, self.subject.world), recording.read

    @cached_property
    def resumed(self):
        """(the same of the run that was stopped after STOP steps, bytes of the checkpoint it continued from)."""
        with tempfile.TemporaryDirectory(prefix="check-") as folder:
            config = shortened(self.subject, folder)
            run_until(config, self.subject.world, STOP)
            size = (RunFolder.of(config).checkpoints / checkpoint.LAST).stat().st_size
            return run_until(config, self.subject.world), size


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
            "TRAIN.WARMUP_EPOCHS": 0.0,  # the first rates may be too small to change a weight
            "TRAIN.AUTO_RESUME": True,
        },
    )


def run_until(config, world, stop=None):
    """Start or continue a run to the end of its only epoch, or until a signal comes in step `stop`; its payload.

    A stopped run saves its checkpoint as runs do; one that reached the end writes nothing.
    """
    log = Logger(enabled=False)
    data, model = run.build(config, world, log)
    state = training_state.build_state(config, world, model, data.mixing.criterion, data.train.batches_per_epoch)
    settings = training_state.build_settings(config, world.device)
    try:
        with run.Run(config, world, log, data, state) as session:
            session.start("tools.check", "")

            def wishes():
                flags = session.wishes()
                flags[list(STOP_SIGNALS).index(SIGNAL)] = float(state.progress.step + 1 == stop)
                return flags

            train_one_epoch(
                state, data.train, data.mixing, 0, settings=settings, world=world, log=log, wishes=wishes,
                epochs=config.TRAIN.EPOCHS, save=session.save_last,
            )  # fmt: skip
    except Interrupted:
        if session.stop.requested:  # a real signal: somebody wants the check itself to end
            raise KeyboardInterrupt from None
    return training_state.to_payload(state, config, data.info, world, session.per_epoch)
