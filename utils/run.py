"""One start of a training run: builds it, continues it, keeps its folder true, and ends it with the right exit code."""

import time

import torch

from engine import evaluate, steps_per_epoch
from models.pretrained import load_exact, load_pretrained
from optimizer import describe_groups
from utils import checkpoint, training_state
from utils.amp import amp_dtype, set_float32_products
from utils.errors import Interrupted, RunError
from utils.evaluation import check_classes, choose_weights
from utils.failures import explain
from utils.flops import count_macs
from utils.run_folder import RunFolder
from utils.seed import seed_all
from utils.signals import StopSignals
from utils.summary import best_row, counts, draw_curves, environment, summary


def build(config, world, log, training=True):
    """(data, model on its device), the same on all ranks, with what they are written to the log."""
    from data import build_data
    from models.build import build_model

    torch.use_deterministic_algorithms(config.DETERMINISTIC)
    set_float32_products(config.AMP.TF32, world.device)
    data = world.together(
        lambda: build_data(
            config, world.rank, world.size, world.device, log.info, train=training, barrier=world.barrier
        )
    )
    seed_all(config.SEED, "weights")
    model = world.together(lambda: build_model(config, data.info.num_classes, data.info.in_chans))
    if training and config.MODEL.PRETRAINED:
        world.together(lambda: load_pretrained(model, config.MODEL.PRETRAINED, log=log.info))
    for line in data.description:
        if training or line.startswith(("data:", "eval:")):
            log.info(line)
    return data, model.to(world.device)


class Run:
    """Context of one start. Rank 0 holds the folder's lock and writes; the other ranks only follow."""

    def __init__(self, config, world, log, data, state):
        self.config, self.world, self.log, self.data, self.state = config, world, log, data, state
        self.folder = RunFolder.of(config)
        self.stop = StopSignals()
        self.per_epoch = steps_per_epoch(data.train.batches_per_epoch, config.TRAIN.ACCUMULATION_STEPS)
        self.saved_step = None
        self.amp_dtype = amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, world.device)
        self.params = sum(parameter.numel() for parameter in state.model.parameters())
        self.macs = count_macs(state.model, config.DATA.IMG_SIZE)["total"]
        self.clock = self.saved_at = time.perf_counter()

    def __enter__(self):
        self.stop.__enter__()
        return self

    def __exit__(self, _kind, error, _traceback):
        try:
            if isinstance(error, Interrupted):
                self.save_last()
                self.log.heading(f"{error} at step {self.state.progress.step}; the same command continues")
            if error is not None:
                error = explain(error, self.world) or error
                self.log.record(error.line() if isinstance(error, RunError) else repr(error))
                code, again = getattr(error, "exit_code", 1), getattr(error, "retryable", False)
                self.folder.write_exit(getattr(error, "label", "crash"), code, again)
        finally:
            self.log.close()
            self.folder.close()
            self.stop.__exit__()

    def start(self, command, config_text):
        """Restore the newest checkpoint, open the folder and describe the run; True if there is nothing left to do."""
        self.command = command
        path = self.world.gather(self.world.together(self._choose))[0]
        changes = self.world.together(lambda: self._restore(path)) if path else []
        if self.is_complete():
            self.log.heading(
                f"already complete: {self.folder.path}, best {counts(best_row(self.state.progress.history))}"
            )
            return True
        self.world.together(lambda: self.world.is_main and self.folder.open())
        if self.world.is_main:
            self._prepare(command, config_text)
        self._describe(path, changes)
        self.clock = self.saved_at = time.perf_counter()
        return False

    def _choose(self):
        """Path of the checkpoint to continue from, '' for a fresh start; rank 0 decides."""
        if not self.world.is_main:
            return ""
        train, resume = self.config.TRAIN, self.config.MODEL.RESUME
        found = training_state.choose_checkpoint(self.folder.checkpoints, resume, train.AUTO_RESUME, self.log.warning)
        return str(found[0]) if found else ""

    def _restore(self, path):
        payload = checkpoint.load(path)
        changes = training_state.check_same_run(self.config, self.world, payload, path, self.data.info.pipeline)
        check_classes(payload, self.data.info, path)
        training_state.restore(self.state, payload, path, self.per_epoch)
        self.saved_step = self.state.progress.step
        return changes

    def is_complete(self):
        """Whether all epochs are trained and rank 0 finds the summary written."""
        done = len(self.state.progress.history) >= self.config.TRAIN.EPOCHS
        return self.world.gather(done and (self.folder.path / "summary.json").exists())[0]

    def _prepare(self, command, config_text):
        history = self.state.progress.history
        checkpoint.remove_leftovers(self.folder.checkpoints)
        (self.folder.path / "summary.json").unlink(missing_ok=True)  # of a shorter run that is being extended
        self.folder.write("config.yaml", config_text)
        self.folder.write_json("environment.json", environment(self.world))
        self.folder.note_command(command)
        self.folder.write_metrics(history)
        self.log.attach(self.folder.path, len(history), self.config.TENSORBOARD)

    def _describe(self, path, changes):
        """What this run is, at its start."""
        config, state, log = self.config, self.state, self.log
        images = training_state.global_batch(config, self.world)
        log.info(
            f"{self.world.size} process(es) on {self.world.device}, amp {self.amp_dtype or 'off'}, "
            f"global batch {images} ({config.DATA.BATCH_SIZE} x {self.world.size} processes "
            f"x {config.TRAIN.ACCUMULATION_STEPS} accumulated), "
            f"learning rate {state.schedule.base_lr:g} (scaling {config.TRAIN.LR_SCALING}), "
            f"{state.schedule.total_steps} steps, {state.schedule.warmup_steps} of them warm-up"
        )
        for line in describe_groups(state.optimizer):
            log.info(line)
        log.info(
            f"{self.params:,} parameters, {self.macs / 1e6:,.1f} M multiply-accumulates an image, "
            f"run folder {self.folder.path}"
        )
        for key, old, new in changes:
            log.warning(f"{key} changed from {old!r} to {new!r} (TRAIN.ALLOW_CHANGES)")
        if path:
            progress = state.progress
            log.heading(f"resuming from {path}: step {progress.step}, {len(progress.history)} epochs validated")

    def wishes(self):
        """This rank's flags for the next step: the signals it received, and whether a checkpoint is due after it."""
        save = self.config.SAVE
        by_step = save.STEPS and (self.state.progress.step + 1) % save.STEPS == 0
        by_time = save.MINUTES and self.world.is_main and time.perf_counter() - self.saved_at >= 60 * save.MINUTES
        return [*self.stop.flags(), float(bool(by_step or by_time))]

    def save_last(self):
        """last.pth, the former one kept as previous.pth; nothing if it holds this step already."""
        progress = self.state.progress
        if self.world.is_main and self.folder.is_open and self.saved_step != progress.step:
            self._save(checkpoint.LAST, keep_as=checkpoint.PREVIOUS)
        self.saved_step = progress.step
        self.saved_at = time.perf_counter()

    def _save(self, name, keep_as=None):
        self._count_time()
        payload = training_state.to_payload(self.state, self.config, self.data.info, self.world, self.per_epoch)
        checkpoint.save(self.folder.checkpoints / name, payload, self.state.progress.step, keep_as)

    def _count_time(self):
        now = time.perf_counter()
        self.state.progress.seconds += now - self.clock
        self.clock = now

    def finish_epoch(self, epoch, loss, rate, result):
        """Record a validated epoch: metrics, checkpoints, one line."""
        progress = self.state.progress
        self._count_time()
        seconds = progress.seconds - sum(row["seconds"] for row in progress.history)  # of all starts of this epoch
        row = {
            "epoch": epoch,
            "step": progress.step,
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "train_loss": loss,
            "val_loss": result.loss,
            "correct": result.correct,
            "correct5": result.correct5,
            "total": result.total,
            "accuracy": result.accuracy,
            "img_per_s": round(rate, 1),
            "seconds": round(seconds, 3),
        }
        progress.history.append(row)
        progress.loss_sum, progress.loss_count = 0.0, 0
        best = best_row(progress.history)
        if self.world.is_main:
            # last.pth comes last: after a kill in between, the resumed run repeats this and misses no file.
            if best is row:
                self._save(checkpoint.BEST)
            if self.config.SAVE.EPOCHS and (epoch + 1) % self.config.SAVE.EPOCHS == 0:
                self._save(checkpoint.epoch_name(epoch))
                checkpoint.prune_epochs(self.folder.checkpoints, self.config.SAVE.KEEP)
            self._save(checkpoint.LAST, keep_as=checkpoint.PREVIOUS)
            self.folder.write_metrics(progress.history)
        self.saved_step, self.saved_at = progress.step, time.perf_counter()
        self.log.scalars(row, epoch)
        self.log.info(
            f"epoch {epoch + 1}/{self.config.TRAIN.EPOCHS}  train loss {loss:.4f}  val loss {result.loss:.4f}  "
            f"val {counts(row)}  best {counts(best)} in epoch {best['epoch'] + 1}  {rate:.0f} img/s  {seconds:.1f} s"
        )

    def finish(self):
        """After the last epoch: read the test set once if the epoch was chosen on held-out data, then summarise."""
        test = self._test_best() if self.data.test is not None else None
        history = self.state.progress.history
        self._count_time()
        if self.world.is_main:
            draw_curves(history, self.folder.path / "curves.png", f"{self.config.MODEL.NAME} / {self.config.TAG}")
            report = summary(
                self.config,
                self.data.info,
                self.state.progress,
                self.macs,
                self.params,
                test,
                self.command,
                environment(self.world),
            )
            self.folder.write_json("summary.json", report)
            self.folder.write_exit("finished", 0, False)
        self.log.heading(
            f"best {counts(best_row(history))}, final {counts(history[-1])}"
            + (f", test {counts(test)}" if test else "")
        )

    def _test_best(self):
        self.world.barrier()  # rank 0 has written best.pth
        payload = self.world.together(lambda: checkpoint.load(self.folder.checkpoints / checkpoint.BEST))
        weights = choose_weights(payload, self.config.TEST.WEIGHTS, checkpoint.BEST)
        load_exact(self.state.model, weights, checkpoint.BEST)
        result = evaluate(
            self.state.model,
            self.data.test,
            device=self.world.device,
            amp_dtype=self.amp_dtype,
            world=self.world,
            stop=self.stop,
        )
        return {
            "correct": result.correct,
            "correct5": result.correct5,
            "total": result.total,
            "accuracy": result.accuracy,
            "loss": result.loss,
        }
