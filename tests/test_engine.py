"""The step and the evaluation against slow, obvious forms of themselves."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from timm.utils import ModelEmaV3
from torch import nn

from config import default_config
from data import HostBatch, Mixing
from engine import build, throughput
from engine.evaluate import evaluate
from engine.run import Run
from engine.sync import RunningStatistics, StepSync, Wishes
from engine.train import (
    EpochMonitor,
    Progress,
    StepRecord,
    StepSettings,
    TrainState,
    micro_losses,
    steps_per_epoch,
    train_one_epoch,
)
from lr_scheduler import Schedule
from tasks.classification import Accuracy, Learner
from tools.shared.steps import GivenTask
from utils.distributed import World
from utils.errors import NonFiniteError

CPU = torch.device("cpu")
WORLD = World(CPU)
SILENT = SimpleNamespace(progress=lambda *_: None, warning=lambda *_: None)
UNASKED = SimpleNamespace(requested=None)


class Plain:
    """Classification without mixing, plain cross-entropy, of batches (images, labels)."""

    one_size = True

    def learner(self, model):
        return Learner(model, nn.CrossEntropyLoss())

    def inputs(self, batch, key, device, dtype):
        return batch

    def size(self, batch):
        return len(batch[0])

    def meter(self, device):
        return Accuracy(device)


class Batches:
    """A loader over fixed batches."""

    def __init__(self, batches):
        self.batches = batches
        self.batches_per_epoch = len(batches)

    def epoch(self, _epoch, start=0):
        return iter(self.batches[start:])


def small_model(norm=False):
    torch.manual_seed(1)
    layers = [nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def make_state(model, total_steps=100, lr=0.1):
    statistics = RunningStatistics(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = Schedule("constant", base_lr=lr, total_steps=total_steps)
    runner = Plain().learner(model)
    sync = StepSync(WORLD, statistics, True)
    return TrainState(model, runner, optimizer, schedule, statistics, sync, learner=runner)


def make_batches(count, size):
    torch.manual_seed(2)
    return [(torch.randn(size, 3, 2, 2), torch.randint(0, 3, (size,))) for _ in range(count)]


def train(state, batches, epoch=0, wishes=Wishes, save=lambda: None, **settings):
    session = SimpleNamespace(log=SILENT, wishes=wishes, save_last=save)
    return train_one_epoch(state, Plain(), Batches(batches), epoch, StepSettings(WORLD, **settings), session)


def test_accumulation_equals_the_large_batch():
    small = make_batches(8, 4)
    large = [tuple(torch.cat(parts) for parts in zip(small[i], small[i + 1], strict=True)) for i in range(0, 8, 2)]
    first, second = make_state(small_model().double()), make_state(small_model().double())
    train(first, [(x.double(), y) for x, y in small], accumulation=2, clip_grad=0.5)
    train(second, [(x.double(), y) for x, y in large], clip_grad=0.5)
    assert first.progress.step == second.progress.step == 4
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_the_last_short_group_is_a_step_of_its_own_mean():
    batches = make_batches(3, 4)
    state, reference = make_state(small_model()), small_model()
    train(state, batches, accumulation=2)
    assert state.progress.step == 2
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for group in (batches[:2], batches[2:]):
        sgd.zero_grad()
        (sum(nn.functional.cross_entropy(reference(x), y) for x, y in group) / len(group)).backward()
        sgd.step()
    for a, b in zip(state.model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("batches", "accumulation", "expected"), [(8, 3, 3), (8, 1, 8), (9, 3, 3), (1, 4, 1)])
def test_no_batch_is_lost_at_the_end_of_an_epoch(batches, accumulation, expected):
    assert steps_per_epoch(batches, accumulation) == expected


def test_clipping_bounds_the_step():
    state = make_state(small_model(), lr=1.0)
    before = [p.detach().clone() for p in state.model.parameters()]
    train(state, make_batches(1, 4), clip_grad=1e-3)
    moved = torch.stack([(p.detach() - q).norm() for p, q in zip(state.model.parameters(), before, strict=True)]).norm()
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_a_step_that_is_not_finite_changes_nothing_and_is_named():
    batches = make_batches(3, 4)
    batches[1] = (batches[1][0] * float("inf"), batches[1][1])
    state = make_state(small_model(norm=True))
    train(state, batches[:1])
    expected = {name: value.clone() for name, value in state.model.state_dict().items()}
    momentum = [dict(entry) for entry in state.optimizer.state_dict()["state"].values()]
    with pytest.raises(NonFiniteError, match="step 1: input images"):
        train(state, batches)
    assert all(torch.equal(value, expected[name]) for name, value in state.model.state_dict().items())
    for old, new in zip(momentum, state.optimizer.state_dict()["state"].values(), strict=True):
        assert torch.equal(old["momentum_buffer"], new["momentum_buffer"])


def test_tolerated_steps_are_counted_and_stop_when_there_are_too_many():
    batches = make_batches(4, 4)
    bad = [(x * float("nan"), y) for x, y in batches]
    state = make_state(small_model(norm=True))
    train(state, [batches[0], bad[1], bad[2], batches[3]], max_skipped=2)
    assert (state.progress.skipped, state.progress.skipped_total, state.progress.loss_count) == (0, 2, 2)
    with pytest.raises(NonFiniteError, match="step 6"):
        train(make_state_at(state, 4), [*batches, *bad[:3]], max_skipped=2)


def test_the_average_of_the_weights_moves_in_every_step_of_the_schedule():
    batches = make_batches(3, 4)
    batches[1] = (batches[1][0] * float("nan"), batches[1][1])
    state = make_state(small_model(norm=True))
    state.ema = ModelEmaV3(state.model, decay=0.9)
    update, seen = state.ema.update, []
    state.ema.update = lambda model, step: (seen.append(model[1].weight.detach().clone()), update(model, step=step))
    expected = state.model[1].weight.detach().clone()
    train(state, batches, max_skipped=1)
    assert torch.equal(seen[1], seen[0])  # the refused step left the weights alone
    for step, weight in enumerate(seen):
        decay = 0.0 if step <= 1 else 0.9  # timm's decay starts after the first step
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(state.ema.module[1].weight, expected)


def make_state_at(state, step):
    state.progress = Progress(step=step)
    return state


def test_float16_overflow_lowers_the_scale_instead_of_stopping():
    state = make_state(small_model())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    train(state, [(images * 100, targets) for images, targets in make_batches(1, 4)])
    assert state.progress.skipped_total == 1
    assert state.scaler.get_scale() == pytest.approx(1.5e38)


def test_a_checkpoint_is_wished_for_after_every_third_step():
    config = default_config()
    config.SAVE.STEPS = 3
    start = SimpleNamespace(config=config, world=WORLD, stop=UNASKED)
    wished = []
    for step in range(7):
        start.state = SimpleNamespace(progress=Progress(step=step))  # steps done before the one that asks
        wished.append(Run.wishes(start).save)
    assert wished == [False, False, True, False, False, True, False]


def test_a_wish_for_a_checkpoint_is_granted_after_that_step():
    state, saved = make_state(small_model()), []
    train(
        state,
        make_batches(5, 4),
        wishes=lambda: Wishes(save=state.progress.step == 2),
        save=lambda: saved.append((state.progress.step, state.progress.loss_count)),
    )
    assert saved == [(3, 3)]


def test_dropout_differs_by_step_micro_batch_and_rank_and_by_nothing_else():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    state, (batch,) = make_state(model), make_batches(1, 4)

    def losses():
        worlds = [World(CPU, rank=rank, size=2) for rank in (0, 1)]
        places = [(step, micro) for step in (0, 1) for micro in (0, 1)]
        return [
            micro_losses(state, Plain(), StepSettings(world), place, batch, state.runner)[0].item()
            for world in worlds
            for place in places
        ]

    assert len(set(losses())) == 8
    assert losses() == losses()


def test_ranks_agree_on_mean_losses_summed_flags_and_mean_statistics(monkeypatch):
    other = torch.tensor([4.0, 0.5, 1.0, 0.0, 3.0, 5.0, 2.0])  # of the other rank: two losses, two flags, statistics
    monkeypatch.setattr("torch.distributed.all_reduce", lambda packet: packet.add_(other))
    statistics = SimpleNamespace(moments=[torch.tensor([1.0, 3.0]), torch.tensor([4.0], dtype=torch.float64)])
    sync = StepSync(World(CPU, size=2), statistics, average_statistics=True)
    assert sync.exchange(torch.tensor([2.0, 1.5]), [0.0, 1.0]).tolist() == [3.0, 1.0, 1.0, 1.0]
    assert [flat.tolist() for flat in statistics.moments] == [[2.0, 4.0], [3.0]]


def test_the_mixture_differs_by_seed_step_micro_batch_and_rank():
    task, batch = GivenTask(Mixing(3, mixup=0.8), train=None), HostBatch(*make_batches(1, 4)[0])
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({task.inputs(batch, key, CPU, None)[0][0].sum().item() for key in keys}) == len(keys)


def test_the_rate_counts_the_images_of_all_ranks():
    settings = StepSettings(World(CPU, size=2))
    monitor = EpochMonitor(make_state(small_model()), Plain(), settings, SILENT, per_epoch=3)
    monitor.show(4)
    monitor.show(3)
    assert monitor.images == 14


def test_a_step_made_again_from_the_same_batch_is_the_same():
    """Mixing works in place; what is looked for after a refused step must not be mixed twice."""
    task = GivenTask(Mixing(3, mixup=0.8), train=None)
    state, group = make_state(small_model()), [HostBatch(*batch) for batch in make_batches(1, 4)]
    runner = task.learner(state.model)
    losses = [micro_losses(state, task, StepSettings(WORLD), (0, 0), group[0], runner)[0] for _ in range(2)]
    assert torch.equal(*losses)


class InParts(Plain):
    """A loss of two named parts."""

    def learner(self, model):
        learner = super().learner(model)

        class Parts(nn.Module):
            def forward(self, images, labels):
                loss, _ = learner(images, labels)
                decay = model[1].weight.square().sum()
                return loss + decay, {"data": loss, "decay": decay}

        return Parts()


def test_partial_losses_are_averaged_over_micro_batches_and_steps_by_name():
    state, batches = make_state(small_model(), lr=0.0), make_batches(4, 4)
    state.runner = InParts().learner(state.model)
    session = SimpleNamespace(log=SILENT, wishes=Wishes, save_last=None)
    settings = StepSettings(WORLD, accumulation=2)
    losses, _ = train_one_epoch(state, InParts(), Batches(batches), 0, settings, session)
    data = sum(nn.functional.cross_entropy(state.model(x), y).item() for x, y in batches) / 4
    decay = state.model[1].weight.square().sum().item()
    assert list(losses) == ["loss", "data", "decay"]
    assert losses == pytest.approx({"loss": data + decay, "data": data, "decay": decay}, rel=1e-5)


def test_a_step_record_reads_what_a_step_reports():
    values = [1.0, 2.0, 1.0, 0.25, 0.75, *Wishes("SIGTERM", True).flags()]
    assert StepRecord.read(values, ("a", "b")) == (1.0, 2.0, True, Wishes("SIGTERM", True), {"a": 0.25, "b": 0.75})
    assert StepRecord.read([1.0, 2.0, 0.0, *Wishes().flags()], ()) == StepRecord(1.0, 2.0, False)


def loader_of(batches, count, size):
    return type("Loader", (list,), {"batches": count, "size": size})(batches)


def test_evaluation_counts_every_image_once():
    model = small_model()
    batches = make_batches(3, 4) + make_batches(1, 3)
    loader = loader_of(batches, 5, 15)  # another rank has a batch more
    result = evaluate(Plain(), loader, model, StepSettings(WORLD), UNASKED)
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = model(images)
    correct = sum(int(row.argmax()) == int(target) for row, target in zip(logits, targets, strict=True))
    assert (result["correct"], result["correct5"], result["total"]) == (correct, 15, 15)
    assert result["accuracy"] == 100 * correct / 15
    assert result["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)


def test_an_evaluation_that_misses_an_image_is_an_error():
    with pytest.raises(RuntimeError, match="12 images of 13"):
        evaluate(Plain(), loader_of(make_batches(3, 4), 3, 13), small_model(), StepSettings(WORLD), UNASKED)


def test_the_compiled_evaluation_is_called_for_batches_of_the_first_size_only():
    model, sizes = small_model(), []
    loader = loader_of(make_batches(2, 4) + make_batches(1, 3), 3, 11)

    def runner(images):
        sizes.append(len(images))
        return model(images)

    result = evaluate(Plain(), loader, model, StepSettings(WORLD), UNASKED, runner)
    assert sizes == [4, 4]
    assert result == evaluate(Plain(), loader, model, StepSettings(WORLD), UNASKED)


def test_running_statistics_are_views_that_survive_loading_and_can_be_taken_back():
    model = small_model(norm=True)
    state = {name: torch.full_like(value, 2) for name, value in model.state_dict().items()}
    statistics = RunningStatistics(model)
    model.load_state_dict(state)
    assert torch.equal(statistics.packs[0], torch.full((16,), 2.0))
    before = statistics.snapshot()
    model(torch.randn(4, 3, 2, 2))
    changed = model[2].running_mean.clone()
    statistics.keep_if(torch.tensor(True), before)
    assert torch.equal(model[2].running_mean, changed)
    statistics.keep_if(torch.tensor(False), before)
    assert torch.equal(model[2].running_mean, torch.full((8,), 2.0))
    assert model[2].num_batches_tracked == 2


def test_packed_statistics_keep_their_type_and_begin_where_cuda_graphs_want_them():
    """Inductor takes no buffer for a static input of a graph whose address is not a multiple of 16 bytes."""
    norms = [nn.BatchNorm1d(count) for count in (3, 8, 5)]
    norms += [nn.BatchNorm1d(7).double(), nn.BatchNorm1d(3).bfloat16(), nn.BatchNorm1d(3, track_running_stats=False)]
    model = nn.Sequential(*norms)
    for number, buffer in enumerate(model.buffers()):
        buffer.fill_(number)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    statistics = RunningStatistics(model)
    assert all(buffer.data_ptr() % 16 == 0 for buffer in model.buffers())
    found = model.state_dict()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items())
    before = statistics.snapshot()
    for buffer in model.buffers():
        buffer.add_(1)
    statistics.keep_if(torch.tensor(False), before)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Recorder:
    """Stands in for a compiled module with CUDA graphs: a call within the same step is another recording."""

    def __init__(self, model, monkeypatch):
        self.model, self.place, self.recorded = model, 0, set()
        monkeypatch.setattr(StepSettings, "forward", self.begin)

    def begin(self):
        self.place = 0
        return contextlib.nullcontext()

    def __call__(self, *inputs):
        self.place += 1
        self.recorded.add(self.place)
        return self.model(*inputs)


@pytest.mark.parametrize(("device", "times"), [("cpu", 0), ("cuda", 1)])
def test_cuda_graphs_are_told_of_each_forward_pass_and_imported_for_nothing_else(monkeypatch, device, times):
    told = []
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: told.append(device))
    assert StepSettings(World(torch.device(device))).forward().device == device
    assert len(told) == times


def test_an_epoch_of_evaluation_is_recorded_once(monkeypatch):
    model = small_model()
    recorder = Recorder(model, monkeypatch)
    evaluate(Plain(), loader_of(make_batches(6, 4), 6, 24), model, StepSettings(WORLD), UNASKED, recorder)
    assert recorder.recorded == {1}


def test_the_forward_pass_of_throughput_is_recorded_once(monkeypatch):
    state, shown = make_state(small_model()), []
    task = Plain()
    task.data = SimpleNamespace(train=Batches(make_batches(2, 4)))
    state.evaluator = state.model
    state.eval_runner = Recorder(state.model, monkeypatch)
    monkeypatch.setattr(throughput, "build", lambda *_: (task, state.model))
    monkeypatch.setattr(throughput, "build_state", lambda *_: state)
    monkeypatch.setattr(throughput, "BLOCK_SECONDS", 0.001)
    log = SimpleNamespace(heading=shown.append, info=shown.append)
    config = default_config()
    config.AMP.ENABLE = False  # else the model's work would be counted, for images that it does not take
    throughput.measure(config, WORLD, log)
    assert len(shown) == 5
    assert state.eval_runner.recorded == {1}


class WithActivation(nn.Module):
    """A convolution and a norm of timm that has its activation inside."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.BatchNorm2d(4))

    def forward(self, images):
        return self.body(images).mean((2, 3))


def test_norms_that_see_all_ranks_keep_the_activations_of_timm(monkeypatch):
    config, model = default_config(), WithActivation()
    model.body[1].running_mean.add_(0.1)
    images = torch.randn(2, 3, 4, 4)
    expected = model.eval()(images)
    monkeypatch.setattr(build, "uses_sync_bn", lambda *_: True)
    task = Plain()
    task.data = SimpleNamespace(train=Batches(make_batches(2, 4)))
    state = build.build_state(config, WORLD, task, model)
    assert [type(module) for module in state.model.body[1:]] == [SyncBatchNormAct, nn.SyncBatchNorm]
    assert torch.equal(state.model.eval()(images), expected)


@pytest.mark.parametrize(
    ("device", "size", "accumulation", "asked", "mode"),
    [
        ("cuda", 1, 1, "auto", "reduce-overhead"),
        ("cuda", 2, 1, "auto", "default"),
        ("cuda", 1, 2, "auto", "default"),
        ("cpu", 1, 1, "auto", "default"),
        ("cuda", 2, 1, "reduce-overhead", "reduce-overhead"),
        ("cpu", 1, 1, "max-autotune", "max-autotune"),
    ],
)
def test_cuda_graphs_are_taken_where_they_can_be_had(monkeypatch, device, size, accumulation, asked, mode):
    config, used = default_config(), []
    config.COMPILE, config.COMPILE_MODE, config.TRAIN.ACCUMULATION_STEPS = True, asked, accumulation
    monkeypatch.setattr(torch, "compile", lambda module, mode, dynamic: used.append((mode, dynamic)) or module)
    build.compiled(nn.Identity(), config, World(torch.device(device), size=size))
    assert used == [(mode, False)]
