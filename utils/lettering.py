"""Text in pictures, in any script: fonts that have its letters, and codes for letters that no installed font has."""

from functools import cache

from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text

from utils.text import escaped

UNFIT = ("Last Resort", "cm")  # matplotlib's fonts of boxes, and of formulas with codes of their own


def legible(figure):
    r"""Prepare a figure to be saved: every text is literal ($ is a $) and in fonts that have its letters.

    A letter that none has is written as its code, `\u732b`. Labels of ticks are made when a figure is drawn: what goes
    there goes through `drawable` first.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        own = letters(findfont(text.get_fontproperties()))
        lacking = [letter for letter in text.get_text() if ord(letter) not in own and letter != "\n"]
        families = dict.fromkeys(map(fallback, lacking))
        text.set_fontfamily([*text.get_fontfamily(), *filter(None, families)])
        text.set_text(drawable(text.get_text()))


def drawable(text):
    """The text with codes for the letters that no installed font has."""
    own = letters(findfont(None))
    return "".join(
        letter if letter == "\n" or ord(letter) in own or fallback(letter) else escaped(letter) for letter in text
    )


@cache
def fallback(letter):
    """The family of the first installed font that has a letter, '' if there is none."""
    entries = (entry for entry in fontManager.ttflist if not entry.name.startswith(UNFIT))
    return next((entry.name for entry in entries if ord(letter) in letters(entry.fname)), "")


@cache
def letters(path):
    """Codes of the letters of a font file; none if matplotlib cannot use it (coloured emoji, for instance)."""
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
