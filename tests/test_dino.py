"""The warm start: crops, loss, the teacher that follows, neighbours, and whole runs that end as they should."""

import numpy as np
import pytest
import torch
from torch import nn

from data.base import ArrayImages
from data.samples import TrainSamples
from tasks.dino.crops import Crops
from tasks.dino.learner import Dinos, Head, between_views
from tasks.dino.neighbours import votes
from tasks.dino.schedule import Schedule
from tests.helpers_data import alone, noise
from tests.launch import run, run_here
from tests.small import small
from tests.tiny import arguments, final_state, metrics, write_config
from tests.whole_runs import break_and_finish, check_equal, references


def write(folder, **changes):
    """Two epochs of four steps of two micro-batches: a ViT with a shortcut, so with BatchNorm."""
    task = {"TASK": "dino", "DINO": {"LOCAL_CROPS": 2, "OUT_DIM": 32, "WARMUP_EPOCHS": 2}, "TRAIN__EMA__ENABLE": False}
    return write_config(folder, **{**task, **changes})


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return references(tmp_path_factory, write)


def test_the_schedules_are_the_published_ones():
    schedule = Schedule(50, 5, 0.996, (0.04, 0.07), 4, 1)
    cosine = 1 + 0.5 * (0.996 - 1) * (1 + np.cos(np.pi * np.arange(50) / 50))
    assert [schedule.momentum(step) for step in range(50)] == pytest.approx(cosine.tolist(), rel=1e-12)
    temperatures = np.concatenate([np.linspace(0.04, 0.07, 4), np.full(6, 0.07)])
    assert [schedule.temperature(step) for step in range(50)] == pytest.approx(temperatures.repeat(5).tolist())
    assert [schedule.moves(step) for step in (0, 4, 5)] == [False, False, True]
    for warmup in (0, 1):
        assert Schedule(50, 5, 0.9, (0.04, 0.07), warmup, 0).temperature(0) == 0.07


def made(momentum=0.9):
    model, student = (small("vit_tiny", num_classes=0) for _ in range(2))
    student.load_state_dict(model.state_dict())
    model.any_size = student.any_size = True
    schedule = Schedule(10, 5, momentum, (0.04, 0.07), 3, 1)
    return Dinos(model.requires_grad_(False), student, Head(24, 16), schedule, alone()).train()


def crops(batch=3, local=2):
    return torch.randn(batch, 2, 3, 32, 32), torch.randn(batch, local, 3, 16, 16)


def numbers(temperature=0.05, moves=1.0):
    return torch.tensor(temperature), torch.tensor(moves)


def test_the_loss_by_hand():
    """All pairs of different crops, one after the other, in the words of the paper's pseudocode."""
    learner, (large, little) = made(), crops()
    extra = learner.extra
    extra.center.normal_()
    extra.head.last.weight.data.mul_(torch.rand(16, 1) + 0.5)  # whose length does not matter
    loss, parts = learner(large, little, *numbers())
    views = [large[:, 0], large[:, 1], little[:, 0], little[:, 1]]
    rows = torch.nn.functional.normalize(extra.head.last.weight, dim=1)

    def project(head, rows, features):
        hidden = head.mlp(features)
        return hidden / hidden.norm(dim=1, keepdim=True) @ rows.T

    teacher_rows = torch.nn.functional.normalize(extra.teacher_head.last.weight, dim=1)
    terms, entropies = [], []
    for place in range(2):
        answer = project(extra.teacher_head, teacher_rows, learner.model(views[place]))
        answer = ((answer - extra.center) / 0.05).softmax(1)
        entropies.append(-(answer * answer.log()).sum(1).mean())
        for other, view in enumerate(views):
            if other != place:
                guess = (project(extra.head, rows, extra.student(view)) / 0.1).log_softmax(1)
                terms.append(-(answer * guess).sum(1).mean())
    torch.testing.assert_close(loss, sum(terms) / len(terms))
    torch.testing.assert_close(parts["entropy"], sum(entropies) / 2)
    torch.testing.assert_close(parts["divergence"], loss - parts["entropy"])


def test_without_local_crops():
    answers, guesses = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    expected = -((answers[0] * guesses[1]).sum() + (answers[1] * guesses[0]).sum()) / 6
    torch.testing.assert_close(between_views(answers, guesses), expected)
    loss, _ = made()(torch.randn(3, 2, 3, 32, 32), torch.empty(3, 0, 3, 16, 16), *numbers())
    assert torch.isfinite(loss)


def test_what_moves_after_a_step():
    """The teacher by the schedule's momentum; the centre towards the mean answer of all micro-batches, if finite."""
    learner = made(momentum=0.75)
    extra = learner.extra
    answers = []
    for _ in range(2):
        large, little = crops()
        learner(large, little, *numbers())
        views = torch.cat([large[:, 0], large[:, 1]])
        answers.append(extra.teacher_head(learner.model(views), torch.tensor(1.0)).detach())
    with torch.no_grad():
        for parameter in extra.student.parameters():
            parameter.add_(1)
    before = [parameter.clone() for parameter in learner.model.parameters()]
    learner.after_step(0, torch.tensor(True))
    torch.testing.assert_close(extra.center, 0.1 * torch.cat(answers).mean(0))
    for old, now in zip(before, learner.model.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.25)
    center = extra.center.clone()
    learner(*crops(), *numbers(temperature=float("nan")))
    learner.after_step(1, torch.tensor(False))
    assert torch.equal(extra.center, center)
    assert not extra.seen.any()


def test_who_learns():
    learner = made()
    loss, _ = learner(*crops(), *numbers(moves=0.0))
    loss.backward()
    still = [name for name, parameter in learner.named_parameters() if not parameter.requires_grad]
    assert {name.rpartition(".")[0].split(".")[0] for name in still} == {"model", "extra"}
    assert not [name for name in still if not name.startswith(("model.", "extra.teacher_head."))]
    assert all(parameter.grad is not None for parameter in learner.parameters() if parameter.requires_grad)
    assert not learner.extra.head.last.weight.grad.any()
    assert learner.extra.head.mlp[0].weight.grad.any()
    assert learner.extra.student.patch_embed.proj.weight.grad.any()


def test_crops_are_a_function_of_seed_epoch_and_image():
    images = ArrayImages(np.stack([np.array(noise(index, (40, 48))) for index in range(9)]), np.arange(9), "noise")
    augment = Crops(((32, 32), (16, 12)), ([0.7, 1.0], [0.2, 0.5]), 3, 0.5, ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2)))
    samples = TrainSamples(images, augment, seed=1)
    large, little = samples[2, 5].image
    assert (large.shape, little.shape) == ((2, 3, 32, 32), (3, 3, 16, 12))
    again = samples[2, 5].image
    assert torch.equal(large, again[0])
    assert torch.equal(little, again[1])
    for other in ((3, 5), (2, 6), (2, 14)):
        assert not torch.equal(large, samples[other].image[0])
    assert len({crop.numpy().tobytes() for crop in little}) == 3


def test_the_votes_of_the_neighbours_against_a_loop():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(60, 5) + torch.arange(60)[:, None] % 3, dim=1)
    labels = torch.arange(60) % 3
    correct, missed = 0, 0.0
    for i in range(60):
        alike = sorted(((float(features[i] @ features[j]), j) for j in range(60) if j != i), reverse=True)[:20]
        weights = [np.exp(cosine / 0.07) for cosine, _ in alike]
        votes_of = [(weight, int(labels[j])) for weight, (_, j) in zip(weights, alike, strict=True)]
        shares = [sum(weight for weight, label in votes_of if label == c) / sum(weights) for c in range(3)]
        correct += int(np.argmax(shares)) == int(labels[i])
        missed += 1 - shares[labels[i]]
    row = votes(features, labels)
    assert (row["correct"], row["total"]) == (correct, 60)
    assert row["loss"] == pytest.approx(missed / 60, rel=1e-5)
    assert votes(features[:2], labels[:2])["total"] == 2


def test_figures_of_a_run(reference, capsys, tmp_path):
    """The teacher is the model: its figures are those of the checkpoint, on any number of ranks."""
    folder = reference(1)
    for row in metrics(folder):
        assert row["train_loss"] == pytest.approx(row["train_entropy"] + row["train_divergence"], rel=1e-5)
    state = final_state(folder)
    assert state["model"].keys() == {n.removeprefix("student.") for n in state["extra"] if n.startswith("student.")}
    best, config = folder / "tiny/default/checkpoints/best.pth", write(tmp_path)
    row = max(metrics(folder), key=lambda row: row["correct"])
    for ranks in (1, 2, 3):
        result = run([*arguments(config, tmp_path), "--eval", "--resume", str(best)], tmp_path, ranks=ranks)[0]
        assert result.code == 0, result.output
        assert f"({row['correct']}/11) by neighbours, loss {row['val_loss']:.4f}" in result.output


@pytest.mark.parametrize(
    ("ranks", "fault"),
    [
        (1, ("kill_at_step", {"step": 3, "micro": 1})),
        (1, ("signal_at_step", {"step": 1, "name": "SIGTERM"})),
        (2, ("kill_at_step", {"step": 1, "ranks": (1,)})),
    ],
)
def test_stopped_and_started_again(tmp_path, reference, ranks, fault):
    break_and_finish(write(tmp_path), tmp_path, ranks, fault)
    check_equal(tmp_path, reference(ranks))


def test_the_checkpoint_starts_a_classifier(tmp_path, reference):
    """All but the head is the teacher's; one command each."""
    best = reference(1) / "tiny/default/checkpoints/best.pth"
    config = write_config(tmp_path, **dict.fromkeys(("TRAIN__BASE_LR", "TRAIN__WARMUP_LR", "TRAIN__MIN_LR"), 0.0))
    (result,) = run([*arguments(config, tmp_path), "--pretrained", str(best)], tmp_path)
    assert result.code == 0, result.output
    assert "2 missing" in result.output  # the head
    taught, tuned = torch.load(best, weights_only=True)["model"], final_state(tmp_path)["model"]
    weights = [name for name in taught if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(taught[name], tuned[name]) for name in weights)


def test_refused_steps_and_bfloat16(tmp_path):
    config = write(tmp_path, AMP={"ENABLE": True, "DTYPE": "bfloat16"}, TRAIN__EMA__ENABLE=True)
    more = ("--opts", "TRAIN.MAX_SKIPPED_STEPS", "2")
    (result,) = run(arguments(config, tmp_path, *more), tmp_path, fault=("nan_loss", {"steps": [1]}))
    assert result.code == 0, result.output
    state = final_state(tmp_path)
    assert state["progress"]["skipped_total"] == 1
    assert all(tensor.isfinite().all() for part in ("model", "ema", "extra") for tensor in state[part].values())


def test_nan_names_what_is_trained(tmp_path):
    (result,) = run(arguments(write(tmp_path), tmp_path), tmp_path, fault=("nan_loss", {"steps": [1]}))
    assert result.code == 76
    assert "gradients not finite at step 1: the loss" in result.errors[0]


WRONG = {
    "local crops that do not fit": (
        {"MODEL__TYPE": "swin_tiny", "MODEL__SHORTCUT": {"KERNELS": []}, "DATA__IMG_SIZE": 16,
         "MODEL__ARGS": {"PATCH_SIZE": 2, "WINDOW_SIZE": 4, "DIM": 8, "DEPTHS": [1, 1], "HEADS": [1, 1]}},
        "DINO.LOCAL_SIZE: swin_tiny takes no local crops of 8x8",
    ),
    "the device path": ({"DATA__PIPELINE": "device"}, "DATA.PIPELINE: device - allowed: auto or cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_one_line(case, tmp_path, capsys):
    changes, text = WRONG[case]
    result = run_here(arguments(write(tmp_path, **changes), tmp_path), capsys)
    assert result.code == 64, result.output
    assert text in result.errors[0]


def test_the_step_is_one_graph():
    """torch.compile finds nothing that it has to leave out, and computes the same."""
    learner, inputs = made(), (*crops(), *numbers())
    losses = []
    for runner in (learner, torch.compile(learner, backend="aot_eager", fullgraph=True)):
        losses.append(runner(*inputs)[0].item())
        losses.append(learner.extra.seen.clone())
        learner.extra.seen.zero_()
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)
    torch.testing.assert_close(losses[1], losses[3])


def test_it_finds_clusters_without_labels():
    """The teacher ends with answers of its own for three at least of four kinds of noisy images; collapsed: one."""
    torch.manual_seed(0)
    kinds, steps = torch.randn(4, 48), 320

    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 32))

    def images(kind, crops):
        return (kinds[kind][:, None] + torch.randn(len(kind), crops, 48)).unflatten(2, (3, 4, 4))

    teacher, student = network(), network()
    teacher.load_state_dict(student.state_dict())
    schedule = Schedule(steps, steps, 0.99, (0.04, 0.04), 0, 0)
    learner = Dinos(teacher.requires_grad_(False), student, Head(32, 16), schedule, alone())
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.04)
    for step in range(steps):
        kind = torch.randint(4, (64,))
        loss, _ = learner(images(kind, 2), images(kind, 2), *numbers(0.04))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.after_step(step, torch.tensor(True))
    kind = torch.arange(400) % 4
    extra = learner.extra
    with torch.no_grad():
        answers = (extra.teacher_head(teacher(images(kind, 1)), torch.tensor(1.0)) - extra.center).argmax(1)
    together = [torch.bincount(kind[answers == answer]).max().item() for answer in answers.unique()]
    assert sum(together) >= 250
