"""tools.pack: what it writes is the same data set, byte by byte, and what is whole is not written again."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
import webdataset

from data.datasets.shards import MANIFEST
from tests import launch
from tests.helpers_data import class_folders, encoded, noise, sources
from tests.tiny import arguments, differences, final_state, write_config
from tools import pack

CLASSES = ("ant", "bee", "cat")
READERS = {"tar": "webdataset", "parquet": "parquet"}


@pytest.fixture
def folders(tmp_path):
    """Class folders of 4 images, one of them a JPEG that is called .png."""
    root = class_folders(tmp_path / "folders")
    (root / "train" / "ant" / "1.png").write_bytes(encoded(noise(7), "JPEG"))
    return root


def run(output, dataset, path="", *words):
    """The exit code of the tool."""
    cfg = output.parent / "pack.yaml"
    cfg.write_text(f"DATA:\n  DATASET: {dataset}\n")
    place = ["--data-path", str(path)] if path else []
    return pack.main(["--cfg", str(cfg), *place, "--output", str(output), *words])


def state(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("kind", READERS)
def test_files_stay_as_they_are(folders, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "packed" / "set"
    output.parent.mkdir()
    assert run(output, "imagefolder", folders, "--format", kind, "--images", "5") == 0
    found, expected = sources(READERS[kind], output), sources("imagefolder", folders)
    assert found.info.class_names == CLASSES
    for part in ("train", "val"):
        packed, images = getattr(found, part), getattr(expected, part)
        assert packed.labels.tolist() == images.labels.tolist()
        assert [packed.content(i) for i in range(12)] == [images.content(i) for i in range(12)]
    manifest = json.loads((output / MANIFEST).read_text())
    assert (manifest["classes"], manifest["images"]) == (list(CLASSES), {"train": 12, "val": 12})
    assert [shard["images"] for shard in manifest["shards"].values()] == [5, 5, 2] * 2
    for name, shard in manifest["shards"].items():
        content = (output / name).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_pixels_become_png_and_a_packed_set_can_be_packed_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "one", "fake:train=6,val=4,classes=2", "", "--opts", "DATA.IMG_SIZE", "16") == 0
    assert run(tmp_path / "two", "webdataset", tmp_path / "one", "--format", "parquet") == 0
    assert run(tmp_path / "three", "parquet", tmp_path / "two") == 0
    one, three = (sources("webdataset", tmp_path / name) for name in ("one", "three"))
    assert one.info.class_names == three.info.class_names == ("class0", "class1")
    assert [one.train.content(i) for i in range(6)] == [three.train.content(i) for i in range(6)]
    assert three.val.name(3).endswith("val-000000.tar@/000000003.png")
    shards = [tmp_path / name / "train-000000.tar" for name in ("one", "three")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_other_libraries_read_it(folders, tmp_path):
    assert run(tmp_path / "tar", "imagefolder", folders) == 0
    assert run(tmp_path / "table", "imagefolder", folders, "--format", "parquet") == 0
    expected = sources("imagefolder", folders).train
    stream = webdataset.WebDataset(str(tmp_path / "tar" / "train-000000.tar"), shardshuffle=False)
    found = [(sample.get("png", sample.get("jpg")), int(sample["cls"])) for sample in stream]
    assert found == [(expected.content(i), expected.labels[i]) for i in range(12)]
    files = {"train": str(tmp_path / "table" / "train-000000.parquet")}
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hub"))["train"]
    assert table.features["label"].names == list(CLASSES)
    assert table[11]["label"] == 2
    assert table[11]["image"].convert("RGB").tobytes() == expected.load(11).tobytes()


def test_started_again_it_keeps_what_is_whole(folders, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = output, "imagefolder", folders, "--images", "5"
    assert run(*arguments) == 0
    before, content = state(output), (output / "train-000001.tar").read_bytes()
    assert run(*arguments) == 0
    assert state(output) == before
    assert "6 files, 6 of them kept" in capsys.readouterr().out
    (output / "train-000001.tar").write_bytes(content[:-1] + b"x")  # as long as before
    (output / "val-000002.tar").unlink()
    assert run(*arguments) == 0
    assert "6 files, 4 of them kept" in capsys.readouterr().out
    assert (output / "train-000001.tar").read_bytes() == content
    changed = {name for name, time in state(output).items() if time != before[name]}
    assert changed == {"train-000001.tar", "val-000002.tar", MANIFEST}


def test_a_killed_command_leaves_whole_files_and_goes_on(folders, tmp_path, capsys):
    """Killed while it reads the eighth image: the second file is half written."""
    output, cfg = tmp_path / "out", tmp_path / "pack.yaml"
    cfg.write_text("DATA:\n  DATASET: imagefolder\n")
    words = ["--cfg", str(cfg), "--data-path", str(folders), "--output", str(output), "--images", "5"]
    program = f"""
import os
from tools import pack
read = pack.image_file
pack.image_file = lambda images, index: os.kill(os.getpid(), 9) if index == 7 else read(images, index)
pack.main({words!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(pack.__file__).parent.parent, check=False)
    assert killed.returncode == -9
    assert (output / ".train-000001.tmp.tar").exists()
    assert sorted(path.name for path in output.glob("[a-z]*")) == [MANIFEST, "train-000000.tar"]
    os.link(output / "train-000000.tar", output / "val-000000.tar")  # a part of each, to see that the count is missed
    assert pack.main(["--cfg", str(cfg), "--data-path", str(output), "--opts", "DATA.DATASET", "webdataset",
                      "--output", str(tmp_path / "other")]) == 65  # fmt: skip
    assert "5 of 24 images are packed" in capsys.readouterr().err
    (output / "val-000000.tar").unlink()
    assert pack.main(words) == 0
    assert "6 files, 1 of them kept" in capsys.readouterr().out
    expected, found = sources("imagefolder", folders), sources("webdataset", output)
    assert [found.train.content(i) for i in range(12)] == [expected.train.content(i) for i in range(12)]


def test_a_killed_training_on_shards_ends_as_one_on_the_folders(folders, tmp_path):
    keys = {"DATA__BATCH_SIZE": 2, "DATA__NUM_WORKERS": 1, "TRAIN__ACCUMULATION_STEPS": 1}
    config = write_config(tmp_path, DATA__DATASET="imagefolder", **keys)
    assert run(tmp_path / "shards", "imagefolder", folders, "--images", "5") == 0

    def train(output, form, path, **more):
        words = arguments(config, tmp_path / output, "--data-path", str(path))
        opts = ["--opts", "SAVE.STEPS", "1", "DATA.DATASET", form]
        return [result.code for result in launch.run([*words, *opts], tmp_path, ranks=2, **more)]

    assert train("whole", "imagefolder", folders) == [0, 0]
    killed = train("killed", "webdataset", tmp_path / "shards", fault=("kill_at_step", {"step": 4, "ranks": (0, 1)}))
    assert killed == [-9, -9]
    assert train("killed", "webdataset", tmp_path / "shards") == [0, 0]
    whole, killed = (final_state(tmp_path / name) for name in ("whole", "killed"))
    assert differences(*({**state, "data": None} for state in (whole, killed))) == []  # "data": names of the images


def file_there(output, folders):
    output.write_text("")


def other_manifest(output, folders):
    output.mkdir()
    (output / MANIFEST).write_text("{}")


def changed_image(output, folders):
    assert run(output, "imagefolder", folders) == 0
    os.utime(folders / "train" / "bee" / "0.png", (1, 1))


def broken_image(output, folders):
    (folders / "train" / "bee" / "0.png").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("change", "words", "code", "text"),
    [
        (file_there, [], 73, "cannot be created"),
        (other_manifest, [], 64, "holds another dataset"),
        (changed_image, [], 64, "files that have changed"),
        (changed_image, ["--images", "7"], 64, "other settings"),
        (broken_image, [], 65, "train/bee/0.png: not an image"),
        (None, ["--images", "0"], 64, "--images"),
        (None, ["--format", "zip"], 64, "--format"),
        (None, ["--opts", "TASK", "detection"], 64, "images with a class each"),
        (None, ["--opts", "DATA.DATASET", "imagefolders"], 64, "unknown dataset 'imagefolders'"),
        (None, ["--opts", "DATA.DATASET", "webdataset"], 66, "needs tar files"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folders, tmp_path, capsys, change, words, code, text):
    output = tmp_path / "out"
    if change:
        change(output, folders)
        capsys.readouterr()
    assert run(output, "imagefolder", folders, *words) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def test_without_pyarrow_and_without_a_configuration(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(tmp_path / "out", "imagefolder", folders, "--format", "parquet") == 69
    assert "pip install" in capsys.readouterr().err
    assert pack.main(["--output", str(tmp_path / "out")]) == 64
    assert not (tmp_path / "out").exists()


def test_two_commands_do_not_write_into_one_folder(folders, tmp_path):
    output = tmp_path / "out"
    program = f"""
from utils.files import FileLock
lock = FileLock({str(output / ".pack.lock")!r})
print(lock.take(), flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=Path(pack.__file__).parent.parent,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # fmt: skip
        other.stdout.readline()
        assert run(output, "imagefolder", folders) == 73
        other.communicate(b"\n")
    assert run(output, "imagefolder", folders) == 0


def test_the_ending_is_that_of_the_content(folders, tmp_path):
    assert run(tmp_path / "out", "imagefolder", folders) == 0
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        names = archive.getnames()
    assert names[:4] == ["000000000.png", "000000000.cls", "000000001.jpg", "000000001.cls"]
