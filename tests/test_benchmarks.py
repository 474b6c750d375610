"""The benchmarks measure what they say; the traced bytes of every model stay where they were."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import accuracy, against, augment_equivalence, end_to_end, loader, model_step, time_shares
from benchmarks import bytes as traced
from benchmarks.bars import REST, by_group, draw
from benchmarks.protocol import AGAIN, Timing, interleaved, ratio_text, spread
from benchmarks.record import RESULTS, table
from benchmarks.traffic import training_traffic
from data.build import build_data
from tests.helpers_data import silent, small_config
from tests.small import small

CPU = torch.device("cpu")
CEILING = 1.03
RECORDED = json.loads((RESULTS / "bytes.json").read_text())["models"]


def test_blocks_are_interleaved_forwards_and_backwards():
    calls = []
    timings = interleaved(
        {name: lambda name=name: calls.append(name) for name in "ab"}, 8, CPU, warmup=2, blocks=2, steps=3
    )
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

    pace = {"warmup": 5, "blocks": 2, "steps": 3, "seconds": seconds}
    assert interleaved({"a": step}, 8, CPU, settle=4, **pace)["a"].median == 8
    assert interleaved({"a": step}, 8, CPU, **pace)["a"].median > 1e9


def test_a_difference_within_the_clocks_own_is_none():
    timings = {name: Timing(rate, rate, rate, 0) for name, rate in (("a", 100), ("b", 150), ("a" + AGAIN, 96))}
    assert spread(timings) == pytest.approx(0.04)
    assert ratio_text(timings["b"], timings["a"], 0.04) == "1.50"
    assert ratio_text(Timing(103, 103, 103, 0), timings["a"], 0.04) == "no difference"


def test_two_checkouts_are_timed_against_each_other(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(against, "PACE", {"warmup": 1, "blocks": 1, "steps": 1})
    cfg, root = "configs/demo/digits_plain.yaml", str(against.ROOT)
    assert against.main(["--other", root, "--cfg", cfg, "--batch", "4", "--output", str(tmp_path)]) == 0
    timings = json.loads((tmp_path / "against_cpu.json").read_text())["results"][cfg]
    assert list(timings) == ["this", "other", "this" + AGAIN]
    assert all(timing["median"] > 0 for timing in timings.values())
    assert against.main(["--other", str(tmp_path)]) == against.main(["--other", root, "--cfg", "a.yaml"]) == 66
    assert "a.yaml: not a file of both checkouts" in capsys.readouterr().err


def test_the_loader_of_timm_survives_posterize_of_pillow_13():
    config = small_config("fake:train=8,val=4,classes=2", size=16, AUG__AUTO_AUGMENT="rand-m10-inc1")
    loader = end_to_end.timm_loader(config, build_data(config, log=silent), CPU)
    (policy,) = [step for step in loader.dataset.transform.transforms if hasattr(step, "ops")]
    (posterize,) = [op for op in policy.ops if op.name.startswith("Posterize")]
    posterize.prob = 1.0  # magnitude 10 keeps 0 bits
    assert posterize(Image.new("RGB", (2, 2), "white")).getextrema() == ((0, 0),) * 3


def test_operators_and_kernels_find_their_group():
    names = {"aten::addmm": 1, "aten::bmm": 2, "nvjet_tst_128x64": 4, "flash_fwd_kernel": 8, "correlate_kernel": 16}
    names |= {"triton_per_fused_native_layer_norm_3": 32, "aten::native_batch_norm_backward": 64, "aten::copy_": 128}
    groups = {"fused shortcut": 16, "attention": 2 + 8, "linear layers": 1 + 4, "norms": 32 + 64, REST: 128}
    assert by_group(names) == groups


def test_the_time_of_a_step_adds_up(tmp_path):
    """The groups together are the step; the shortcut's convolutions are there with it only."""
    words = ["--cfg", "configs/demo/digits_shortcut.yaml", "--batch", "8", "--device", "cpu", "--output", str(tmp_path)]
    assert time_shares.main(words) == 0
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
    cases = traced.cases()
    written_out = ", attention written out"
    found = traced.measure(cases[name.removesuffix(written_out)], name.endswith(written_out))
    assert found["bytes"] <= CEILING * RECORDED[name]["bytes"], "python -m benchmarks.bytes records the new figure"


def test_the_picture_shows_every_byte_once(tmp_path):
    for name in traced.DRAWN:
        groups = by_group(RECORDED[name]["by_operator"])
        assert sum(groups.values()) == pytest.approx(RECORDED[name]["bytes"], rel=1e-4)
    draw({"one": groups, "two": groups}, "bytes", tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").stat().st_size > 10_000


def test_a_bar_in_a_cell_makes_no_column():
    assert table(["max |z|"], [[1]]) == "| max \\|z\\| |\n| --- |\n| 1 |"


def test_a_row_for_every_model_is_recorded():
    assert len(RECORDED) == len(traced.cases()) + 1


@pytest.fixture
def tiny_config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "MODEL: {TYPE: vit_tiny, ARGS: {PATCH_SIZE: 8, DEPTH: 1}, SHORTCUT: {KERNELS: [3]}}\n"
        "DATA: {DATASET: 'fake:train=32,val=10,classes=10', IMG_SIZE: 32, BATCH_SIZE: 4, NUM_WORKERS: 0}\n"
    )
    return path


def test_every_case_of_the_model_step_trains(tiny_config, monkeypatch):
    monkeypatch.setattr(model_step, "TIMM", {"vit_tiny": "test_vit"})
    pace = {"warmup": 1, "blocks": 1, "steps": 1}
    timings = model_step.measure(tiny_config, 4, CPU, pace, compiled=False)
    assert list(timings)[:3] == ["timm test_vit, eager", "original's way, shortcut", "ours, plain, eager"]
    rows = model_step.rows_of(4, timings)
    assert table(["batch", *"abcde"], rows).count("\n") == len(timings) + 1


def test_every_case_from_images_to_weights_trains(tiny_config, monkeypatch):
    monkeypatch.setattr(end_to_end, "TIMM", {"vit_tiny": "test_vit"})
    pace = {"warmup": 1, "blocks": 1, "steps": 1}
    timings, results = end_to_end.measure(tiny_config, 4, CPU, pace, [], compiled=False)
    assert "ours, data on the device, eager" in timings
    assert all(0 <= results[name]["waiting"] <= 1 for name in timings if not name.endswith(AGAIN))
    assert all(row[-1] == "-" for row in end_to_end.rows_of(4, timings, results))


def test_the_data_paths_are_all_timed(tiny_config, monkeypatch):
    monkeypatch.setattr(loader, "worker_count", lambda *_: 1)
    timings, results = loader.measure(tiny_config, 4, CPU, {"warmup": 1, "blocks": 1, "steps": 1}, [])
    assert {"PIL, one core", "PIL, 1 workers", "device, plain PyTorch", "timm, 1 workers"} < set(timings)
    assert results["device, plain PyTorch"]["bytes"] > 4 * 3 * 32 * 32
    assert len(loader.rows_of(timings, results)) == len(timings)


def test_the_same_images_are_found_equal_and_others_not():
    reference = augment_equivalence.collect(iter_images(0.0), 200)
    for shift, equal in ((0.0, True), (0.05, False)):
        found = augment_equivalence.compare(reference, augment_equivalence.collect(iter_images(shift, 1), 200))
        assert (found["mean"]["largest_z"] < 4.0) == equal


def iter_images(shift, seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(100, 3, 8, 8, generator=generator) * 0.5 + shift, None


def test_small_models_have_small_traffic():
    small_traffic = training_traffic(lambda: small("vit_tiny"), 4, (32, 32), 5)
    assert 0 < small_traffic.total / 4 < RECORDED["ViT-Tiny"]["bytes"] / 50


def finals(*accuracies):
    return {seed: {"accuracy": a, "correct": int(a // 10), "total": 10} for seed, a in enumerate(accuracies)}


def test_accuracies_are_compared_seed_by_seed():
    found = accuracy.compare({"reference": finals(50.0, 60.0), "device": finals(51.0, 63.0)})
    assert (found["device"]["difference"], found["device"]["mean"]) == (2.0, 57.0)
    # two differences, 1 and 3: standard error 1, and Student's t with one degree of freedom is 12.706
    assert found["device"]["high"] == pytest.approx(2.0 + 12.706, abs=1e-3)
    assert accuracy.rows_of(found)[1] == ["device", "57.00 ± 8.49 % (2)", "11/20", "+2.00 (-10.71 to +14.71)"]
