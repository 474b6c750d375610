"""What a check says: one line, and how bad it is."""

from dataclasses import dataclass

OK, WARNING, FAILED = "ok", "warning", "FAILED"
SIGNS = {OK: "ok     ", WARNING: "warning", FAILED: "FAILED "}


@dataclass(frozen=True)
class Finding:
    """`text`: what was found; `advice`: what to do about it; `rows`: further lines, such as a plot in text."""

    level: str
    text: str
    advice: str = ""
    rows: tuple = ()

    def lines(self, name):
        """The finding of the check `name` as lines to print."""
        advice = f" ({self.advice})" if self.advice else ""
        return [f"{SIGNS[self.level]}  {name}: {self.text}{advice}", *(f"         {row}" for row in self.rows)]


def ok(text, rows=()):
    """Nothing to do."""
    return Finding(OK, text, rows=tuple(rows))


def warning(text, advice="", rows=()):
    """Worth knowing; does not fail the check."""
    return Finding(WARNING, text, advice, tuple(rows))


def failed(text, advice="", rows=()):
    """To be mended before a run is started."""
    return Finding(FAILED, text, advice, tuple(rows))


def percent(part, whole):
    """`3 of 200 (1.5 %)`."""
    return f"{part:,} of {whole:,} ({100 * part / whole:.3g} %)"
