"""Distillation, locality guidance and dense localisation in whole runs: trained, resumed, and absent afterwards."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import main
import models
import tasks
from config import check, default_config, load_config
from data.base import DatasetInfo
from engine.command_line import flag_overrides, parse_args
from tasks.methods import MethodLearner, build, weights
from tests.launch import ROOT, run, run_here
from tests.small import small
from tests.tiny import TINY, arguments, final_state, metrics, write_config
from tests.whole_runs import break_and_finish, check_equal, finish, references
from utils.errors import ConfigError, MismatchError, MissingError
from utils.flops import count_macs

INFO = DatasetInfo("five", 5, tuple("abcde"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
CNN = {
    "MODEL__TYPE": "dwnet_tiny",
    "MODEL__ARGS": {"PATCH_SIZE": 2, "DIM": 8, "DEPTHS": [1, 1]},
    "TRAIN__EPOCHS": 1,
    "DATA__MEAN": [0.3, 0.4, 0.5],
    "DATA__STD": [0.2, 0.3, 0.4],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """best.pth of a small CNN on the same classes, on images of another size and normalisation."""
    folder = tmp_path_factory.mktemp("teacher")
    config = write_config(folder, **CNN, DATA__IMG_SIZE=16)
    assert main.main(arguments(config, folder)) == 0
    return folder / "tiny/default/checkpoints/best.pth"


def all_methods(teacher):
    return {
        "DRLOC": {"WEIGHT": 0.1, "WARMUP_EPOCHS": 1.0, "PAIRS": 8},
        "GUIDANCE": {"TEACHER": str(teacher)},
        "DISTILLATION": {"TEACHER": str(teacher), "KIND": "soft", "TAU": 2.0, "ALPHA": 0.25},
        "AUG__REPEATS": 2,
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory, teacher):
    return references(tmp_path_factory, lambda folder: write_config(folder, **all_methods(teacher)))


def test_what_a_run_leaves_behind(reference, capsys, tmp_path):
    """The parts of the loss by name; the heads beside the model, not in it nor in its average."""
    folder = reference(1)
    for row in metrics(folder):
        parts = [row[f"train_{name}"] for name in ("labels", "drloc", "guidance", "distillation")]
        assert row["train_loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert metrics(folder)[0]["train_drloc"] == 0  # of the first epoch of the warm-up
    assert metrics(folder)[1]["train_drloc"] > 0
    state = final_state(folder)
    sizes = {name.lower(): value for name, value in TINY["MODEL"]["ARGS"].items()}
    plain = models.create("vit_tiny", img_size=8, num_classes=4, shortcut={"kernels": [3]}, **sizes)
    assert state["model"].keys() == state["ema"].keys() == plain.state_dict().keys()
    assert {name.partition(".")[0] for name in state["extra"]} == {"drloc", "guidance"}
    best = folder / "tiny/default/checkpoints/best.pth"
    bare = write_config(tmp_path)  # evaluated without any method or teacher
    result = run_here([*arguments(bare, tmp_path), "--eval", "--resume", str(best)], capsys)
    assert result.code == 0, result.output
    assert f"loss {max(metrics(folder), key=lambda row: row['correct'])['val_loss']:.4f}" in result.output


def test_the_heads_are_trained(reference, tmp_path, teacher):
    rates = dict.fromkeys(("TRAIN__BASE_LR", "TRAIN__WARMUP_LR", "TRAIN__MIN_LR"), 0.0)
    started = write_config(tmp_path, **all_methods(teacher), **rates)
    finish(started, tmp_path)
    before, after = (final_state(folder)["extra"] for folder in (tmp_path, reference(1)))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("ranks", "fault"),
    [
        (1, ("kill_at_step", {"step": 3, "micro": 1})),
        (1, ("signal_at_step", {"step": 1, "name": "SIGTERM"})),
        (2, ("kill_at_step", {"step": 1, "ranks": (1,)})),
    ],
)
def test_stopped_and_started_again(tmp_path, reference, teacher, ranks, fault):
    break_and_finish(write_config(tmp_path, **all_methods(teacher)), tmp_path, ranks, fault)
    check_equal(tmp_path, reference(ranks))


def test_refused_steps_and_bfloat16(tmp_path, teacher):
    config = write_config(tmp_path, **all_methods(teacher), AMP={"ENABLE": True, "DTYPE": "bfloat16"})
    more = ("--opts", "TRAIN.MAX_SKIPPED_STEPS", "2")
    (result,) = run(arguments(config, tmp_path, *more), tmp_path, fault=("nan_loss", {"steps": [1]}))
    assert result.code == 0, result.output
    assert final_state(tmp_path)["progress"]["skipped_total"] == 1
    assert all(tensor.isfinite().all() for tensor in final_state(tmp_path)["extra"].values())


def config_of(**sections):
    config = default_config()
    config.DATA.IMG_SIZE = 32
    for section, keys in sections.items():
        for key, value in keys.items():
            config[section][key] = value
    return config


def timm_weights(path, name="resnet10t"):
    """A file with weights of a timm model of five classes."""
    model = models.create(f"timm/{name}", num_classes=5)
    torch.save(model.state_dict(), path)
    return model.eval()


def learner_of(model, **sections):
    config = config_of(**sections)
    learner = MethodLearner(model, nn.CrossEntropyLoss(), build(config, model, INFO, print))
    return learner, weights(config, 0, 10, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("divide_by", ["elements", "images"])
def test_distillation_is_deits(tmp_path, kind, divide_by):
    other = timm_weights(tmp_path / "teacher.pth")
    settings = {"TEACHER": "timm/resnet10t", "TEACHER_WEIGHTS": str(tmp_path / "teacher.pth"), "KIND": kind, "TAU": 3.0}
    model, images, labels = small("vit_tiny"), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    learner, shares = learner_of(model, DISTILLATION={**settings, "ALPHA": 0.3, "DIVIDE_BY": divide_by})
    loss, parts = learner(images, labels, *shares)
    own, answer = model(images), other(images)
    if kind == "hard":
        expected = F.nll_loss(own.log_softmax(1), answer.argmax(1))
    else:
        q = (answer / 3).softmax(1)
        divergence = (q * (q.log() - (own / 3).log_softmax(1))).sum(1).mean()
        expected = 9 * divergence / (5 if divide_by == "elements" else 1)
    torch.testing.assert_close(parts["distillation"], 0.3 * expected)
    torch.testing.assert_close(loss, 0.7 * F.cross_entropy(own, labels) + 0.3 * expected)
    learner.train()
    assert not [name for name, _ in learner.named_parameters() if not name.startswith("model.")]
    assert learner.extra.state_dict() == {}


def test_a_distillation_token_learns_from_the_teacher(tmp_path):
    timm_weights(tmp_path / "teacher.pth")
    model = models.create(
        "timm/deit_tiny_distilled_patch16_224", img_size=32, num_classes=5, depth=1, embed_dim=24, num_heads=2
    ).train()
    settings = {"TEACHER": "timm/resnet10t", "TEACHER_WEIGHTS": str(tmp_path / "teacher.pth")}
    learner, shares = learner_of(model, DISTILLATION=settings, DRLOC={"WEIGHT": 0.1})
    _, parts = learner(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), *shares)
    for part, head in (("labels", model.head), ("distillation", model.head_dist)):
        model.zero_grad()
        parts[part].backward(retain_graph=True)
        other = model.head if head is model.head_dist else model.head_dist
        assert head.weight.grad.abs().sum() > 0
        assert other.weight.grad is None or not other.weight.grad.any()


def test_guidance_by_hand(tmp_path):
    """The mean squared difference on the larger grid, by the statistics of the batch or the teacher's own."""
    other, images = timm_weights(tmp_path / "teacher.pth"), torch.randn(4, 3, 32, 32)
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
    torch.save(other.state_dict(), tmp_path / "teacher.pth")
    settings = {"TEACHER": "timm/resnet10t", "TEACHER_WEIGHTS": str(tmp_path / "teacher.pth")}
    for batch_statistics in (False, True):
        model = small("vit_tiny").eval()
        learner, shares = learner_of(model, GUIDANCE={**settings, "BATCH_STATISTICS": batch_statistics})
        _, parts = learner(images, torch.tensor([0, 1, 2, 3]), *shares)
        other.train(batch_statistics)
        with torch.no_grad():
            targets = other.forward_intermediates(images, [2, 3, 4], intermediates_only=True)
        maps = model.forward_intermediates(images, intermediates_only=True)
        assert learner.levels == [0, 1, 2]
        expected = 0
        for project, image, target in zip(learner.extra["guidance"].projections, maps, targets, strict=True):
            assert image.shape[2:] == (4, 4)
            image = project(image)
            if target.shape[2] > 4:
                image = F.interpolate(image, target.shape[2:], mode="bilinear", align_corners=False)
            else:
                target = F.interpolate(target, (4, 4), mode="bilinear", align_corners=False)
            expected += (image - target).square().mean()
        torch.testing.assert_close(parts["guidance"], 2.5 * expected)


def test_published_levels(tmp_path):
    """DeiT's 12 blocks and three maps give blocks 0, 6 and 11."""
    timm_weights(tmp_path / "teacher.pth")
    settings = {"TEACHER": "timm/resnet10t", "TEACHER_WEIGHTS": str(tmp_path / "teacher.pth")}
    learner, _ = learner_of(small("vit_tiny", depth=12), GUIDANCE=settings)
    assert learner.levels == [0, 6, 11]


def test_images_are_prepared_for_the_teacher(teacher):
    """Resized to its size and normalised as it was trained, from this run's normalisation."""
    config = config_of(GUIDANCE={"TEACHER": str(teacher)})
    made = build(config, small("vit_tiny"), INFO, print)["guidance"].teacher
    assert made.size == (16, 16)
    pixels = torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (INFO.mean, INFO.std))
    its_mean, its_std = (torch.tensor(CNN[key])[:, None, None] for key in ("DATA__MEAN", "DATA__STD"))
    wanted = (pixels[..., :16, :16] - its_mean) / its_std
    torch.testing.assert_close(made.prepared((pixels - mean) / std), wanted)


WRONG = {
    "a file that is not there": ("DISTILLATION", {"TEACHER": "nowhere.pth"}, MissingError, "nowhere.pth: no such"),
    "a model that timm has not": ("DISTILLATION", {"TEACHER": "timm/resnet10"}, ConfigError, "did you mean"),
    "other classes": ("DISTILLATION", {"TEACHER": "{teacher}"}, MismatchError, "its classes are not those of five"),
    "weights of a run": ("GUIDANCE", {"TEACHER": "{teacher}", "TEACHER_WEIGHTS": "x.pth"}, ConfigError, "'' unless"),
    "levels": ("GUIDANCE", {"TEACHER": "{teacher}", "LEVELS": [0, 7]}, ConfigError, "among the 3, 0 to 2"),
    "numbers of levels": ("GUIDANCE", {"TEACHER": "{teacher}", "LEVELS": [0, 1, 2], "TEACHER_LEVELS": [0]},
                          ConfigError, "as many"),
    "weights of another model": ("GUIDANCE", {"TEACHER": "timm/resnet10t", "TEACHER_WEIGHTS": "{teacher}"},
                                 MismatchError, "belongs to another model"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_one_line(case, teacher):
    section, settings, kind, text = WRONG[case]
    settings = {k: v.format(teacher=teacher) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(kind, match=text):
        build(config_of(**{section: settings}), small("vit_tiny"), INFO, print)


def test_a_teacher_that_is_not_there_ends_the_run(tmp_path, capsys):
    config = write_config(tmp_path, DISTILLATION={"TEACHER": str(tmp_path / "no.pth")})
    result = run_here(arguments(config, tmp_path), capsys)
    assert result.code == 66
    assert "no.pth" in result.errors[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize("path", sorted((ROOT / "configs/methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations(path, monkeypatch):
    """The header's command runs the file; paper, parameters and FLOPs are true; what it builds on is made by one."""
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    args = parse_args(shlex.split(re.search(r"main\.py (.+)", text)[1]))
    assert args.cfg == f"configs/methods/{path.name}"
    cfg, origins = load_config(args.cfg, args.opts, flag_overrides(args))
    check(cfg, origins)
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    with torch.device("meta"):
        model = tasks.find(cfg.TASK).network(cfg, cfg.MODEL.NUM_CLASSES)
    params, flops = re.search(r"([\d.]+) M parameters, ([\d.]+) GFLOPs", text).groups()
    assert float(params) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.006)
    assert float(flops) == pytest.approx(count_macs(model, cfg.DATA.IMG_SIZE)["total"] / 1e9, abs=0.006)
    for file in (cfg.GUIDANCE.TEACHER, cfg.DISTILLATION.TEACHER, cfg.MODEL.PRETRAINED):
        assert not file or (path.parent / f"{Path(file).parts[1]}.yaml").exists()


def test_the_step_is_one_graph(tmp_path):
    """torch.compile finds nothing that it has to leave out, the teachers included, and computes the same."""
    timm_weights(tmp_path / "teacher.pth")
    settings = {"TEACHER": "timm/resnet10t", "TEACHER_WEIGHTS": str(tmp_path / "teacher.pth")}
    learner, shares = learner_of(small("vit_tiny"), GUIDANCE=settings, DISTILLATION=settings, DRLOC={"WEIGHT": 0.1})
    inputs = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]), *shares
    losses = []
    for runner in (learner, torch.compile(learner, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(1)
        losses.append(runner(*inputs)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
