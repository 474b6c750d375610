"""One start of a training run: continues it, keeps its folder true, and ends it with the right exit code."""

import time
from dataclasses import replace
from pathlib import Path

from engine import resume
from engine.build import build_settings, global_batch
from engine.evaluate import evaluate
from engine.failures import explain
from engine.summary import draw_curves, environment, summary
from engine.sync import Wishes
from engine.train import steps_per_epoch
from models.weights.pretrained import load_exact
from optimizer import describe_groups
from utils import checkpoint
from utils.errors import Interrupted, RunError
from utils.files import temporary_files
from utils.flops import count_macs
from utils.run_folder import RunFolder
from utils.signals import StopSignals


class Run:
    """Context of one start. Rank 0 holds the folder's lock and writes; the other ranks only follow."""

    def __init__(self, task, state, config, world, log):
        self.task, self.state, self.config, self.world, self.log = task, state, config, world, log
        self.folder = RunFolder.of(config)
        self.stop = StopSignals()
        self.per_epoch = steps_per_epoch(task.data.train.batches_per_epoch, config.TRAIN.ACCUMULATION_STEPS)
        self.between = config.TEST.STEPS or config.TEST.EPOCHS * self.per_epoch  # steps from one evaluation to the next
        self.evaluations = -(-state.schedule.total_steps // self.between)
        self.passes = -(-state.schedule.total_steps // self.per_epoch)
        self.settings = replace(build_settings(config, world, state.model), between=self.between)
        self.saved_step = None
        self.params = sum(parameter.numel() for parameter in state.model.parameters())
        self.macs = count_macs(state.model, config.DATA.IMG_SIZE)["total"]
        self.clock = self.saved_at = time.perf_counter()

    def __enter__(self):
        self.stop.__enter__()
        return self

    def __exit__(self, _kind, error, _traceback):
        explained = explain(error, self.world)
        try:
            if isinstance(error, Interrupted):
                self.save_last()
                self.log.heading(f"{error} at step {self.state.progress.step}; the same command continues")
            if error is not None:
                self._note_end(explained or error)
        finally:
            self.log.close()
            self.folder.close()
            self.stop.__exit__()
        if explained is not None:
            raise explained from error

    def _note_end(self, error):
        self.log.record(error.line() if isinstance(error, RunError) else repr(error))
        code, again = getattr(error, "exit_code", 1), getattr(error, "retryable", False)
        self.folder.write_exit(getattr(error, "label", "crash"), code, again)

    @property
    def history(self):
        """One row per validated epoch."""
        return self.state.progress.history

    def start(self, command, config_text):
        """Restore the newest checkpoint, open the folder and describe the run; True if there is nothing left to do.

        `command` and `config_text` go into the folder.
        """
        self.command = command
        path = self.world.gather(self.world.together(self._choose))[0]
        changes = self.world.together(lambda: self._restore(path)) if path else []
        if self.is_complete():
            self.log.heading(f"already complete: {self.folder.path}, best {self.say(self.best())}")
            return True
        self.world.together(lambda: self.world.is_main and self._prepare(path, command, config_text))
        self._describe(path, changes)
        if self.config.MODEL.PRETRAINED and not path:
            self._judge_start()
        self.clock = self.saved_at = time.perf_counter()
        return False

    def epochs(self):
        """The epochs (0-based) that are left; each is over when `finish_epoch` was called for it.

        An epoch is what lies between two evaluations: a pass over the data, or as TEST.EPOCHS and TEST.STEPS have it.
        """
        while len(self.history) < self.evaluations:
            yield len(self.history)

    def best(self):
        """The row of the best epoch so far."""
        return self.task.headline.best(self.history)

    def say(self, row):
        """The headline of a row."""
        return self.task.headline.say(row)

    def _choose(self):
        """Path of the checkpoint to continue from, '' for a fresh start; rank 0 decides."""
        if not self.world.is_main:
            return ""
        train, given = self.config.TRAIN, self.config.MODEL.RESUME
        found = resume.choose_checkpoint(self.folder.checkpoints, given, train.AUTO_RESUME, self.log.warning)
        return str(found[0]) if found else ""

    def _restore(self, path):
        payload = checkpoint.load(path)
        self.task.check_facts(payload.get("data", {}), path)
        facts = self.task.facts() | self.cpu_amp
        changes = resume.check_same_run(self.config, self.world, payload, path, facts, self.between)
        resume.restore(self.state, payload, path, self.between)
        self.saved_step = self.state.progress.step
        return changes

    @property
    def cpu_amp(self):
        """On a CPU, where the machine has a say in what AMP.DTYPE auto chooses: {'cpu_amp': the number format}."""
        on_cpu = self.world.device.type == "cpu"
        return {"cpu_amp": str(self.settings.amp_dtype or "float32").removeprefix("torch.")} if on_cpu else {}

    def is_complete(self):
        """Whether all epochs are trained and rank 0 finds the summary written."""
        done = len(self.history) >= self.evaluations
        return self.world.gather(done and (self.folder.path / "summary.json").exists())[0]

    def _prepare(self, path, command, config_text):
        self.folder.open()
        for leftover in temporary_files(self.folder.checkpoints):  # of a process that was killed while writing
            leftover.unlink()
        (self.folder.path / "summary.json").unlink(missing_ok=True)  # of a shorter run that is being extended
        self.folder.write("config.yaml", config_text)
        self.folder.write_json("environment.json", environment(self.world))
        self.folder.note_command(command)
        self.folder.write_metrics(self.history)
        self.log.attach(self.folder.path, len(self.history), self.config.TENSORBOARD)
        if path and self._ended_while_saving(Path(path)):
            self.clock = time.perf_counter()
            self._save_epoch()

    def _ended_while_saving(self, path):
        """Whether the start before saved the checkpoint `path` of a validated epoch, but not last.pth after it."""
        validated = bool(self.history) and self.history[-1]["step"] == self.state.progress.step
        return validated and path.parent == self.folder.checkpoints and path.name != checkpoint.LAST

    def _describe(self, path, changes):
        """What this run is, at its start."""
        config, state, log = self.config, self.state, self.log
        chosen = self.settings.amp_dtype is not None and config.AMP.DTYPE == "auto" and self.world.device.type == "cpu"
        log.info(
            f"{self.world.size} process(es) on {self.world.device}, amp {self.settings.amp_dtype or 'off'}"
            f"{' (AMP.DTYPE auto: this CPU has it, and the model is large)' * chosen}, "
            f"global batch {global_batch(config, self.world)} ({config.DATA.BATCH_SIZE} x {self.world.size} processes "
            f"x {config.TRAIN.ACCUMULATION_STEPS} accumulated), "
            f"learning rate {state.schedule.base_lr:g} (scaling {config.TRAIN.LR_SCALING}), "
            f"{state.schedule.total_steps} steps, {state.schedule.warmup_steps} of them warm-up"
        )
        frozen = [parameter for parameter in state.model.parameters() if not parameter.requires_grad]
        if config.TRAIN.FREEZE:
            log.info(f"frozen: {len(frozen)} tensors (TRAIN.FREEZE), {sum(p.numel() for p in frozen):,} parameters")
        for line in describe_groups(state.optimizer):
            log.info(line)
        log.info(
            f"{self.params:,} parameters, {self.macs / 1e6:,.1f} M multiply-accumulates an image, "
            f"run folder {self.folder.path}"
        )
        for key, old, new in changes:
            log.warning(resume.describe_change(key, old, new))
        if path:
            log.heading(f"resuming from {path}: step {state.progress.step}, {len(self.history)} epochs validated")

    def _judge_start(self):
        """Say what the weights that the run starts from are worth before the first step."""
        state = self.state
        row = evaluate(self.task, self.task.data.val, state.evaluator, self.settings, self.stop, state.eval_runner)
        self.log.heading(f"before training: val {self.task.describe(row)}")

    def wishes(self):
        """This rank's Wishes for the next step: the signal it received, and whether a checkpoint is due after it."""
        save = self.config.SAVE
        by_step = save.STEPS and (self.state.progress.step + 1) % save.STEPS == 0
        by_time = save.MINUTES and self.world.is_main and time.perf_counter() - self.saved_at >= 60 * save.MINUTES
        return Wishes(self.stop.requested, bool(by_step or by_time))

    def save_last(self):
        """last.pth, the former one kept as previous.pth; nothing if it holds this step already."""
        progress = self.state.progress
        if self.world.is_main and self.folder.is_open and self.saved_step != progress.step:
            self._save(checkpoint.LAST, keep_as=checkpoint.PREVIOUS)
        self.saved_step = progress.step
        self.saved_at = time.perf_counter()

    def _save(self, name, keep_as=None):
        self._count_time()
        payload = resume.to_payload(self.state, self.config, self.task.facts(), self.world, self.between) | self.cpu_amp
        checkpoint.save(self.folder.checkpoints / name, payload, self.state.progress.step, keep_as)

    def _count_time(self):
        now = time.perf_counter()
        self.state.progress.seconds += now - self.clock
        self.clock = now

    def _save_epoch(self):
        """The checkpoints after a validated epoch.

        last.pth comes last: after a kill in between, the resumed run repeats this and misses no file.
        """
        row = self.history[-1]
        if self.best() is row:
            self._save(checkpoint.BEST)
        if self._keeps():
            self._save(checkpoint.epoch_name(row["epoch"]))
            checkpoint.prune_epochs(self.folder.checkpoints, self.config.SAVE.KEEP)
        self._save(checkpoint.LAST, keep_as=checkpoint.PREVIOUS)

    def finish_epoch(self, epoch, losses, rate, result):
        """Record a validated epoch: metrics, checkpoints, one line. `losses`, `rate`: of training; `result`: a row."""
        progress, results = self.state.progress, result.pop("results", None)
        self._count_time()
        seconds = progress.seconds - sum(row["seconds"] for row in self.history)  # of all starts of this epoch
        row = {
            "epoch": (progress.step - 1) // self.per_epoch,  # the pass over the data that the last step belongs to
            "step": progress.step,
            "lr": self.state.optimizer.param_groups[0]["lr"],
            **{f"train_{name}": value for name, value in losses.items()},
            **{"val_loss" if name == "loss" else name: value for name, value in result.items()},
            "img_per_s": round(rate, 1),
            "seconds": round(seconds, 3),
        }
        progress.close_epoch(row)
        best = self.best()
        if self.world.is_main:
            if results is not None:  # before the checkpoints: a run that is killed here judges this epoch again
                self.folder.write_results("last", results)
                if best is row:
                    self.folder.write_results("best", results)
            self._save_epoch()
            self.folder.write_metrics(self.history)
        self.saved_step, self.saved_at = progress.step, time.perf_counter()
        self.log.scalars(row, epoch)
        parts = "".join(f"  {name} {value:.4f}" for name, value in losses.items() if name != "loss")
        judged = f"val loss {result['loss']:.4f}  " if "loss" in result else ""
        self.log.info(
            f"epoch {row['epoch'] + 1}/{self.passes}  train loss {losses['loss']:.4f}{parts}  "
            f"{judged}val {self.say(row)}  best {self.say(best)} in epoch {best['epoch'] + 1}  "
            f"{rate:.0f} img/s  {seconds:.1f} s"
        )

    def _keeps(self):
        """Whether epoch_N.pth is written: the newest row is the first one from a multiple of SAVE.EPOCHS on."""
        every = self.config.SAVE.EPOCHS
        before, now = [0, *(row["epoch"] + 1 for row in self.history)][-2:]
        return bool(every) and now // every > before // every

    def finish(self):
        """After the last epoch: read the test set once if the epoch was chosen on held-out data, then summarise."""
        test = self._test_best() if self.task.data.test is not None else None
        self._count_time()
        if self.world.is_main:
            cost = {"params": self.params, "macs": self.macs}
            report = summary(self.config, self.task, self.state.progress, test, {"epochs": self.passes, **cost})
            report |= {"command": self.command, **environment(self.world)}
            self.folder.write_exit("finished", 0, False)
            self.folder.write_json("summary.json", report)  # last, for it says that the run is complete
            self._draw()
        self.log.heading(
            f"best {self.say(self.best())}, final {self.say(self.history[-1])}"
            + (f", test {self.say(test)}" if test else "")
        )

    def _draw(self):
        """curves.png; the results are written already, and a picture that fails takes nothing from them."""
        title = f"{self.config.MODEL.NAME} / {self.config.TAG}"
        try:
            draw_curves(self.history, self.task.headline, self.folder.path / "curves.png", title)
        except Exception as error:  # whatever matplotlib and its fonts come up with
            self.log.warning(f"curves.png could not be drawn ({type(error).__name__}: {error})")

    def _test_best(self):
        self.world.barrier()  # rank 0 has written best.pth
        payload = self.world.together(lambda: checkpoint.load(self.folder.checkpoints / checkpoint.BEST))
        weights = resume.choose_weights(payload, self.config.TEST.WEIGHTS, checkpoint.BEST)
        load_exact(self.state.model, weights, checkpoint.BEST)
        row = evaluate(self.task, self.task.data.test, self.state.model, self.settings, self.stop)
        results = row.pop("results", None)
        if results is not None:
            self.folder.write_results("test", results)
        return row
