"""A checkpoint on its validation set, and what is drawn of it: against the run's own counts and a slow loop."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.base import ArrayImages
from tests import tiny
from tests.launch import run
from tools.plot import main
from tools.shared.behaviour import (
    confusion_figure,
    confusions,
    error_sets,
    errors_figure,
    learned_scales,
    most_confused,
)
from tools.shared.runs import read_run
from tools.shared.trained import Predictions, load_model, predict_checkpoint
from utils.errors import ConfigError, MismatchError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    config = tiny.write_config(folder, MODEL__SHORTCUT__LEARNED_SCALE=True)
    assert run(tiny.arguments(config, folder), folder)[0].code == 0
    return read_run(folder / "tiny" / "default")


@pytest.fixture
def by_hand():
    """Five images of three classes; the third is sure and wrong, the fifth unsure and wrong, the fourth only unsure."""
    odds = torch.tensor([[0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.99, 0.01], [0.3, 0.3, 0.4], [0.4, 0.35, 0.25]])
    labels = torch.tensor([0, 1, 2, 2, 1])
    pixels = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    images = ArrayImages(pixels, labels.numpy(), "hand")
    names = ("cat", "dog", "a$b_" * 6)
    loaded = SimpleNamespace(path="best.pth", name="by/hand", epochs=1, class_names=names)
    return Predictions(loaded, images, torch.arange(5), labels, logits=odds.log())


def test_the_counts_are_the_logged_ones(finished):
    predictions = predict_checkpoint(finished.checkpoint("last.pth"), device="cpu")
    row = finished.rows[-1]
    assert (predictions.correct, len(predictions.labels)) == (row["correct"], row["total"])
    assert predictions.losses.mean().item() == pytest.approx(row["val_loss"], rel=1e-5)
    assert (predictions.loaded.epochs, predictions.loaded.class_names) == (2, ("class0", "class1", "class2", "class3"))


def test_every_image_gets_its_own_probabilities(finished):
    """One image at a time, through PIL, in another batch size and order of work."""
    path = finished.checkpoint("last.pth")
    predictions = predict_checkpoint(path, device="cpu", batch_size=3)
    loaded = load_model(path, device="cpu")
    for position, index in enumerate(predictions.indices.tolist()):
        image, label = predictions.images[index]
        with torch.inference_mode():
            odds = loaded.model(loaded.transform(image)[None])[0].softmax(dim=0)
        assert torch.allclose(predictions.probabilities[position], odds, atol=1e-6)
        assert predictions.losses[position].item() == pytest.approx(-odds[label].log().item(), abs=1e-5)


def test_what_does_not_fit_is_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="the run has no test images, only train, val"):
        predict_checkpoint(finished.checkpoint(), device="cpu", part="test")
    payload = torch.load(finished.checkpoint(), weights_only=True)
    payload["data"]["classes"][1] = "horse"
    torch.save(payload, tmp_path / "other.pth")
    with pytest.raises(MismatchError, match="'horse' there, 'class1' here"):
        predict_checkpoint(tmp_path / "other.pth", device="cpu")


def test_confusions_are_those_counted_by_hand(by_hand):
    assert confusions(by_hand).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert most_confused(by_hand) == [(1, 0, 1, 2), (2, 1, 1, 2)]
    figure = confusion_figure(by_hand)
    cells = {tuple(text.get_position()): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(0, 0): "1", (0, 1): "1", (1, 1): "1", (1, 2): "1", (2, 2): "1"}
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", "dog", "a$b_a$b_a$b_…"]


def test_worst_and_surest_errors(by_hand):
    worst, surest = error_sets(by_hand, 3).values()
    assert (worst.tolist(), surest.tolist()) == ([2, 4, 3], [2, 4])
    assert by_hand.losses.tolist() == pytest.approx([-np.log(p) for p in (0.9, 1, 0.01, 0.4, 0.35)])
    figure = errors_figure(by_hand, 3)
    captions = [axes.get_xlabel() for box in figure.subfigs for axes in box.axes]
    assert captions[0] == "true: a$b_a$b_a$b_… (1.0%)\nsaid: dog (99.0%)"
    assert captions[2] == "true: a$b_a$b_a$b_… (40.0%)\nright"
    assert np.array_equal(figure.subfigs[1].axes[1].images[0].get_array(), by_hand.images.pixels[4])


def test_learned_scales_are_those_in_the_file(finished, tmp_path, capsys):
    stored = torch.load(finished.checkpoint(), weights_only=True)["ema"]  # TEST.WEIGHTS auto
    wanted = [stored[f"stack.shortcuts.{i}.scale"].item() for i in range(2)]
    assert learned_scales(load_model(finished.checkpoint(), device="cpu").model) == wanted
    assert wanted[0] != 1
    path = tmp_path / "scales.svg"
    assert main(["scales", str(finished.path), str(finished.checkpoint("last.pth")), "--output", str(path)]) == 0
    assert path.read_text().startswith("<?xml")


def test_a_model_without_scales_is_one_line(tmp_path, capsys):
    config = tiny.write_config(tmp_path, TRAIN__EPOCHS=1)
    assert run(tiny.arguments(config, tmp_path), tmp_path)[0].code == 0
    assert main(["scales", str(tmp_path / "tiny" / "default")]) == 78
    line = capsys.readouterr().err
    assert line == ("error[checkpoint] tiny/default: no learned shortcut scales; "
                    "train with MODEL.SHORTCUT.LEARNED_SCALE True\n")  # fmt: skip


@pytest.mark.parametrize("kind", ["confusion", "errors"])
def test_pictures_of_a_checkpoint(finished, tmp_path, capsys, kind):
    path = tmp_path / f"{kind}.png"
    assert main([kind, str(finished.path), "--device", "cpu", "--output", str(path)]) == 0
    assert Image.open(path).size[0] > 400
    printed = capsys.readouterr().out
    assert f"best.pth: {max(row['correct'] for row in finished.rows)} of 11 right" in printed
    assert ("taken for" if kind == "confusion" else "fake/val[") in printed
