"""Text in pictures: literal, in fonts that have its letters, without a word of matplotlib."""

import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager

from engine.summary import draw_curves
from tasks.classification import Classification
from utils import lettering
from utils.lettering import drawable, fallback, legible, letters


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(text, path):
    """The text of a title in a figure that was saved."""
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(text)
    legible(figure)
    figure.savefig(path)
    return axes.title


@pytest.mark.parametrize("text", ["$CFG_$SEED", "$a_$ $b$_{$", "Grüße\nzwei"])
def test_text_is_literal(text, tmp_path):
    assert drawn(text, tmp_path / "a.png").get_text() == text


def test_a_letter_of_another_font_is_drawn_with_it(tmp_path):
    (path,) = {entry.fname for entry in fontManager.ttflist if entry.name == "STIXGeneral" and entry.style == "normal"
               and entry.weight == 400}  # fmt: skip
    letter = chr(min(code for code in letters(path) - letters(findfont(None)) if chr(code).isprintable()))
    title = drawn(f"a {letter}", tmp_path / "a.svg")
    assert title.get_text() == f"a {letter}"
    assert title.get_fontfamily()[-1] == fallback(letter)
    assert ord(letter) in letters(findfont(fallback(letter)))


def test_a_letter_that_no_font_has_is_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(lettering.fontManager, "ttflist", [])
    fallback.cache_clear()
    assert drawn("猫 \udce9", tmp_path / "a.pdf").get_text() == r"\u732b \udce9"
    assert drawable("a 猫") == r"a \u732b"
    fallback.cache_clear()


def test_curves_have_any_title(tmp_path):
    row = {"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "lr": 0.1, Classification.headline.column: 50.0}
    draw_curves([row], Classification.headline, tmp_path / "curves.png", "$CFG_$SEED 猫 \udce9")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
