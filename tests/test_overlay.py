"""tools.overlay: a row for each run under images and true classes; mistakes in one line."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import main
from tests.run_folders import write_run
from tools import overlay
from tools.overlay import Segmented
from tools.shared.runs import read_run

SMALL = {
    "BASE": str(overlay.Path(overlay.__file__).parent.parent / "configs/segmentation/shapes_dwnet_plain.yaml"),
    "DATA": {"DATASET": "shapes:train=8,val=5", "IMG_SIZE": 32, "BATCH_SIZE": 4, "NUM_WORKERS": 0},
    "TRAIN": {"EPOCHS": 1, "WARMUP_EPOCHS": 0},
    "TENSORBOARD": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlay")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    assert main.main(["--cfg", str(folder / "small.yaml"), "--tag", "a", "--output", str(folder)]) == 0
    return folder / "small" / "a"


def test_predictions_are_those_that_the_run_counted(run):
    segmented, row = Segmented(read_run(run)), read_run(run).best
    right = sum(int((segmented.classes(i) == segmented.sample(i).label).sum()) for i in range(5))
    assert right == row["right"]
    assert row["pixels"] == 5 * 32 * 32
    assert overlay.spread(3, len(segmented)) == [0, 2, 4]
    assert overlay.spread(9, len(segmented)) == [0, 1, 2, 3, 4]


def test_a_row_for_each_run(run, tmp_path, capsys):
    sizes = []
    for runs in ([run], [run, run]):
        assert overlay.main([*map(str, runs), "--count", "2", "--output", str(tmp_path / "o.png")]) == 0
        with Image.open(tmp_path / "o.png") as image:
            assert np.asarray(image).std() > 10
            sizes.append(image.size)
    assert sizes[1][1] > sizes[0][1]
    assert str(tmp_path / "o.png") in capsys.readouterr().out


def test_mistakes(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    text = (other / "config.yaml").read_text().replace("val=5", "val=4")
    (other / "config.yaml").write_text(text)
    classifier = write_run(tmp_path, "classifier", 0, [50.0])
    for arguments, said in (
        ([run, other], "another validation set"),
        ([classifier], "TASK classification"),
        ([run, "--names", "a", "b"], "2 names for 1 runs"),
        ([run, "--output", "a.gif"], "a.gif"),
    ):
        assert overlay.main([str(argument) for argument in arguments]) == 64
        assert said in capsys.readouterr().err
