"""Bad inputs as a user meets them: main.py must answer with one line, the right code, and leave nothing behind.

INPUTS says which test covers which bad input. The faults that are injected into runs, by their number in
docs/reliability.md: 1-6, 8-14, 16, 18, 20-22, 26-28, 35, 36, 38: test_faults.py; 18, 19, 24, 25: test_checkpoint.py;
30, 31: test_data_loaders.py; 34: test_main.py (1-3 processes), test_data_samplers.py and test_data_loaders.py; 7 (best
and last), 23, 32, 33: here.
"""

import io
import json
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from engine.train import StepSettings, micro_losses
from tasks.classification import Classification
from tests.launch import run, run_here
from tests.tiny import arguments, differences, final_state, write_config
from utils.distributed import World, choose_device
from utils.errors import UnavailableError

INPUTS = {  # bad input -> its test, in this file unless another one is named
    "key typo": "test_configuration[key typo]",
    "flag typo": "test_configuration[flag typo]",
    "wrong type; 5 for 5.0 is fine": "test_config.py::test_types_as_written",
    "null value": "test_configuration[null]",
    "missing file": "test_configuration[no such file]",
    "empty file": "test_configuration[empty file]",
    "duplicate key": "test_configuration[duplicate key]",
    "cyclic BASE": "test_configuration[cyclic BASE]",
    ".py BASE": "test_configuration[BASE is a program]",
    "!!python tag": "test_configuration[python tag]",
    "unknown model": "test_configuration[unknown model]",
    "unknown optimizer": "test_configuration[unknown optimizer]",
    "unknown scheduler": "test_configuration[unknown scheduler]",
    "image % patch": "test_configuration[image against patch]",
    "window does not fit": "test_configuration[image against window]",
    "dim % heads": "test_configuration[width against heads]",
    "len(DEPTHS) against len(HEADS)": "test_configuration[stages]",
    "lr < 0, epochs < 1, p > 1": "test_configuration[negative rate]",
    "warm-up >= epochs": "test_configuration[warm-up]",
    "odd batch with pairwise mixup": "test_configuration[odd batch]",
    "path missing": "test_folders[no such path]",
    "no train/ or val/": "test_folders[no train]",
    "unknown dataset": "test_configuration[unknown dataset]",
    "empty class folder": "test_folders[empty class]",
    "train and val classes differ": "test_folders[classes differ]",
    "folders against NUM_CLASSES": "test_folders[class count]",
    "hidden folder": "test_a_hidden_folder_is_left_out_with_a_warning",
    "flat val/ folder": "test_folders[flat val]",
    "zero-byte file": "test_a_bad_training_image_stops_the_run_and_is_named[zero bytes]",
    "text named .jpg": "test_a_bad_training_image_stops_the_run_and_is_named[text]",
    "truncated JPEG": "test_a_bad_training_image_stops_the_run_and_is_named[truncated]",
    "no read permission": "test_data_images.py::test_missing_and_unreadable_files",
    "grey": "test_odd_images_are_fine[grey.png]",
    "CMYK": "test_odd_images_are_fine[cmyk.jpg]",
    "RGBA": "test_odd_images_are_fine[rgba.png]",
    "16 bit": "test_odd_images_are_fine[deep.png]",
    "EXIF rotation": "test_odd_images_are_fine[turned.jpg]",
    "animated": "test_odd_images_are_fine[film.gif]",
    "palette, LA": "test_odd_images_are_fine[palette.gif]",
    "decompression bomb": "test_a_bad_training_image_stops_the_run_and_is_named[bomb]",
    "label out of range": "test_a_label_outside_the_classes_names_the_file_and_the_range",
    "batch larger than dataset/ranks": "test_folders[batch]",
    "eval without checkpoint": "test_cli.py::test_mistake_is_one_line_with_code_64[--eval]",
    "checkpoint missing": "test_main.py::test_mistakes_are_one_line_and_leave_nothing[absent.pth]",
    "truncated": "test_main.py::test_bad_checkpoints[cut]",
    "checksum differs": "test_main.py::test_bad_checkpoints[flipped]",
    "other architecture": "test_main.py::test_bad_checkpoints[other architecture]",
    "head size differs": "test_main.py::test_bad_checkpoints[other head]",
    "module. stripped": "test_weights_for_evaluation[DataParallel]",
    "EMA-only": "test_main.py::test_bad_checkpoints[only ema]",
    "compiled wrapper stripped": "test_weights_for_evaluation[compiled]",
    "no key matches": "test_weights_for_evaluation[no key matches]",
    "unsafe pickle": "test_main.py::test_bad_checkpoints[unsafe]",
    "HTML page named .pth": "test_main.py::test_bad_checkpoints[html]",
    "safetensors accepted": "test_weights_for_evaluation[safetensors]",
    "resume with changed lr": "test_faults.py::test_resume_with_changed_learning_rate",
    "different world size": "test_faults.py::test_resume_with_another_number_of_ranks",
    "output locked": "test_faults.py::test_second_run_in_the_same_folder",
    "output not writable": "test_main.py::test_output_that_cannot_be_written",
    "port in use": "test_faults.py::test_port_in_use",
    "WORLD_SIZE > devices": "test_too_many_processes",
    "RANK without WORLD_SIZE": "test_main.py::test_an_incomplete_launcher_environment",
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_bad_input_has_a_test(name):
    file, _, test = INPUTS[name].rpartition("::")
    function, _, case = test.rstrip("]").partition("[")
    text = (Path(__file__).parent / (file or Path(__file__).name)).read_text().partition("\nINPUTS = ")
    text = text[0] + text[2].partition("\n}\n")[2]  # without this table
    assert re.search(rf"^def {function}\(", text, re.MULTILINE)
    assert f'"{case}"' in text or not case


def picture(seed, mode="RGB", side=8):
    pixels = np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image_set(root, classes=("ant", "bee"), train=8, val=3):
    """Class folders train/ and val/ with PNG files of 8x8 pixels."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(10 * label + i).save(root / part / name / f"{i}.png")
    return root


def folder_config(tmp_path, root, **changes):
    settings = {"DATA__DATASET": "imagefolder", "DATA__DATA_PATH": str(root), "TRAIN__EPOCHS": 1}
    return write_config(tmp_path, **{**settings, "TRAIN__WARMUP_EPOCHS": 0, **changes})


def check_refused(result, code, *words):
    """One line of at most 200 characters, no traceback, the documented code."""
    assert result.code == code, result.output
    assert "Traceback" not in result.output
    (line,) = result.errors
    assert len(line) <= 200
    for word in words:
        assert word in line, line


CONFIG_CASES = {  # content of a.yaml, options, exit code, words of the line
    "key typo": ("SEED: 1\nTRAIN:\n  EPOCH: 3\n", (), 64, "a.yaml:3", "did you mean TRAIN.EPOCHS?"),
    "flag typo": ("SEED: 1\n", ("--batchsize", "4"), 64, "did you mean --batch-size?"),
    "wrong type": ("TRAIN: {EPOCHS: many}\n", (), 64, "TRAIN.EPOCHS", "a whole number"),
    "null": ("SEED:\n", (), 64, "SEED", "null"),
    "empty file": ("", (), 64, "empty"),
    "duplicate key": ("SEED: 1\nSEED: 2\n", (), 64, "SEED", "1 and 2"),
    "cyclic BASE": ("BASE: a.yaml\n", (), 64, "a.yaml -> a.yaml"),
    "BASE missing": ("BASE: b.yaml\n", (), 66, "b.yaml"),
    "BASE is a program": ("BASE: evil.py\n", (), 64, "Python"),
    "python tag": ("TAG: !!python/object/apply:os.mkdir ['ran']\n", (), 64, "!!python"),
    "unknown model": ("MODEL: {TYPE: swinn_tiny}\n", (), 64, "swinn_tiny", "did you mean swin_tiny?"),
    "unknown dataset": ("DATA: {DATASET: mnist}\n", (), 64, "mnist", "cifar100"),
    "unknown optimizer": ("TRAIN: {OPTIMIZER: {NAME: adamx}}\n", (), 64, "adamx"),
    "unknown scheduler": ("TRAIN: {LR_SCHEDULER: {NAME: plateau}}\n", (), 64, "plateau", "cosine"),
    "image against patch": ("DATA: {IMG_SIZE: 30}\n", (), 64, "30", "16 or 32"),
    "image against window": ("MODEL: {TYPE: swin_tiny}\nDATA: {IMG_SIZE: 96}\n", (), 64, "96"),
    "width against heads": ("MODEL: {ARGS: {DIM: 50, HEADS: 3}}\nDATA: {IMG_SIZE: 32}\n", (), 64, "HEADS"),
    "stages": ("MODEL: {TYPE: swin_tiny, ARGS: {HEADS: [3, 6]}}\nDATA: {IMG_SIZE: 224}\n", (), 64, "HEADS"),
    "unknown argument": ("MODEL: {ARGS: {WINDOW: 7}}\nDATA: {IMG_SIZE: 32}\n", (), 64, "MODEL.ARGS.WINDOW"),
    "negative rate": ("TRAIN: {BASE_LR: -1.0}\n", (), 64, "TRAIN.BASE_LR", "at least 0"),
    "no epochs": ("TRAIN: {EPOCHS: 0}\n", (), 64, "TRAIN.EPOCHS", "at least 1"),
    "probability": ("AUG: {REPROB: 2}\n", (), 64, "AUG.REPROB", "between 0 and 1"),
    "warm-up": ("TRAIN: {EPOCHS: 5, WARMUP_EPOCHS: 5}\n", (), 64, "TRAIN.WARMUP_EPOCHS", "TRAIN.EPOCHS"),
    "odd batch": ("AUG: {MIXUP_MODE: pair}\nDATA: {BATCH_SIZE: 3}\n", (), 64, "DATA.BATCH_SIZE", "even"),
    "batch of 0": ("SEED: 1\n", ("--batch-size", "0"), 64, "DATA.BATCH_SIZE", "--batch-size"),
    "no such file": (None, (), 66, "a.yaml"),
}


@pytest.mark.parametrize("name", CONFIG_CASES)
def test_configuration(tmp_path, capsys, name):
    text, more, code, *words = CONFIG_CASES[name]
    path, output = tmp_path / "a.yaml", tmp_path / "out"
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    if text is not None:
        path.write_text(text.replace("['ran']", f"['{tmp_path / 'ran'}']"))
    result = run_here(arguments(path, output, "--device", "cpu", *more), capsys)
    check_refused(result, code, *words)
    assert not output.exists()
    assert not (tmp_path / "ran").exists()


def remove(path):
    if path.is_dir():
        for entry in path.iterdir():
            remove(entry)
        path.rmdir()
    else:
        path.unlink()


FOLDER_CASES = {  # change of a good set, options, exit code, words of the line
    "no such path": (remove, (), 66, "not found", "train/"),
    "no train": (lambda root: remove(root / "train"), (), 66, "no folder train/", "val"),
    "no val": (lambda root: remove(root / "val"), (), 66, "no folder val/ or test/"),
    "empty class": (lambda root: [remove(f) for f in (root / "train/bee").iterdir()], (), 65, "train/bee"),
    "classes differ": (lambda root: (root / "val/bee").rename(root / "val/bees"), (), 65, "train: bee", "bees"),
    "one class": (lambda root: remove(root / "train/bee"), (), 65, "at least 2"),
    "flat val": (lambda root: picture(1).save(root / "val/a.png"), (), 65, "a.png", "folder per class"),
    "a file": (lambda root: [remove(root), root.write_text("")], (), 65, "a file"),
    "class count": (lambda root: None, ("--opts", "MODEL.NUM_CLASSES", "3"), 65, "MODEL.NUM_CLASSES is 3", "2"),
    "batch": (lambda root: None, ("--batch-size", "17"), 64, "DATA.BATCH_SIZE: 17", "at most 16"),
    "no path": (lambda root: None, ("--data-path", ""), 66, "--data-path"),
    "zip without a map": (lambda root: None, ("--zip",), 66, "not found"),
}


@pytest.mark.parametrize("name", FOLDER_CASES)
def test_folders(tmp_path, capsys, name):
    change, more, code, *words = FOLDER_CASES[name]
    root = image_set(tmp_path / "set")
    change(root)
    result = run_here(arguments(folder_config(tmp_path, root), tmp_path / "out", *more), capsys)
    check_refused(result, code, *words)
    assert not (tmp_path / "out").exists()


def test_a_label_outside_the_classes_names_the_file_and_the_range(tmp_path, capsys):
    for part in ("train", "val"):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as file:
            for i in range(8):
                file.writestr(f"{i}.png", encoded(picture(i), "PNG"))
        labels = [i % 2 for i in range(7)] + [7 if part == "val" else 1]
        (tmp_path / f"{part}_map.txt").write_text("".join(f"{i}.png\t{label}\n" for i, label in enumerate(labels)))
    config = folder_config(tmp_path, tmp_path, DATA__ZIP_MODE=True)
    result = run_here(arguments(config, tmp_path / "out"), capsys)
    check_refused(result, 65, "val.zip", "7.png", "label 7", "0..1")


def test_a_hidden_folder_is_left_out_with_a_warning(tmp_path):
    root = image_set(tmp_path / "set")
    (root / "train" / ".cache").mkdir()
    (result,) = run(arguments(folder_config(tmp_path, root), tmp_path), tmp_path)
    assert result.code == 0, result.output
    assert "warning" in result.output
    assert ".cache" in result.output
    assert final_state(tmp_path)["model"]["head.weight"].shape[0] == 2


def png_header(width, height):
    """A PNG that announces this size and has no pixels."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", data), (b"IDAT", b""), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


TRAINING_IMAGES = {  # content of train/bee/3.png, words
    "zero bytes": (b"", "empty"),
    "text": (b"404 not found", "not an image"),
    "truncated": (encoded(picture(1, side=64), "JPEG")[:700], "truncated"),
    "bomb": (png_header(100_000, 100_000), "too large"),
}


@pytest.mark.parametrize("name", TRAINING_IMAGES)
def test_a_bad_training_image_stops_the_run_and_is_named(tmp_path, name):
    content, word = TRAINING_IMAGES[name]
    root = image_set(tmp_path / "set")
    (root / "train/bee/3.png").write_bytes(content)
    (result,) = run(arguments(folder_config(tmp_path, root), tmp_path), tmp_path)
    check_refused(result, 65, "train/bee/3.png", word)
    assert not list((tmp_path / "tiny/default/checkpoints").iterdir())
    assert json.loads((tmp_path / "tiny/default/exit.json").read_text())["code"] == 65


def test_a_skipped_image_is_said_once_and_ranks_stay_in_step(tmp_path):  # 32
    root = image_set(tmp_path / "set")
    (root / "train/bee/3.png").write_bytes(b"")
    config = folder_config(tmp_path, root, DATA__BAD_IMAGES="skip", TRAIN__EPOCHS=2)
    results = run(arguments(config, tmp_path), tmp_path, ranks=2)
    assert [result.code for result in results] == [0, 0], results[0].output
    said = [line for result in results for line in result.output.splitlines() if "image left out" in line]
    assert all("train/bee/3.png" in line for line in said)
    assert len(said) <= 1  # by rank 0, if it was its image
    assert final_state(tmp_path)["progress"]["step"] == 2


def test_a_bad_validation_image_is_an_error_even_with_skip_and_is_never_counted(tmp_path):  # 33
    root = image_set(tmp_path / "set")
    (root / "val/ant/1.png").write_bytes(b"")
    config = folder_config(tmp_path, root, DATA__BAD_IMAGES="skip")
    (result,) = run(arguments(config, tmp_path), tmp_path)
    check_refused(result, 65, "val/ant/1.png", "empty")
    assert (tmp_path / "tiny/default/metrics.jsonl").read_text() == ""
    assert not (tmp_path / "tiny/default/summary.json").exists()


def test_odd_images_are_fine(tmp_path):
    root = image_set(tmp_path / "set")
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.random.RandomState(0).randint(0, 65536, (8, 8), dtype=np.uint16))
    odd = {
        "grey.png": encoded(picture(1, "L"), "PNG"),
        "cmyk.jpg": encoded(picture(2, "CMYK"), "JPEG"),
        "rgba.png": encoded(picture(3, "RGBA"), "PNG"),
        "la.png": encoded(picture(4, "LA"), "PNG"),
        "palette.gif": encoded(picture(5, "P"), "GIF"),
        "deep.png": encoded(deep, "PNG"),
        "turned.jpg": encoded(picture(6), "JPEG", exif=turned.tobytes()),
        "film.gif": encoded(picture(7), "GIF", save_all=True, append_images=[picture(8)]),
    }
    for name, content in odd.items():
        (root / "train/ant" / name).write_bytes(content)
    config = folder_config(tmp_path, root, AUG__CROP="none", TRAIN__ACCUMULATION_STEPS=1)
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 0, result.output
    assert final_state(tmp_path)["progress"]["step"] == 24 // 4
    assert result.output.count("film.gif") == 1  # the remark about several frames


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(configuration, checkpoint, its count in the log) of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, TRAIN__EMA={"ENABLE": False}, TRAIN__EPOCHS=1)
    (result,) = run(arguments(config, folder), folder)
    assert result.code == 0, result.output
    row = json.loads((folder / "tiny/default/metrics.jsonl").read_text())
    return config, folder / "tiny/default/checkpoints/last.pth", f"({row['correct']}/11), top-5"


WEIGHTS = {  # file name, what is made of the state dict, exit code, words
    "safetensors": ("w.safetensors", lambda model: model, 0, ()),
    "compiled": ("w.pth", lambda model: {f"_orig_mod.{name}": value for name, value in model.items()}, 0, ()),
    "DataParallel": ("w.pth", lambda model: {"model": {f"module.{n}": v for n, v in model.items()}}, 0, ()),
    "no key matches": ("w.pth", lambda model: {f"{name}.x": value for name, value in model.items()}, 78, ("w.pth",)),
    "EMA only": ("w.pth", lambda model: {"model_ema": model}, 78, ("EMA",)),
    "not weights": ("w.pth", lambda model: {"epoch": 3}, 65, ("no weights",)),
    "a list": ("w.pth", lambda model: list(model.values()), 65, ("list",)),
    "one tensor missing": ("w.pth", lambda model: dict(list(model.items())[1:]), 78, ("cls_token",)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_for_evaluation(trained, tmp_path, capsys, name):
    config, checkpoint, count = trained
    file, make, code, words = WEIGHTS[name]
    model = torch.load(checkpoint, weights_only=True)["model"]
    (save_file if file.endswith("safetensors") else torch.save)(make(model), tmp_path / file)
    result = run_here(["--cfg", str(config), "--eval", "--resume", str(tmp_path / file)], capsys)
    if code:
        check_refused(result, code, *words)
        assert "top-1" not in result.output
    else:
        assert result.code == 0, result.output
        assert count in result.output


@pytest.mark.parametrize("more", [(), ("--compile",)])
def test_one_image_where_a_stage_has_one_token_is_one_line(tmp_path, more):
    """BatchNorm of the shortcut has one value per channel then."""
    sizes = {"PATCH_SIZE": 4, "WINDOW_SIZE": 4, "DIM": 8, "DEPTHS": [1, 1, 1, 1], "HEADS": [1, 1, 1, 1]}
    model = {"TYPE": "swin_tiny", "NAME": "tiny", "ARGS": sizes, "SHORTCUT": {"KERNELS": [3]}}
    config = write_config(tmp_path, MODEL=model, DATA__IMG_SIZE=32, AUG__MIXUP_PROB=0.0)
    (result,) = run(arguments(config, tmp_path, "--batch-size", "1", *more), tmp_path)
    check_refused(result, 64, "DATA.BATCH_SIZE: 1", "at least 2", "DATA.IMG_SIZE")
    assert json.loads((tmp_path / "tiny/default/exit.json").read_text())["code"] == 64


def test_a_run_without_auto_resume_does_not_overwrite_another(trained, tmp_path):
    config, checkpoint, _ = trained
    before = checkpoint.read_bytes()
    more = ("--opts", "TRAIN.AUTO_RESUME", "False")
    (result,) = run(arguments(config, checkpoint.parents[3], *more), tmp_path)
    check_refused(result, 73, "already holds a run", "--tag")
    assert checkpoint.read_bytes() == before


def test_too_many_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UnavailableError, match="3 processes on this host but 2 CUDA devices") as caught:
        choose_device("auto", local_rank=0, local_size=3)
    assert caught.value.exit_code == 69


def test_no_space_for_the_log_alone(tmp_path):  # 23
    config = write_config(tmp_path, TRAIN__EPOCHS=1)
    (tmp_path / "tiny/default").mkdir(parents=True)
    (tmp_path / "tiny/default/log.txt").symlink_to("/dev/full")
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 0, result.output
    assert result.output.count("warning: log.txt cannot be written") == 1
    assert (tmp_path / "tiny/default/summary.json").exists()


def test_kill_between_last_and_best_does_not_lose_the_best(tmp_path):  # 7
    config = write_config(tmp_path, DATA__VAL_SPLIT=0.25)
    (killed,) = run(arguments(config, tmp_path), tmp_path, fault=("kill_before_rename", {"save": 2}))
    assert killed.code == -9
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 0, result.output
    history = final_state(tmp_path)["progress"]["history"]
    best = final_state(tmp_path, "best.pth")["progress"]["history"][-1]
    assert best == max(history, key=lambda row: row["correct"])


def test_exit_file_agrees_with_the_exit_code_of_a_survivor(tmp_path):
    config = write_config(tmp_path)
    fault = ("kill_at_step", {"step": 1, "ranks": (1,)})
    results = run(arguments(config, tmp_path), tmp_path, ranks=2, fault=fault)
    assert results[0].code == 77
    told = json.loads((tmp_path / "tiny/default/exit.json").read_text())
    assert told == {"class": "hang", "code": 77, "retryable": True}


def test_other_classes_are_refused_on_resume(tmp_path):
    first, second = image_set(tmp_path / "a", ("ant", "bee")), image_set(tmp_path / "b", ("cat", "dog"))
    fault = ("signal_at_step", {"step": 0, "name": "SIGUSR1"})
    (stopped,) = run(arguments(folder_config(tmp_path, first), tmp_path), tmp_path, fault=fault)
    assert stopped.code == 75
    (result,) = run(arguments(folder_config(tmp_path, second), tmp_path), tmp_path)
    check_refused(result, 78, "cat")


def test_ema_that_is_added_on_resume_starts_from_the_resumed_weights(trained, tmp_path):
    config, checkpoint, _ = trained
    added = ("TRAIN.EMA.ENABLE", "True", "TRAIN.EMA.DECAY", "1.0", "TRAIN.EPOCHS", "2", "TRAIN.ALLOW_CHANGES", "True")
    (result,) = run(arguments(config, tmp_path, "--resume", str(checkpoint), "--opts", *added), tmp_path)
    assert result.code == 0, result.output
    resumed, ema = torch.load(checkpoint, weights_only=True)["model"], final_state(tmp_path)["ema"]
    changed = differences(resumed, ema)
    assert [name for name in changed if not name.endswith("num_batches_tracked")] == []


def test_nan_loss_stops_float16_within_one_step(tmp_path):  # 28
    config = write_config(tmp_path, TRAIN__EPOCHS=5)
    fault = ("nan_loss", {"steps": list(range(2, 100))})
    (result,) = run(arguments(config, tmp_path, "--amp-dtype", "float16"), tmp_path, fault=fault)
    check_refused(result, 76, "step 2")


def test_metrics_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "tiny/default/metrics.jsonl").mkdir(parents=True)
    (result,) = run(arguments(write_config(tmp_path), tmp_path), tmp_path)
    check_refused(result, 74, "metrics.jsonl")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["fusedadam", "bnbadamw", "adahessian"])
def test_optimizers_that_cannot_work_here_are_one_line(tmp_path, name):
    (result,) = run(arguments(write_config(tmp_path), tmp_path / "out", "--optim", name), tmp_path)
    check_refused(result, 64, "TRAIN.OPTIMIZER.NAME", name)
    assert not (tmp_path / "out").exists()


def test_a_port_that_is_no_number(tmp_path):
    processes = run(arguments(write_config(tmp_path), tmp_path / "out"), tmp_path, ranks=2, port="many")
    assert processes[0].code == 64, processes[0].output
    check_refused(processes[0], 64, "MASTER_PORT")


def test_schedule_counts_optimizer_steps_in_a_run(tmp_path):
    """9 micro-batches by 2 are 5 steps an epoch, 10 in all, of which round(0.5 * 5) = 2 warm up."""
    (result,) = run(arguments(write_config(tmp_path), tmp_path), tmp_path)
    assert result.code == 0, result.output
    rates = [row["lr"] for row in final_state(tmp_path)["progress"]["history"]]
    expected = [5e-6 + (5e-4 - 5e-6) * 0.5 * (1 + np.cos(np.pi * (step - 2) / 8)) for step in (4, 9)]
    assert rates == pytest.approx(expected)


def test_which_checkpoints_are_kept_and_when_they_are_written(tmp_path):
    config = write_config(tmp_path, TRAIN__EPOCHS=7, SAVE={"EPOCHS": 2, "KEEP": 2, "MINUTES": 1e-6})
    fault = ("kill_at_step", {"step": 34})  # the last step: what was saved inside the epoch is there
    (killed,) = run(arguments(config, tmp_path), tmp_path, fault=fault)
    assert killed.code == -9
    names = {path.name for path in (tmp_path / "tiny/default/checkpoints").iterdir()}
    assert names == {"last.pth", "previous.pth", "best.pth", "epoch_3.pth", "epoch_5.pth"}
    assert final_state(tmp_path)["progress"]["step"] == 34


def test_float16_with_loss_scaling_is_resumed_bit_for_bit(tmp_path):
    fault = ("signal_at_step", {"step": 3, "name": "SIGTERM"})
    for name, faults in (("whole", [None]), ("stopped", [fault, None])):
        folder = tmp_path / name
        config = write_config(folder)
        for fault in faults:
            (result,) = run(arguments(config, folder, "--amp-dtype", "float16"), folder, fault=fault)
            assert result.code == (143 if fault else 0), result.output
    whole = final_state(tmp_path / "whole")
    assert whole["scaler"]["_growth_tracker"] == 10
    assert differences(whole, final_state(tmp_path / "stopped")) == []


def test_every_step_micro_batch_and_rank_draws_its_own_randomness():
    """Dropout (torch's generator) and mixing (the key) of 2 steps x 2 micro-batches x 2 ranks: 8 different ones."""
    keys, drawn = set(), set()

    class Noted:
        def inputs(self, batch, key, device, dtype):
            keys.add(key)
            return batch

    batch = torch.zeros(1), torch.zeros(1)
    for step, micro, rank in np.ndindex(2, 2, 2):
        settings = StepSettings(World(torch.device("cpu"), rank, 2))
        loss, _ = micro_losses(None, Noted(), settings, (step, micro), batch, lambda *_: (torch.rand(1), {}))
        drawn.add(float(loss))
    assert len(keys) == len(drawn) == 8


def test_best_is_the_first_epoch_with_the_most_correct_images():
    history = [{"epoch": epoch, "correct": correct} for epoch, correct in enumerate((3, 5, 5, 4))]
    assert Classification.headline.best(history)["epoch"] == 1
