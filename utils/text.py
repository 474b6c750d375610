"""Text as people's files, names and machines bring it: any script, any encoding, and what cannot be seen."""

import codecs
import io
import os
import sys
import unicodedata
from pathlib import Path

BLANKS = " \t\r\n\f\v"


def escaped(letter):
    r"""The code of a character as Python writes it: `\n`, `\xa0`, `\udce9`, `\U0001f408`."""
    return "\\x20" if letter == " " else letter.encode("unicode_escape").decode()


def printable(text):
    """The text in which what no terminal shows (no-break space, zero width, bytes that are no UTF-8) is a code."""
    return text if text.isprintable() else "".join(one if one.isprintable() else escaped(one) for one in text)


def visible(name):
    """A name in which every difference can be seen: besides `printable`, blanks at its ends or beside other blanks and
    accents that stand apart from their letter (NFD, as macOS stores file names) are codes."""
    apart = unicodedata.normalize("NFC", name) != name

    def shown(place, letter):
        if letter == " ":
            hidden = place in (0, len(name) - 1) or name[place - 1] == " "
        else:
            hidden = not letter.isprintable() or (apart and unicodedata.combining(letter))
        return escaped(letter) if hidden else letter

    return "".join(shown(place, letter) for place, letter in enumerate(name))


def one_line(text):
    """The text, printable, with single blanks for line breaks and runs of blanks."""
    return printable(" ".join(part for part in text.translate(dict.fromkeys(map(ord, BLANKS), " ")).split(" ") if part))


def short_names(names, length, mark="…"):
    """Names, made visible, of at most `length` characters, as different as they are.

    `mark` stands for what is left out: the end of long names, else (with a common beginning) the middle or the
    beginning; where that is not enough, the number of the name takes its place before the mark.
    """
    shown, room = [visible(name) for name in names], length - len(mark)
    for head in (room, room // 2, 0):
        short = [one if len(one) <= length else one[:head] + mark + one[len(one) - room + head :] for one in shown]
        if len(set(short)) == len(set(shown)):
            return short
    return [
        one if len(one) <= length else f"{number}{mark}{one[len(one) - room + len(str(number)) :]}"
        for number, one in enumerate(shown)
    ]


def read_text(path):
    """The text of a file with plain line ends: UTF-8, UTF-16 where its first bytes say so, else Windows' Latin-1.

    Raises OSError.
    """
    content = Path(path).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", "replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def prepare_output():
    """Write what the encoding of stdout or stderr lacks as codes, instead of ending the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def require_utf8():
    """Start this process, which has done nothing yet, again if its locale (C, Latin-1) gives file names another
    encoding than UTF-8: classes would be called otherwise than on other machines. What it prints keeps the locale's."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
