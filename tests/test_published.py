"""tools.shared.published: every figure of the paper's tables belongs to the configuration that it was published for."""

from pathlib import Path

import pytest
import yaml

from config import default_config, flat, load_config, to_plain
from tests.launch import ROOT
from tools.shared.published import published, rival_rows
from tools.sweep.grid import read_grid
from tools.sweep.train import plan
from tools.table import __main__ as table

TABLES = {"table1": "table1_vit", "table2": "table2_vit_tiny_kernels", "table3": "table3_cait",
          "table4": "table4_cait_span", "table5": "table5_swin_tiny", "table6": "table6_imagenet"}  # fmt: skip


@pytest.mark.parametrize("grid", TABLES)
def test_every_cell_of_the_papers_tables_has_its_figure(grid):
    """Each figure of the table is found once by the grid's cells, and the recipe is the published one."""
    content = yaml.safe_load((ROOT / "tools/shared/published_results.yaml").read_text())[TABLES[grid]]
    columns = ("cifar10", "cifar100", "tiny_imagenet", "imagenet")
    expected = sorted(row[column] for row in content for column in columns if column in row)
    runs = plan(read_grid(ROOT / f"configs/sweeps/{grid}.yaml"), [0], Path("output"))
    found = [published(flat(to_plain(run.config))) for run in runs]
    assert sorted(reference.figure for reference in found) == expected
    assert {reference.recipe_differs for reference in found} == {()}
    assert all(reference.source.startswith("arXiv 2407.19394v4, table ") for reference in found)


def test_the_figure_is_that_of_the_model():
    """Spot checks written down from the paper's tables."""

    def lookup(grid, name):
        (run,) = [run for run in plan(read_grid(ROOT / f"configs/sweeps/{grid}.yaml"), [0], Path("output"))
                  if run.cell.name == name]  # fmt: skip
        return published(flat(to_plain(run.config))).figure

    assert lookup("table1", "cifar100_vit_small_kernels-3_pos_embed-false") == 80.14
    assert lookup("table2", "tiny-imagenet_dw3+5+7") == 64.27
    assert lookup("table3", "cifar10_cait_xxs12_bare") == 87.45
    assert lookup("table4", "cifar10_cait_xxs24_span-4") == 96.51
    assert lookup("table5", "cifar100_kernels-3_shift-false") == 83.38
    assert lookup("table6", "swin_tiny-dw3") == 81.73


def test_what_was_pretrained_on_imagenet22k_has_its_own_figures():
    for variant, figure, without in (("cvt_13", 83.3, 83.0), ("cvt_21", 84.9, 83.3), ("cvt_w24", 87.6, None)):
        config, _ = load_config(ROOT / f"configs/cvt/{variant}_384_imagenet22k_imagenet.yaml")
        plain = {**flat(to_plain(config)), "MODEL.SHORTCUT.KERNELS": []}
        assert published(plain).figure == figure
        assert published({**plain, "MODEL.PRETRAINED": "CvT-384x384-IN-22k.pth"}).figure == figure
        scratch = published({**plain, "MODEL.PRETRAINED": ""})
        assert (scratch and scratch.figure) == without


def test_segmentation_has_its_figures_on_ade20k():
    for variant, miou in (("dwnet_tiny", 45.5), ("dynamic_dwnet_tiny", 45.7), ("dwnet_base", 48.3)):
        config, _ = load_config(ROOT / f"configs/segmentation/upernet_{variant}_512_ade20k.yaml")
        config = flat(to_plain(config))
        assert published(config).figure == miou
        assert published({**config, "SEG.HEAD": "mlp"}) is None
        assert published({**config, "MODEL.SHORTCUT.KERNELS": [3]}) is None


@pytest.mark.parametrize(
    "changes",
    [{"DATA.IMG_SIZE": 32}, {"DATA.DATASET": "imagefolder"}, {"MODEL.ARGS.DIM": 64}, {"MODEL.SHORTCUT.SPAN": 2},
     {"MODEL.SHORTCUT.LEARNED_SCALE": True}, {"MODEL.TYPE": "vit_base"}, {"MODEL.SHORTCUT.KERNELS": [9]}],
)  # fmt: skip
def test_nothing_is_published_for_another_model(changes):
    config = flat(to_plain(default_config()))
    config |= {"MODEL.TYPE": "vit_tiny", "DATA.DATASET": "cifar10", "MODEL.SHORTCUT.KERNELS": [3]}
    assert published(config).figure == 96.41
    assert published(config | changes) is None


def rival(model, dataset="cifar100", size=32, **changes):
    """The Published of a model at a size; `changes`: keys with __ for the dot."""
    config = flat(to_plain(default_config()))
    config |= {"MODEL.TYPE": model, "DATA.DATASET": dataset, "DATA.IMG_SIZE": size}
    return published(config | {key.replace("__", "."): value for key, value in changes.items()})


def test_rivals_have_the_figure_of_the_most_similar_passes():
    """Written down from the README of arXiv 2104.05704's code and table 4 of arXiv 2210.05958."""
    found = rival("cct_7_3x1", TRAIN__EPOCHS=300)
    assert (found.figure, found.conditions) == (80.92, "300 passes, best epoch on the test set")
    assert rival("cct_7_3x1", TRAIN__EPOCHS=2000).figure == 82.72
    assert rival("cct_7_3x1", TRAIN__EPOCHS=30).figure == 77.05
    assert rival("cct_7_3x1", "cifar10", TRAIN__EPOCHS=5000).figure == 98.00
    found = rival("dhvt_small", MODEL__ARGS__PATCH_SIZE=2, TRAIN__LR_SCALING="linear", TRAIN__WARMUP_EPOCHS=5)
    assert (found.figure, found.recipe_differs) == (85.68, ())
    assert found.selection == "best epoch on the test set, best of 5 seeds"


def test_epochs_that_are_three_passes_are_said_to_be():
    recipe = {"TRAIN__EPOCHS": 100, "TRAIN__BASE_LR": 1e-3, "TRAIN__WARMUP_EPOCHS": 10}
    found = rival("sl_vit", "tiny-imagenet", 64, MODEL__ARGS__PATCH_SIZE=8, **recipe)
    assert (found.figure, found.epochs, found.passes) == (61.07, 100, 300)
    assert found.conditions == "300 passes (100 epochs as published), best epoch on the test set"
    assert found.recipe_differs == ("passes 100, not 300",)
    assert rival("sl_vit", TRAIN__PASSES_PER_EPOCH=3, **recipe).recipe_differs == ()
    assert rival("sl_vit", "tiny-imagenet", 64) is None  # with patches of 4 pixels
    assert rival("sl_vit_plain", MODEL__LOCALITY__TOKENIZER="spt").figure == 76.29


@pytest.mark.parametrize(
    "changes",
    [{"size": 64}, {"MODEL__PRETRAINED": "x.pth"}, {"MODEL__SHORTCUT__KERNELS": [3]}, {"DRLOC__WEIGHT": 0.1},
     {"MODEL__LOCALITY__TOKENIZER": "patch"}, {"MODEL__ARGS__DEPTH": 2}, {"dataset": "imagefolder"}],
)  # fmt: skip
def test_a_rival_under_other_conditions_has_no_figure(changes):
    assert rival("cct_7_3x1", **changes) is None


def test_every_figure_has_a_source_and_an_image_size():
    for source, row in rival_rows():
        assert source
        assert row.get("image_size") in ("native", 32, 224, 256, 384) or row["selection"] == "abstract only"
        assert row["passes"] is None or row["passes"] >= row["epochs"]


def test_the_list_of_what_is_published(capsys):
    assert table.main(["--published", "tiny-imagenet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "| SL-Swin |" in line]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:6] == ["tiny_imagenet", "SL-Swin", "64.95", "64", "100", "300"]
    assert cells[6:9] == ["best epoch on the test set", "random", "8.7"]
    assert "| vit_tiny 3+5+7, no pe | 64.27 | 224 |" in "\n".join(lines)
    assert "do not rank models" in lines[-1]
    assert table.main(["--published", "cifar10", "--format", "csv"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if ",SL-PiT," in line]
    assert "0.3229 at 64" in line  # counted at 64 pixels, of a model for 32


@pytest.mark.parametrize("arguments", [[], ["--published", "cifar1"], ["output", "--published", "cifar10"]])
def test_mistakes_are_one_line(arguments, capsys):
    assert table.main(arguments) == 64
    assert capsys.readouterr().err.count("\n") == 1
