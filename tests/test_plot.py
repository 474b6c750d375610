"""Groups of seeds, curves and their files: against means computed by hand."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.text import Text
from PIL import Image

from tests.run_folders import write_run
from tools.plot import main
from tools.shared.curves import choose_axis, curves_figure, mean_curve
from tools.shared.figures import line_style
from tools.shared.pareto import Point, front, pareto_figure, points_of
from tools.shared.runs import group_runs, parse_groups, read_run
from tools.table.rows import make_rows
from utils.errors import ConfigError, MissingError


@pytest.fixture
def runs(tmp_path):
    """Three seeds of `plain`, the last one still running, and one of `short`."""
    for seed, accuracies in enumerate(([10.0, 50.0], [20.0, 30.0], [30.0])):
        write_run(tmp_path, "plain", seed, accuracies, epochs=2)
    write_run(tmp_path, "short", 0, [40.0, 60.0], MODEL__SHORTCUT__KERNELS=[3, 5])
    return tmp_path


def test_seeds_of_one_configuration_are_one_group(runs):
    plain, short = parse_groups([str(runs)])
    assert (plain.name, [run.seed for run in plain.runs]) == ("plain", [0, 1, 2])
    assert (short.name, [run.seed for run in short.runs]) == ("short", [0])
    assert short.remarks() == []
    assert plain.remarks() == [f"plain: not finished: {runs / 'plain' / 'seed2'}"]


def test_namesakes_are_told_apart_by_what_differs(tmp_path):
    for folder, kernels in (("a", [3]), ("b", [5])):
        write_run(tmp_path / folder, "vit", 0, [1.0], MODEL__SHORTCUT__KERNELS=kernels)
    assert [group.name for group in parse_groups([str(tmp_path)])] == ["vit (KERNELS [3])", "vit (KERNELS [5])"]


def test_two_names_are_two_groups_whatever_they_hold(tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path, name, 0, [1.0])
    assert [group.name for group in parse_groups([str(tmp_path)])] == ["first", "second"]


def test_named_groups_take_what_they_are_given_and_say_what_differs(runs):
    (group,) = parse_groups([f"all={runs / 'plain' / 'seed0'},{runs / 'short'}"])
    assert [run.path.name for run in group.runs] == ["seed0", "seed0"]
    more, twice = group.remarks()
    assert more.startswith("all: the runs differ in more than the seed")
    assert "MODEL.SHORTCUT.KERNELS" in more
    assert twice == "all: seed 0 more than once"


def test_groups_that_cannot_be_are_refused(runs):
    with pytest.raises(ConfigError, match="plain: 2 groups of this name"):
        parse_groups([str(runs / "plain"), f"plain={runs / 'short'}"])
    with pytest.raises(ConfigError, match="a=: expected a folder or NAME"):
        parse_groups(["a="])
    with pytest.raises(MissingError, match="no such folder"):
        parse_groups([f"a={runs / 'nowhere'}"])


def test_mean_and_deviation_over_the_epochs_that_all_have(runs):
    group = parse_groups([f"two={runs / 'plain' / 'seed0'},{runs / 'plain' / 'seed1'}"])[0]
    _, epochs = choose_axis("epoch", [group])
    x, mean, std = mean_curve(group, "accuracy", epochs)
    assert x.tolist() == [1, 2]
    assert mean.tolist() == [15, 40]
    assert std == pytest.approx([50**0.5, 200**0.5])  # (5^2 + 5^2) / 1 and (10^2 + 10^2) / 1
    x, mean, _ = mean_curve(parse_groups([str(runs / "plain")])[0], "accuracy", epochs)
    assert (x.tolist(), mean.tolist()) == ([1], [20])


def test_axes_of_steps_and_time(runs):
    groups = parse_groups([str(runs)])
    run = groups[0].runs[0]
    assert choose_axis("step", groups)[1](run).tolist() == [10, 20]
    assert choose_axis("time", groups)[1](run).tolist() == [2, 4]
    long = group_runs([read_run(write_run(runs, "long", 0, [1.0] * 6000))])
    label, times = choose_axis("time", long)
    assert label.endswith("hours")
    assert times(long[0].runs[0])[-1] == pytest.approx(12000 / 3600)


def test_three_seeds_have_a_band_and_two_are_drawn_one_by_one(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "three", seed, [10.0 * seed, 50.0])
    for seed in range(2):
        write_run(tmp_path, "two", seed, [10.0 * seed, 50.0], MODEL__SHORTCUT__KERNELS=[])
    (axes,) = curves_figure(parse_groups([str(tmp_path)]), ["accuracy"]).axes
    assert len([item for item in axes.collections if isinstance(item, PolyCollection)]) == 1
    assert [len(line.get_xdata()) for line in axes.lines] == [2] * 4  # two means, two seeds
    assert np.allclose(axes.lines[1].get_ydata(), [5, 50])
    assert np.allclose(axes.lines[2].get_ydata(), [0, 50])


def test_what_a_seed_has_beyond_the_others_is_drawn(runs):
    (axes,) = curves_figure(parse_groups([str(runs / "plain")]), ["accuracy"]).axes
    assert sorted(tuple(line.get_ydata()) for line in axes.lines) == [(10.0, 50.0), (20.0,), (20.0, 30.0)]


def test_names_are_text_and_all_text_is_legible(runs):
    groups = parse_groups([f"_$x_1$ <b>={runs / 'short'}"])
    figure = curves_figure(groups)
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _$x_1$ <b> (1 seed)"]
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 10
    assert [axes.get_title() for axes in figure.axes][:2] == ["training loss", "validation loss"]


def test_lines_are_told_apart_without_colour():
    styles = [line_style(number) for number in range(12)]
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == 12
    assert len({style["color"] for style in styles[:6]}) == 6


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_chooses_the_format_and_the_file_is_reproducible(runs, capsys, ending, start):
    contents = []
    for folder in ("one", "two"):
        path = runs / "new" / folder / f"curves.{ending}"
        assert main(["curves", str(runs / "short"), "--what", "accuracy", "--output", str(path)]) == 0
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(start)
    if ending == "png":
        assert Image.open(path).size[0] == 7.5 * 150
    assert capsys.readouterr().out.endswith(f"picture: {path}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["curves", "{runs}", "--output", "a.pgn"],
            64,
            "a.pgn: pictures are written as .png, .svg, .pdf - did",
        ),
        (["curves", "{runs}/nowhere"], 66, "no such folder"),
        (["curves"], 64, "required"),
        (["curves", "{runs}", "--what", "loss", "acc"], 64, "'acc' is no column"),
        (["confusion", "{runs}/short/seed0"], 66, "best.pth: no such checkpoint"),
        (["errors", "x.pth", "--count", "0"], 64, "'0' is not a whole number above 0"),
    ],
)
def test_mistakes_are_one_line(runs, capsys, arguments, code, line):
    assert main([word.format(runs=runs) for word in arguments]) == code
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


def test_a_run_without_an_epoch_has_no_curve(tmp_path, capsys):
    folder = write_run(tmp_path, "new", 0, [], epochs=3)
    assert main(["curves", str(folder), "--output", str(tmp_path / "c.png")]) == 66
    assert "no epoch is finished yet" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_the_front_is_what_nothing_beats():
    """Against the definition, pair by pair, on a grid with ties."""
    draws = np.random.default_rng(0).integers(0, 8, (40, 2)).astype(float)
    points = [Point(str(number), *draw, None, 1) for number, draw in enumerate(draws)]
    beaten = {a.name for a in points for b in points
              if b.cost <= a.cost and b.mean >= a.mean and (b.cost, b.mean) != (a.cost, a.mean)}  # fmt: skip
    best = {(p.cost, p.mean) for p in points if p.name not in beaten}
    assert [(p.cost, p.mean) for p in front(points)] == sorted(best)
    worse = [Point(p.name, p.cost, -p.mean, None, 1) for p in points]
    assert [(p.cost, -p.mean) for p in front(worse, higher_is_better=False)] == sorted(best)


def test_pareto_points_are_rows_with_their_deviation(tmp_path, capsys):
    for seed, accuracy in enumerate((40.0, 44.0)):
        write_run(tmp_path, "two", seed, [10.0, accuracy])
    write_run(tmp_path, "one", 0, [20.0, 30.0, 35.0], MODEL__SHORTCUT__KERNELS=[])
    rows, metric = make_rows([tmp_path])
    first, second = points_of(rows, metric, "params")
    assert (first.name, second.name) == ("one, passes 3", "two, passes 2")  # they differ, so the names say so
    assert (first.cost, first.mean, first.std, first.n) == (0.001234, 35.0, None, 1)
    assert (second.mean, second.std, second.n) == (42.0, pytest.approx(8**0.5), 2)
    assert points_of(rows, metric, "time")[0].cost == 10.0  # 100 images a second
    figure = pareto_figure(rows, metric, ["params", "time"])
    bars = [bar for axes in figure.axes for bar in axes.containers]
    assert len(figure.axes) == 2
    assert len(bars) == 4
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 10
    path = tmp_path / "front.png"
    assert main(["--pareto", str(tmp_path), "--cost", "macs", "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"macs: 0.005678, final 42.00 ± 2.83 (n 2), two, passes 2\npicture: {path}\n"


def test_without_a_finished_run_there_is_no_front(tmp_path, capsys):
    folder = write_run(tmp_path, "new", 0, [50.0], epochs=3)
    assert main(["pareto", str(folder), "--output", str(tmp_path / "p.png")]) == 66
    assert "no finished run" in capsys.readouterr().err
