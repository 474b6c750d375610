"""The report is one file that needs nothing else, says what the runs say, and cannot be broken by a name."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from tests import tiny
from tests.launch import run
from tests.run_folders import write_run
from tools.report import main
from tools.shared.markup import Markup, element, html, table

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags with attributes, visible text, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack, self.words = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The report of a real run with learned scales."""
    folder = tmp_path_factory.mktemp("report")
    config = tiny.write_config(folder, MODEL__SHORTCUT__LEARNED_SCALE=True)
    assert run(tiny.arguments(config, folder), folder)[0].code == 0
    path = folder / "report.html"
    assert main([str(folder / "tiny"), "--output", str(path), "--device", "cpu", "--count", "3"]) == 0
    return path.read_text()


def test_nothing_is_fetched_and_nothing_is_run(trained):
    page = Page(trained)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in {"src", "href", "xlink:href", "srcset"} & attributes.keys():
            assert attributes[name].startswith(("#", "data:image/png;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", trained))
    assert "http" not in trained
    assert "@import" not in trained


def test_readers_who_do_not_see_the_pictures_are_told(trained):
    page = Page(trained)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("img")) == 6
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all("scope" in cell for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_the_pictures_are_well_formed_and_do_not_share_names(trained):
    pictures = re.findall(r"<svg.*?</svg>", trained, flags=re.DOTALL)
    assert len(pictures) == 7  # legend, four curves, confusion matrix, scales
    for picture in pictures:
        ElementTree.fromstring(picture.replace("<svg", '<svg xmlns:xlink="x"', 1))
    owners = [{"id": set(re.findall(r'\bid="([^"]+)"', p)), "used": set(re.findall(r"(?:url\(|href=\")#([^\")]+)", p))}
              for p in pictures]  # fmt: skip
    for number, owner in enumerate(owners):
        assert owner["used"] <= owner["id"]
        assert not any(owner["id"] & other["id"] for other in owners[number + 1 :])
    assert "#000000" not in "".join(pictures)  # black would vanish on a dark page


def test_links_lead_somewhere(trained):
    page = Page(trained)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= targets


def test_it_says_what_the_run_says(trained):
    text = Page(trained).text
    for part in ("2 of 2", "TRAIN.WEIGHT_DECAY 0.05 default", "Highest loss", "Learned shortcut scales", "fake/val[",
                 "python main.py --cfg", "packages.torch", "of 11 right"):  # fmt: skip
        assert part in text, part


def test_names_cannot_break_the_page(tmp_path):
    evil = '<script>alert("x")</script>&amp; $title'
    folder = write_run(tmp_path, "plain", 0, [10.0, 50.0])
    (folder / "command.txt").write_text(f"python main.py --tag '{evil}'\n")
    path = tmp_path / "report.html"
    assert main([f"{evil}={folder}", "--no-examples", "--output", str(path)]) == 0
    page = Page(path.read_text())
    assert page.all("script") == []
    assert page.text.count(evil) >= 4  # as text: title, heading, table, command
    assert any(evil in svg["aria-label"] for svg in page.all("svg"))


def test_a_sweep_with_an_unfinished_run_and_no_checkpoints(tmp_path, capsys):
    for seed, accuracies in enumerate(([10.0, 50.0], [20.0, 60.0], [30.0])):
        write_run(tmp_path / "runs", "plain", seed, accuracies, epochs=2)
    write_run(tmp_path / "runs", "short", 0, [], epochs=2, MODEL__SHORTCUT__KERNELS=[3, 5])
    path = tmp_path / "new" / "report.html"
    assert main([str(tmp_path / "runs"), "--output", str(path)]) == 0
    text = Page(path.read_text()).text
    assert "2 configurations, 4 runs" in text
    assert "55.00 ± 7.07" in text  # of the finished ones
    assert "not finished" in text
    assert "best.pth: no such checkpoint" in text
    assert re.search(r"What differs .*MODEL.SHORTCUT.KERNELS .*plain \[3\] short \[3, 5\]", text)
    assert capsys.readouterr().out.startswith(f"report: {path}")


def test_mistakes_are_one_line(tmp_path, capsys):
    folder = str(write_run(tmp_path, "plain", 0, [10.0]))
    for arguments, code in (
        ([str(tmp_path / "x")], 66),
        ([folder, "--output", "a.pdf"], 64),
        ([folder, "--count", "0"], 64),
    ):
        assert main(arguments) == code
        assert capsys.readouterr().err.count("\n") == 1


def test_markup_escapes_all_but_markup():
    assert html('<a b="c">') == "&lt;a b=&quot;c&quot;&gt;"
    assert html(Markup("<b>")) == "<b>"
    assert element("p", "<", class_='"x') == '<p class="&quot;x">&lt;</p>'
    assert "&lt;i&gt;" in table(["<i>"], [["a", "<i>"]], "caption")
