"""The benchmarks measure what they say; the traced bytes of every model stay where they were."""

import json
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import (
    accuracy,
    against,
    augment_equivalence,
    detection_step,
    end_to_end,
    first_gpu_run,
    loader,
    model_step,
    segmentation_step,
    steps,
    time_shares,
)
from benchmarks import bytes as traced
from benchmarks import shortcut as one_shortcut
from benchmarks.command import RESULTS, table
from benchmarks.first_gpu_run import Check, run_check
from benchmarks.operators import REST, by_group, draw, training_traffic
from benchmarks.protocol import AGAIN, Pace, Timing, interleaved, ratio_text, rows_of, spread
from config import load_config
from engine.command_line import build_parser
from models.dense import feature_pyramid
from tasks.detection.model import with_heads
from tests.helpers_data import small_config
from tests.launch import ROOT
from tests.same_results import differences
from tools.shared.command import exit_code

CPU = torch.device("cpu")
ONCE = Pace(warmup=1, blocks=1, steps=1)
CEILING = 1.03
RECORDED = json.loads((RESULTS / "bytes.json").read_text())["models"]


def test_blocks_are_interleaved_forwards_and_backwards():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = interleaved(cases, 8, CPU, Pace(warmup=2, blocks=2, steps=3))
    assert "".join(calls) == "aabb" + "aaabbbaaa" + "aaabbbaaa"
    assert list(timings) == ["a", "b", "a" + AGAIN]
    assert all(0 < t.low <= t.median <= t.high for t in timings.values())


def test_what_a_loader_prepared_ahead_is_not_timed():
    """A case that is fast at first, as one whose queue has filled meanwhile, shows its own pace."""
    clock = {"time": 0.0, "ready": 4}

    def step():
        clock["time"] += 0.0 if clock["ready"] > 0 else 1.0
        clock["ready"] -= 1

    def seconds(step, steps, _device):
        before = clock["time"]
        for _ in range(steps):
            step()
        clock["ready"], taken = 4, clock["time"] - before
        return taken or 1e-9

    pace = Pace(warmup=5, blocks=2, steps=3)
    assert interleaved({"a": step}, 8, CPU, pace, settle=4, seconds=seconds)["a"].median == 8
    assert interleaved({"a": step}, 8, CPU, pace, seconds=seconds)["a"].median > 1e9


@torch._dynamo.config.patch(recompile_limit=4)  # monkeypatch would leave it unset
def test_what_dynamo_would_run_eagerly_is_an_error():
    """One function with a variant more than its limit; a benchmark begins with none."""
    limit = 4

    def step_of(sizes):
        run = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
        return lambda: [run(torch.zeros(size)) for size in sizes]

    case = step_of(range(2, 2 + limit))
    for _ in range(2):
        interleaved({"enough": case}, 1, CPU, ONCE)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        interleaved({"too many": step_of(range(2, 4 + limit))}, 1, CPU, ONCE)


def test_random_batches_stay_random_though_a_step_mixes_them_in_place(tiny_config):
    batches = steps.pool(steps.configuration(tiny_config, 4), 10, CPU)
    deviations = [float(next(batches).images.mul_(0.5).std()) for _ in range(3 * steps.POOL)]
    assert min(deviations) > 0.45


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0, 2), (1, 3), (5, 10)], 0.2),
        ([(5, 10), (0, 5)], 0.0),
        ([(0, 10), (2, 3)], 0.0),
        ([], None),
        ([(4, 4)], None),
    ],
)
def test_the_share_of_the_time_without_a_kernel(spans, share):
    assert end_to_end.idle_part(spans) == pytest.approx(share)


def test_one_shortcut_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(one_shortcut.SIZES, "Swin-T, stage 1", (8, (4, 4), 0))
    words = ["--batch", "2", "--steps", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert exit_code(one_shortcut.run, words) == 0
    results = json.loads((tmp_path / "shortcut_cpu_bfloat16.json").read_text())["results"]
    names = ["plain modules, compiled", "plain modules"]
    assert list(results["ViT-Tiny/16, batch 2"]) == [*names, names[0] + AGAIN]


@pytest.mark.parametrize(
    ("code", "check", "good", "word"),
    [
        ("print('done')", {}, True, "done"),
        ("print('x'); exit(3)", {}, False, "exit code 3 instead of 0: x"),
        ("exit(76)", {"code": 76}, True, "no output"),
        ("import time; print('slow', flush=True); time.sleep(60)", {}, False, "stopped after 3 s: slow"),
        ("print('skipping cudagraphs due to x')", {"forbidden": "skipping"}, False, "skipping cudagraphs due to x"),
        ("print('new')", {"needed": "resuming"}, False, "says nothing of 'resuming'"),
        ("import os; print(os.environ['TORCH_LOGS'])", {"logs": "recompiles", "counted": "comp"}, True, "1 x 'comp'"),
    ],
)
def test_a_check_of_the_first_gpu_run(tmp_path, code, check, good, word):
    found = run_check(Check("one", ("-c", code), 3, **check), 3, tmp_path / "log")
    assert found == (good, word)


def test_a_run_is_stopped_once_it_has_saved_something_new(tmp_path):
    saved = tmp_path / "last.pth"
    saved.touch()
    code = f"import time; time.sleep(0.3); open({str(saved)!r}, 'w').write('x'); time.sleep(60)"
    check = Check("stop", ("-c", code), 30, code=-15, stop_at=str(saved))
    assert run_check(check, 30, tmp_path / "log")[0]


def test_the_first_gpu_run_goes_on_after_a_failure_and_ends_in_time(tmp_path, monkeypatch, capsys):
    found = [Check("bad", ("-c", "exit(1)"), 9), Check("good", ("-c", "print('fine')"), 9)]
    found += [Check("late", ("-c", "import time; time.sleep(60)"), 60), Check("never", ("-c", ""), 9)]
    monkeypatch.setattr(first_gpu_run, "checks", lambda *_: found)
    monkeypatch.setattr(first_gpu_run, "obstacle", lambda _: "")
    assert exit_code(first_gpu_run.run, ["--output", str(tmp_path), "--seconds", "9"]) == 2
    rows = json.loads((tmp_path / "first_gpu_run.json").read_text())["checks"]
    assert [row[1] for row in rows] == ["failed", "ok", "failed", "skipped"]
    assert rows[3][3] == "no time left"
    assert (tmp_path / "first_gpu_run" / "01_good.log").read_text() == "fine\n"
    assert "failed" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="would be a real one")
def test_the_first_gpu_run_without_a_gpu_says_so_of_every_check(tmp_path, capsys, monkeypatch):
    assert exit_code(first_gpu_run.run, ["--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[: len(first_gpu_run.checks("cuda", tmp_path))]
    assert len(lines) > 10
    assert all(line.startswith("skipped") and line.endswith("no GPU") for line in lines)
    monkeypatch.setattr(first_gpu_run, "PACKAGES", ("torch", "yacsx"))
    assert first_gpu_run.obstacle(CPU) == "not installed: yacsx"


def test_the_commands_of_the_first_gpu_run_exist(tmp_path):
    """Files and modules are there, and main.py takes its options."""
    for check in first_gpu_run.checks("cuda", tmp_path):
        for word in check.words:
            assert not word.endswith((".py", ".yaml")) or (ROOT / word).is_file(), word
        if check.words[0] == "main.py":
            assert build_parser().parse_args(check.words[1:]).cfg


def test_a_difference_within_the_clocks_own_is_none():
    timings = {name: Timing(rate, rate, rate, 0) for name, rate in (("a", 100), ("b", 150), ("a" + AGAIN, 96))}
    assert spread(timings) == pytest.approx(0.04)
    assert rows_of(timings)["b"] == ["b", "150", "150 to 150", "1.50"]
    assert rows_of(timings)["a" + AGAIN][-1] == "(±4.0 %)"
    assert ratio_text(Timing(103, 103, 103, 0), timings["a"], 0.04) == "no difference"


def test_two_checkouts_are_timed_against_each_other(monkeypatch, tmp_path, capsys):
    """The other one as it was before tasks/ came, with a model of one layer."""
    monkeypatch.setattr(against, "PACE", ONCE)
    cfg, other, output = "configs/demo/digits_plain.yaml", tmp_path / "other", tmp_path / "output"
    for name, text in {
        "main.py": "",
        cfg: "",
        "config.py": "from types import SimpleNamespace as N\nload_config = lambda path: (N(DATA=N(IMG_SIZE=8)), {})",
        "models/build.py": "from torch.nn import *\n"
        "build_model = lambda config, classes: Sequential(Flatten(), Linear(192, classes))",
    }.items():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text(text)
    assert exit_code(against.run, ["--other", str(other), "--cfg", cfg, "--batch", "4", "--output", str(output)]) == 0
    timings = json.loads((output / "against_cpu.json").read_text())["results"][cfg]
    assert list(timings) == ["this", "other", "this" + AGAIN]
    assert all(timing["median"] > 0 for timing in timings.values())
    for wrong in (["--other", str(tmp_path)], ["--other", str(other), "--cfg", "a.yaml"]):
        assert exit_code(against.run, wrong) == 66
        assert wrong[-1] in capsys.readouterr().err


def test_segmentation_steps_are_timed_against_another_model(monkeypatch, tmp_path, capsys):
    """Another one in place of transformers', which is not among the requirements."""
    monkeypatch.setitem(segmentation_step.PACE, "cpu", ONCE)
    monkeypatch.setattr(segmentation_step, "CFG", "configs/segmentation/shapes_dwnet_plain.yaml")
    arguments = ["--size", "32", "--output", str(tmp_path)]
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert exit_code(segmentation_step.run, arguments) == 69
    assert "pip install transformers" in capsys.readouterr().err
    monkeypatch.setattr(segmentation_step, "theirs", segmentation_step.ours)
    assert exit_code(segmentation_step.run, arguments) == 0
    timings = json.loads((tmp_path / "segmentation_step_cpu.json").read_text())["results"]
    assert list(timings) == ["transformers", "ours", "transformers" + AGAIN]
    assert all(timing["median"] > 0 for timing in timings.values())


def test_a_segmentation_step_lowers_the_loss():
    config = load_config("configs/segmentation/shapes_dwnet_plain.yaml")[0]
    learner, loss = segmentation_step.ours(config, 32)
    batch = torch.randn(2, 3, 32, 32), torch.randint(150, (2, 32, 32))
    step = segmentation_step.training_step((learner, loss), batch, CPU)
    with torch.no_grad():
        before = loss(*batch).item()
    for _ in range(3):
        step()
    with torch.no_grad():
        assert loss(*batch).item() < before


def test_detection_steps_are_timed_against_another_model(monkeypatch, tmp_path):
    """A small one of ours in place of torchvision's, whose heads have one size, and of Swin-T."""
    monkeypatch.setitem(detection_step.PACE, "cpu", ONCE)
    widths = {"channels": 16, "fc_channels": 16, "mask_channels": 16, "rpn_proposals": (20, 20)}
    sizes = {"dim": 8, "depths": (1, 1, 1, 1)}
    monkeypatch.setattr(
        detection_step, "feature_pyramid", lambda variant, img_size: feature_pyramid("dwnet_tiny", **sizes)
    )
    monkeypatch.setattr(detection_step, "with_heads", lambda body, classes: with_heads(body, classes, **widths))
    monkeypatch.setattr(detection_step, "theirs", detection_step.ours)
    assert exit_code(detection_step.run, ["--size", "64", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "detection_step_cpu.json").read_text())["results"]
    assert list(results) == ["training", "inference"]
    for timings in results.values():
        assert list(timings) == ["torchvision", "ours", "torchvision" + AGAIN]
        assert all(timing["median"] > 0 for timing in timings.values())


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"metrics": [{"seconds": 9.0, "img_per_s": 1.0, "correct": 5}]}, []),
        ({"metrics": [{"seconds": 1.0, "correct": 6}]}, ["/metrics/0/correct: 5 and 6"]),
        ({"metrics": []}, ["/metrics: 1 and 0 entries"]),
        ({"weight": torch.tensor([1.0, 0.0])}, ["/weight"]),  # a zero without its sign
        ({"weight": torch.tensor([1.0, -0.0], dtype=torch.float64)}, ["/weight"]),
        ({"weight": torch.tensor([[1.0, -0.0]])}, ["/weight"]),
        ({"weight": None}, ["/weight: tensor([1., -0.]) and None"]),
        ({"loss": 0.1 + 0.2}, ["/loss: 0.3 and 0.30000000000000004"]),
        ({"more": 1}, ["/more: only in one of them"]),
    ],
)
def test_results_are_the_same_to_the_bit_except_for_the_clock(change, names):
    found = {
        "metrics": [{"seconds": 1.0, "correct": 5}],
        "weight": torch.tensor([1.0, -0.0]),
        "scale": torch.tensor(float("nan")),
        "loss": 0.3,
    }
    assert list(differences(found, {**found, **change})) == names


def test_the_loader_of_timm_survives_posterize_of_pillow_13(monkeypatch):
    monkeypatch.setattr(steps, "WORKERS", 1)
    config = small_config("fake:train=8,val=4,classes=2", size=16, AUG__AUTO_AUGMENT="rand-m10-inc1")
    timms = steps.timm_loader(config, steps.data_of(config, CPU), CPU)
    (policy,) = [step for step in timms.dataset.transform.transforms if hasattr(step, "ops")]
    (posterize,) = [op for op in policy.ops if op.name.startswith("Posterize")]
    posterize.prob = 1.0  # magnitude 10 keeps 0 bits
    assert posterize(Image.new("RGB", (2, 2), "white")).getextrema() == ((0, 0),) * 3


def test_operators_and_kernels_find_their_group():
    names = {"aten::addmm": 1, "aten::bmm": 2, "nvjet_tst_128x64": 4, "flash_fwd_kernel": 8, "correlate_kernel": 16}
    names |= {"triton_per_fused_native_layer_norm_3": 32, "aten::native_batch_norm_backward": 64, "aten::copy_": 128}
    groups = {"fused shortcut": 16, "attention": 2 + 8, "linear layers": 1 + 4, "norms": 32 + 64, REST: 128}
    assert by_group(names) == groups


def test_the_time_of_a_step_adds_up(tmp_path, monkeypatch):
    """The groups together are the step; the shortcut's convolutions are there with it only."""
    monkeypatch.setattr(time_shares, "STEPS", {"cpu": 1})
    words = ["--cfg", "configs/demo/digits_shortcut.yaml", "--batch", "8", "--device", "cpu", "--output", str(tmp_path)]
    assert exit_code(time_shares.run, words) == 0
    found = json.loads((tmp_path / "time_shares_cpu_digits_shortcut.json").read_text())["milliseconds"]
    assert list(found) == [time_shares.ORIGINAL, "ours", "no shortcut"]
    assert ["depth-wise convolutions" in groups for groups in found.values()] == [True, True, False]
    assert all(groups["linear layers"] > 0 for groups in found.values())
    assert (tmp_path / "time_shares_cpu_digits_shortcut.png").stat().st_size > 10_000


def test_bytes_of_a_linear_layer_counted_by_hand():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 5, bias=False)

        def forward(self, x):
            return self.linear(x.flatten(1))

    traffic = training_traffic(Model, 7, (2, 2), 5, amp_dtype=None)
    x, weight, y = 7 * 12, 5 * 12, 7 * 5  # forward y = x W^T; backward: W's gradient y^T x; the images need none
    assert traffic.bytes["mm"] == 4 * ((x + weight + y) + (y + x + weight))
    assert traffic.calls["mm"] == 2


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_no_model_moves_more_bytes_than_recorded(name):
    found = traced.measure(name, traced.cases()[name])
    assert 0 < found["bytes"] <= CEILING * RECORDED[name]["bytes"], "python -m benchmarks.bytes records the new figure"


def test_the_picture_shows_every_byte_once(tmp_path):
    for name in traced.DRAWN:
        groups = by_group(RECORDED[name]["by_operator"])
        assert sum(groups.values()) == pytest.approx(RECORDED[name]["bytes"], rel=1e-4)
    draw({"one": groups, "two": groups}, "bytes", tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").stat().st_size > 10_000


def test_a_bar_in_a_cell_makes_no_column():
    assert table(["max |z|"], [[1]]) == "| max \\|z\\| |\n| --- |\n| 1 |"


def test_a_row_for_every_model_is_recorded():
    assert RECORDED.keys() == traced.cases().keys()


@pytest.fixture
def tiny_config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "MODEL: {TYPE: vit_tiny, ARGS: {PATCH_SIZE: 8, DEPTH: 1}, SHORTCUT: {KERNELS: [3]}}\n"
        "DATA: {DATASET: 'fake:train=32,val=10,classes=10', IMG_SIZE: 32, BATCH_SIZE: 4, NUM_WORKERS: 0}\n"
    )
    return path


def test_every_case_of_the_model_step_trains(tiny_config, monkeypatch):
    monkeypatch.setattr(steps, "TIMM", {"vit_tiny": "test_vit"})
    timings = model_step.measure(tiny_config, 4, CPU, ONCE, compiled=False)
    assert list(timings)[:3] == ["timm test_vit, eager", "original's way, shortcut", "ours, plain, eager"]
    assert "ours, shortcut, eager" in timings
    assert not any("compiled" in name or "fused" in name for name in timings)


def test_every_case_from_images_to_weights_trains(tiny_config, monkeypatch):
    monkeypatch.setattr(steps, "TIMM", {"vit_tiny": "test_vit"})
    monkeypatch.setattr(steps, "WORKERS", 1)
    timings, results = end_to_end.measure(tiny_config, 4, CPU, ONCE, [], compiled=False)
    assert {"original's way", "timm test_vit with its loader, eager", "ours, data on the device, eager"} < set(timings)
    assert all(0 <= results[name]["waiting"] <= 1 for name in timings if not name.endswith(AGAIN))
    assert all(results[name].get("idle") is None for name in timings)


def test_the_data_paths_are_all_timed(tiny_config, tmp_path):
    words = ["--cfg", str(tiny_config), "--batch", "4", "--device", "cpu", "--output", str(tmp_path)]
    assert exit_code(loader.run, words) == 0
    results = json.loads((tmp_path / "loader_cpu_tiny.json").read_text())["results"]
    assert list(results) == [*loader.OURS][:3] + [f"timm, {steps.WORKERS} workers", "PIL, one core" + AGAIN]
    assert results[loader.COUNTED]["bytes"] > 4 * 3 * 32 * 32
    assert (tmp_path / "loader_cpu_tiny.md").read_text().count("\n| ") == len(results) + 2


def test_the_same_images_are_found_equal_and_others_not():
    reference = augment_equivalence.collect(iter_images(0.0), 200)
    for shift, equal in ((0.0, True), (0.05, False)):
        found = augment_equivalence.compare(reference, augment_equivalence.collect(iter_images(shift, 1), 200))
        assert (found["mean"]["largest_z"] < 4.0) == equal


def iter_images(shift, seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(100, 3, 8, 8, generator=generator) * 0.5 + shift


def finals(*accuracies):
    return {seed: {"accuracy": a, "correct": int(a // 10), "total": 10} for seed, a in enumerate(accuracies)}


def test_accuracies_are_compared_seed_by_seed():
    found = accuracy.compare({"reference": finals(50.0, 60.0), "device": finals(51.0, 63.0)})
    assert (found["device"]["difference"], found["device"]["mean"]) == (2.0, 57.0)
    # two differences, 1 and 3: standard error 1, and Student's t with one degree of freedom is 12.706
    assert found["device"]["high"] == pytest.approx(2.0 + 12.706, abs=1e-3)
    assert accuracy.rows_of(found)[1] == ["device", "57.00 ± 8.49 % (2)", "11/20", "+2.00 (-10.71 to +14.71)"]
