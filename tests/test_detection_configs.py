"""The detection recipes: they load, their headers tell the truth, and the published ones are the published ones."""

import re
from pathlib import Path

import pytest
import torch

from config import check, load_config
from lr_scheduler import build_scheduler
from optimizer import parameter_groups
from tasks.detection import Detection
from tasks.detection.settings import settings_of
from tests.test_configs_exist import ROOT, header
from utils.errors import ConfigError
from utils.flops import count_macs

NAMES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/detection").glob("*.yaml"))
COCO = [Path(name).stem for name in NAMES if name.endswith("_coco.yaml")]
SCRATCH = [name for name in COCO if "scratch" in name]
# As their code configures them (mmdetection 2.11): drop path; parameters; tensors and numbers with decay, and without
PUBLISHED = {
    "cascade_mask_rcnn_dwnet_tiny_3x_coco": (0.2, 81514194, 309, 81505746, 16, 8448),
    "cascade_mask_rcnn_dwnet_base_3x_coco": (0.3, 131555890, 501, 131544626, 16, 11264),
    "cascade_mask_rcnn_dynamic_dwnet_tiny_3x_coco": (0.2, 108473202, 357, 108464754, 16, 8448),
    "cascade_mask_rcnn_dynamic_dwnet_base_3x_coco": (0.3, 218806706, 597, 218795442, 16, 11264),
    "mask_rcnn_swin_tiny_1x_coco": (0.1, 47794602, 143, 47745168, 76, 49434),
    "mask_rcnn_swin_tiny_3x_coco": (0.2, 47794602, 143, 47745168, 76, 49434),
    "cascade_mask_rcnn_swin_tiny_1x_coco": (0.0, 85629804, 213, 85580370, 76, 49434),
    "cascade_mask_rcnn_swin_tiny_3x_coco": (0.2, 85629804, 213, 85580370, 76, 49434),
}
# Box and mask AP: README of the code of arXiv 2106.04263 and of Swin's detection code; table 7 of arXiv 2407.19394
FIGURES = {
    "cascade_mask_rcnn_dwnet_tiny_3x_coco": (49.9, 43.4),
    "cascade_mask_rcnn_dwnet_base_3x_coco": (51.0, 44.1),
    "cascade_mask_rcnn_dynamic_dwnet_tiny_3x_coco": (50.5, 43.7),
    "cascade_mask_rcnn_dynamic_dwnet_base_3x_coco": (51.2, 44.4),
    "mask_rcnn_swin_tiny_1x_coco": (43.7, 39.8),
    "mask_rcnn_swin_tiny_3x_coco": (46.0, 41.6),
    "cascade_mask_rcnn_swin_tiny_1x_coco": (48.1, 41.7),
    "cascade_mask_rcnn_swin_tiny_3x_coco": (50.4, 43.7),
    "mask_rcnn_swin_tiny_scratch_coco": (30.6, 28.9, 28.2, 27.4),
    "cascade_mask_rcnn_swin_tiny_scratch_coco": (36.2, 32.1, 35.3, 31.4),
}
# Of mmdetection's steps, with 7,330 iterations an epoch: rates at iterations
RATES = {
    "3x": {0: 1e-7, 1: 2.998e-7, 250: 5.005e-5, 499: 9.98002e-5, 500: 1e-4, 7329: 1e-4, 197909: 1e-4, 197910: 1e-5,
           241889: 1e-5, 241890: 1e-6, 263879: 1e-6},
    "1x": {0: 1e-7, 250: 5.005e-5, 500: 1e-4, 58639: 1e-4, 58640: 1e-5, 80629: 1e-5, 80630: 1e-6, 87959: 1e-6},
}  # fmt: skip


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def model_of():
    """The model of a configuration, as many classes as it says, on the meta device; made once each."""
    models = {}

    def get(name):
        if name not in models:
            cfg = load(name)
            with torch.device("meta"):
                models[name] = Detection.network(cfg, cfg.MODEL.NUM_CLASSES or (80 if "_own" in name else 4))
        return models[name]

    return get


def load(name, opts=(), flags=()):
    cfg, origins = load_config(name if "/" in name else f"configs/detection/{name}.yaml", opts, flags)
    check(cfg, origins)
    return cfg


def text_of(name):
    return "\n".join(header(f"configs/detection/{name}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_header_states_what_the_model_costs(name, model_of):
    text, model = "\n".join(header(name)), model_of(name)
    (stated,) = re.findall(r"([\d.]+) M parameters", text)
    assert f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}" == stated
    work = re.findall(r"(\d+) G multiply-accumulates at 800x1280", text)
    if name.endswith(("_coco.yaml", "_own.yaml")):
        assert [f"{count_macs(model, (800, 1280))['total'] / 1e9:.0f}"] == work


@pytest.mark.parametrize("name", FIGURES)
def test_headers_have_the_published_figures(name):
    box, mask, *plain = FIGURES[name]
    extra = f"; plain backbone {plain[0]} and {plain[1]} %" if plain else ""
    assert f"Expected box AP {box:.1f} %, mask AP {mask:.1f} % (published{extra})" in text_of(name)
    assert set(FIGURES) == set(COCO)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes(name, model_of):
    """As mmdetection 2.11 is configured there, 8 processes of 2 images; weight decay by names."""
    cfg, model = load(name), model_of(f"configs/detection/{name}.yaml")
    drop_path, *numbers = PUBLISHED[name]
    groups = parameter_groups(model, cfg.TRAIN.WEIGHT_DECAY, cfg.TRAIN.NO_WEIGHT_DECAY)
    sizes = [number for group in groups for number in (len(group["params"]), sum(p.numel() for p in group["params"]))]
    assert [sum(parameter.numel() for parameter in model.parameters()), *sizes] == numbers
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    spared = groups[1]["names"]
    if "dwnet" in name:
        kinds = {re.sub(r"\d+", "*", name.removeprefix("backbone.").rpartition(".")[0]) for name in spared}
        assert kinds == {"body.patch_embed.norm", "body.stages.*.downsample.norm", "map_norms.*"}
    else:
        assert all(re.search(r"backbone\.(body\..*(norm|relative_position_bias_table)|map_norms)", n) for n in spared)
    assert (drop_path, 2) == (cfg.MODEL.DROP_PATH_RATE, cfg.DATA.BATCH_SIZE)
    assert "nproc_per_node=8" in text_of(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedule_and_images_of_published_recipes(name):
    cfg, length = load(name), re.search("_(1x|3x)_", name)[1]
    schedule = build_scheduler(cfg, 7330, 16)
    assert {step: schedule(step) for step in RATES[length]} == pytest.approx(RATES[length], rel=1e-9)
    assert (schedule.total_steps, cfg.TEST.EPOCHS) == (7330 * {"1x": 12, "3x": 36}[length], 1)
    train, det = cfg.TRAIN, cfg.DET
    assert (train.OPTIMIZER.NAME, train.OPTIMIZER.BETAS, train.CLIP_GRAD) == ("adamw", [0.9, 0.999], 0.0)
    assert ("crop", list(range(480, 801, 32)), 1333) == (det.POLICY, det.SCALES, det.MAX_SIZE)
    assert (det.CROP_SCALES, det.CROP_SIZES, det.TEST_SIZE, cfg.AUG.HFLIP) == ([400, 500, 600], [384, 600], 800, 0.5)
    assert (dict(det.ARGS), cfg.AMP.ENABLE, cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES) == ({}, True, "coco", 80)
    assert name.startswith(f"{det.HEAD}_")


@pytest.mark.parametrize("name", SCRATCH)
def test_recipe_of_table_7(name):
    """Section 4 of arXiv 2407.19394."""
    cfg, text = load(name), text_of(name)
    schedule = build_scheduler(cfg, 14660, 8)
    assert [schedule(step) for step in (500, 8 * 14660 - 1)] == pytest.approx([5e-5, 5e-5])
    assert [schedule(epoch * 14660) for epoch in (8, 11)] == pytest.approx([5e-6, 5e-7])
    assert (schedule.total_steps, schedule.warmup_steps) == (12 * 14660, 500)
    assert (cfg.DATA.BATCH_SIZE, cfg.DET.POLICY, cfg.DET.SCALES, cfg.DET.MAX_SIZE) == (2, "resize", [800], 1333)
    assert "nproc_per_node=4" in text
    assert "--pretrained" not in text
    assert (cfg.MODEL.TYPE, cfg.MODEL.SHORTCUT.KERNELS, cfg.MODEL.SHORTCUT.SPAN) == ("swin_tiny", [3], 1)


def test_arguments_of_a_detector():
    cfg = load(NAMES[0], ["DET.ARGS.ROI_SAMPLES", "64", "DET.ARGS.RPN_NMS", "1", "DET.ARGS.RPN_PROPOSALS", "[20, 10]"])
    with torch.device("meta"):
        found = Detection.network(cfg, 3).settings
    assert found == settings_of("cascade_mask_rcnn", roi_samples=64, rpn_nms=1.0, rpn_proposals=(20, 10))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ROI_SAMPLE", "64", "did you mean ROI_SAMPLES"),
        ("MASKS", "True", "DET.HEAD"),
        ("ROI_SAMPLES", "many", "whole numbers from 1 on"),
        ("ROI_SAMPLES", "0.5", "whole numbers from 1 on"),
        ("CHANNELS", "0", "whole numbers from 1 on"),
        ("BOX_FCS", "-1", "whole numbers from 0 on"),
        ("NMS", "-0.5", "numbers from 0 to 1"),
        ("ROI_POSITIVES", "25", "numbers from 0 to 1"),
        ("GIOU", "1", "True or False"),
        ("RPN_PROPOSALS", "100", "a list of 2 whole numbers from 1 on"),
        ("RPN_PROPOSALS", "[100]", "a list of 2 whole numbers from 1 on"),
        ("STAGE_WEIGHTS", "[1, 0.5]", "a list of 3 numbers from 0 on"),
    ],
)
def test_wrong_arguments_are_one_line(key, value, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        Detection.network(load(NAMES[0], [f"DET.ARGS.{key}", value]), 3)
    assert f"DET.ARGS.{key}" in caught.value.line()
