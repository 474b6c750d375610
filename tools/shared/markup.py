"""HTML out of plain values: everything is escaped here, pictures go into the page itself."""

import base64
import io
import re
from html import escape
from pathlib import Path
from string import Template

from tools.shared.figures import styled
from utils.lettering import legible

SMALL = 96  # pixels; what is smaller would be blurred beyond recognition
TEMPLATE = Path(__file__).with_name("page.html")


class Markup(str):
    """Text that is HTML already; all other text is escaped."""


def html(value):
    """Markup as it is, anything else escaped."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def join(*parts):
    """Parts below each other; empty ones are left out."""
    return Markup("\n".join(html(part) for part in parts if part))


def element(tag, content, **attributes):
    """`<tag ...>content</tag>`; `class_` stands for class, underscores for hyphens."""
    listed = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for name, v in attributes.items())
    return Markup(f"<{tag}{listed}>{html(content)}</{tag}>")


def table(header, rows, caption):
    """A table in a box that scrolls sideways on narrow screens; the first column names the row."""
    head = element("tr", join(*(element("th", name, scope="col") for name in header)))
    body = [
        element("tr", join(element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])))
        for row in rows
    ]
    content = join(element("caption", caption), element("thead", head), element("tbody", join(*body)))
    return scrolling(element("table", content), caption)


def scrolling(content, label):
    """A box that can be scrolled with the keyboard too."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def details(summary, *content):
    """A part that is folded until it is asked for."""
    return element("details", join(element("summary", summary), *content))


@styled
def picture(figure, description, identity):
    """The figure as SVG in the page, its black turned into the page's text colour.

    description: what a reader who does not see it is told. identity: unique in the page, it keeps the SVG's ids apart.
    """
    legible(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=120)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", text, count=3)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{identity}-", text)
    text = text.replace("#000000", "currentColor")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def thumbnail(image, description):
    """A PIL image in the page, enlarged with hard pixels if it is small."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    look = "pixels" if max(image.size) < SMALL else "smooth"
    return Markup(f'<img class="{look}" src="data:image/png;base64,{data}" alt="{escape(description)}">')


def page(title, *content):
    """The whole document."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=html(title), content=join(*content))
