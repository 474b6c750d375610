"""tools.shared.published: every figure of the paper's tables belongs to the configuration that it was published for."""

from pathlib import Path

import pytest
import yaml

from config import default_config, flat, load_config, to_plain
from tests.launch import ROOT
from tools.shared.published import published
from tools.sweep.grid import read_grid
from tools.sweep.train import plan

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
