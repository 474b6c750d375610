"""The configuration files: the fifteen known names exist, all load, and each header tells the truth about its file."""

import itertools
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from config import check, difference, flat, load_config, to_plain
from engine.command_line import flag_overrides, parse_args
from models.registry import get_variant, keywords_of
from tasks.backbone import build_model
from tools.shared.published import published
from utils.flops import count_macs

ROOT = Path(__file__).parent.parent
SMALL = ("cifar10", "cifar100", "tiny_imagenet")
ORIGINAL = [
    f"configs/{name}_{dataset}.yaml"
    for name, dataset in itertools.product(
        ("vit/vit_tiny_16_224", "vit/vit_small_16_224", "cait/cait_xxs12_16_224", "cait/cait_xxs24_16_224",
         "swin/swin_tiny_patch4_window7_224"), SMALL)
]  # fmt: skip
IMAGENET = [f"configs/{name}_224_imagenet.yaml" for name in (
    "swin/swin_tiny_patch4_window7", "cait/cait_xxs12_16", "cait/cait_xxs24_16")]  # fmt: skip
EXPERIMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.parent.name not in ("_base_", "sweeps", "segmentation", "detection", "locality", "methods")  # see test_*
)
TASKS = sorted(
    path.relative_to(ROOT).as_posix()
    for task in ("detection", "segmentation")
    for path in (ROOT / "configs" / task).glob("*.yaml")
)
NATIVE = [name for name in EXPERIMENTS if re.search(r"_(32|64)_", name)]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def counted():
    """Multiply-accumulates counted so far, per model, image size and arguments."""
    return {}


def load(name, opts=(), flags=()):
    cfg, origins = load_config(name, opts, flags)
    check(cfg, origins)
    return cfg


def header(name):
    lines = Path(name).read_text().splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def command(name):
    """The words after main.py in the header's command."""
    (line,) = [line for line in header(name) if "main.py" in line]
    return shlex.split(line.partition("main.py ")[2])


def plain_options(name):
    (line,) = [line for line in header(name) if "plain baseline: " in line]
    return shlex.split("--tag" + line.rpartition("--tag")[2])


def test_known_names_exist():
    assert len(ORIGINAL) == 15
    assert set(ORIGINAL) | set(IMAGENET) <= set(EXPERIMENTS)
    for family in ("vit", "cait", "swin", "cvt"):
        sizes = [re.search(r"_(32|64)_(\w+)\.yaml", name).groups() for name in NATIVE if f"/{family}/" in name]
        assert sorted(sizes) == [("32", "cifar10"), ("32", "cifar100"), ("64", "tiny_imagenet")]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_loads_and_is_short(name):
    cfg = load(name)
    assert Path(name).stem == cfg.MODEL.NAME
    body = Path(name).read_text().splitlines()[len(header(name)) :]
    assert (4 if "/demo/" in name else 5) <= len(body) <= 12
    assert body[0].startswith("BASE: ../_base_/")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/_base_").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load_by_themselves(path):
    load(path)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_header_command_runs_this_file(name):
    args = parse_args(command(name))
    assert args.cfg == name
    load(args.cfg, args.opts, flag_overrides(args))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "/demo/" not in name])
def test_header_gives_the_plain_baseline(name):
    args = parse_args([*command(name), *plain_options(name)])
    ours, plain = load(name), load(args.cfg, args.opts, flag_overrides(args))
    assert plain.TAG == "plain"
    assert (ours.MODEL.SHORTCUT.KERNELS, ours.MODEL.SHORTCUT.SPAN) == ([3], 1)
    assert plain.MODEL.SHORTCUT.KERNELS == []
    changed = {key for key, _, _ in difference(to_plain(ours), to_plain(plain))}
    changed -= {"TAG", "MODEL.SHORTCUT.KERNELS", "DATA.DATA_PATH"}
    changed -= {"MODEL.PRETRAINED"} if "22k_imagenet" in name else set()  # a run of the plain model
    removed = {f"MODEL.ARGS.{key}" for key in ("LAYER_SCALE", "TALKING_HEADS", "POS_EMBED")}
    expected = set() if "/cait/" not in name else {"MODEL.ARGS.LAYER_SCALE"} if name in IMAGENET else removed
    assert changed == expected
    assert all(plain.MODEL.ARGS[key.rpartition(".")[2]] is True for key in changed)
    assert all(ours.MODEL.ARGS[key.rpartition(".")[2]] is False for key in changed)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "/demo/" not in name])
def test_header_states_published_figures_only(name):
    text = "\n".join(header(name))
    assert re.search(r"table \d", text)
    assert re.search(r"[\d.]+ M parameters, [\d.]+ GFLOPs", text)
    args = parse_args([*command(name), *plain_options(name)])
    figure, plain = accuracy(load(name)), accuracy(load(args.cfg, args.opts, flag_overrides(args)))
    if figure is not None:
        assert f"{figure:.2f} % (published; plain backbone {plain:.2f} %)" in text
    elif plain is not None:
        assert f"not published with shortcuts; plain backbone {plain:.1f} % (published" in text
    else:
        assert "not published" in text
        assert "%" not in text.replace("29 % of the FLOPs", "")
    unknown = "/i_dynamic_dwnet" in name or "/timm/" in name or name in NATIVE or name.endswith("22k.yaml")  # no figure
    unknown &= not re.search("timm_deit_tiny_(4_32|16_224)_cifar100", name)  # a baseline of two rivals
    assert (figure is None and plain is None) == unknown


def accuracy(cfg):
    """The published top-1 of a configuration, or None."""
    found = published(flat(to_plain(cfg)))
    return found and found.figure


@pytest.mark.parametrize("name", ORIGINAL)
def test_recipe_of_the_small_datasets(name):
    """Section 4.1.1 of the paper."""
    cfg = load(name)
    swin = "/swin/" in name
    train = cfg.TRAIN
    rates = (2.5e-4, 2.5e-7, 2.5e-6) if swin else (5e-4, 5e-7, 5e-6)
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.WEIGHT_DECAY, train.OPTIMIZER.NAME) == (300, 20, 0.05, "adamw")
    assert (train.LR_SCHEDULER.NAME, train.LR_SCALING, train.CLIP_GRAD) == ("cosine", "none", 5.0)
    assert rates == (train.BASE_LR, train.WARMUP_LR, train.MIN_LR)
    assert pytest.approx(0.2 if swin else 0.0) == cfg.MODEL.DROP_PATH_RATE
    assert (cfg.DATA.IMG_SIZE, cfg.DATA.BATCH_SIZE, cfg.AUG.RESIZE_FIRST) == (224, 128, True)
    aug = cfg.AUG
    assert (aug.AUTO_AUGMENT, aug.REPROB, aug.MIXUP, aug.CUTMIX) == ("rand-m9-mstd0.5-inc1", 0.25, 0.8, 1.0)
    assert cfg.MODEL.LABEL_SMOOTHING == 0.1
    assert train.NO_WEIGHT_DECAY == ["1d", "relative_position_bias_table"]  # so pos_embed and cls_token decay


@pytest.mark.parametrize("name", IMAGENET)
def test_recipe_of_imagenet(name):
    cfg = load(name)
    (line,) = [line for line in header(name) if "main.py" in line]
    processes = int(re.search(r"nproc_per_node=(\d+)", line).group(1))
    assert processes * cfg.DATA.BATCH_SIZE * cfg.TRAIN.ACCUMULATION_STEPS == 1024
    assert (cfg.TRAIN.BASE_LR, cfg.TRAIN.EPOCHS) == (1e-3, 300)
    assert not cfg.AUG.RESIZE_FIRST


CVT = sorted(Path(name).stem for name in EXPERIMENTS if "/cvt_" in name and "_imagenet" in name and name not in NATIVE)
FINE_TUNED = [name for name in CVT if name.endswith("22k_imagenet")]


@pytest.mark.parametrize("name", sorted(set(CVT) - set(FINE_TUNED)))
def test_recipe_of_cvt(name):
    """experiments/imagenet/cvt/*.yaml of its code: the rate is that of one GPU times 8; 90 epochs of ImageNet-22k."""
    cfg = load(f"configs/cvt/{name}.yaml")
    small = cfg.MODEL.TYPE == "cvt_13"
    expected = (256, 8 * 2.5e-4) if small else (128, 8 * 1.25e-4)
    assert expected == (cfg.DATA.BATCH_SIZE, cfg.TRAIN.BASE_LR)
    assert pytest.approx(0.05 if small else 0.1) == cfg.TRAIN.WEIGHT_DECAY
    assert pytest.approx(0.3 if cfg.MODEL.TYPE == "cvt_w24" else 0.1) == cfg.MODEL.DROP_PATH_RATE
    epochs = 90 if "22k" in name else 300
    assert (epochs, 5, 0) == (cfg.TRAIN.EPOCHS, cfg.TRAIN.WARMUP_EPOCHS, cfg.TRAIN.CLIP_GRAD)
    assert (cfg.TRAIN.WARMUP_LR, cfg.TRAIN.MIN_LR) == (1e-6, 1e-5)
    assert (cfg.DATA.IMG_SIZE == 224) == cfg.TEST.CROP


@pytest.mark.parametrize("name", FINE_TUNED)
def test_recipe_of_fine_tuning_cvt(name):
    """Section 4.1 of arXiv 2103.15808: SGD with momentum 0.9, 512 images a step, 20,000 steps at 384 pixels."""
    cfg = load(f"configs/cvt/{name}.yaml")
    (line,) = [line for line in header(f"configs/cvt/{name}.yaml") if "main.py" in line]
    assert int(re.search(r"nproc_per_node=(\d+)", line).group(1)) * cfg.DATA.BATCH_SIZE == 512
    assert (cfg.TRAIN.STEPS, cfg.TRAIN.OPTIMIZER.NAME, cfg.TRAIN.OPTIMIZER.MOMENTUM) == (20000, "sgd", 0.9)
    assert (cfg.DATA.IMG_SIZE, cfg.DATA.DATASET, cfg.TEST.CROP) == (384, "imagenet", False)
    before = load(f"configs/cvt/{cfg.MODEL.TYPE}_224_imagenet22k.yaml")
    folder = f"{before.OUTPUT}/{before.MODEL.NAME}/{before.TAG}"
    assert f"{folder}/checkpoints/best.pth" == cfg.MODEL.PRETRAINED
    assert (cfg.MODEL.TYPE, cfg.MODEL.SHORTCUT, cfg.MODEL.ARGS) == (
        before.MODEL.TYPE, before.MODEL.SHORTCUT, before.MODEL.ARGS)  # fmt: skip


RELATIVES = [name for name in EXPERIMENTS if re.search("(dwnet|swin_mlp|swin_v2).*_(224|256)_imagenet", name)]


@pytest.mark.parametrize("name", RELATIVES)
def test_recipe_of_swin_relatives(name):
    """config.py and configs/*.yaml of DemystifyLocalViT and Swin-Transformer, at 1024 images per step."""
    cfg, base = load(name), "_base_" in name
    (line,) = [line for line in header(name) if "main.py" in line]
    processes = math.prod(int(n) for n in re.findall(r"--n(?:proc_per_node|nodes)=(\d+)", line))
    assert processes * cfg.DATA.BATCH_SIZE == 1024
    train = cfg.TRAIN
    assert (train.BASE_LR, train.WARMUP_LR, train.MIN_LR) == (1e-3, 1e-6, 1e-5)
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.WEIGHT_DECAY, train.CLIP_GRAD) == (300, 20, 0.05, 5.0)
    assert pytest.approx(0.5 if base else 0.2) == cfg.MODEL.DROP_PATH_RATE
    in_float32 = "dwnet" in name and (base or "i_dynamic" in name)
    size = 256 if "swin" in name and not base else 224
    assert (not in_float32, size) == (cfg.AMP.ENABLE, cfg.DATA.IMG_SIZE)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_names_agree_with_contents(name):
    cfg = load(name)
    if "/demo/" in name:
        assert ("digits" if "digits" in name else "imagefolder") == cfg.DATA.DATASET
        return
    dataset, classes = {
        "cifar10": ("cifar10", 10), "cifar100": ("cifar100", 100), "tiny_imagenet": ("tiny-imagenet", 200),
        "imagenet": ("imagenet", 1000), "imagenet22k": ("imagenet22k", 21841),
    }[re.search(r"_(tiny_imagenet|imagenet|imagenet22k|cifar10|cifar100)\.yaml", name).group(1)]  # fmt: skip
    assert (dataset, classes) == (cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES)
    if "/timm/" in name:
        model = re.match(r"timm/(.*?)(_patch.*)?(_224)?$", cfg.MODEL.TYPE).group(1)
        patch = cfg.MODEL.ARGS.get("PATCH_SIZE", 4 if model.startswith("swin") else 16)
        assert re.search(rf"/timm_{model}_(patch)?{patch}_(window7_)?{cfg.DATA.IMG_SIZE}_", name)
        return
    assert Path(name).name.startswith(cfg.MODEL.TYPE)
    numbers = [int(n) for n in re.findall(r"\d+", Path(name).stem.removeprefix(cfg.MODEL.TYPE).removesuffix(dataset))]
    family = Path(name).parent.name
    keys = {"swin": ("PATCH_SIZE", "WINDOW_SIZE"), "cvt": ()}.get(family, ("PATCH_SIZE",))
    variant = get_variant(cfg.MODEL.TYPE)
    defaults = {k: p.default for k, p in keywords_of(variant.constructor).items()} | variant.sizes
    sizes = [cfg.MODEL.ARGS.get(key, defaults.get(key.lower())) for key in keys]
    assert numbers[: len(keys) + 1] == [*sizes, cfg.DATA.IMG_SIZE]


@pytest.mark.parametrize("name", NATIVE)
def test_native_sizes_are_as_their_headers_say(name):
    cfg = load(name)
    side = cfg.DATA.IMG_SIZE
    patch = cfg.MODEL.ARGS.get("PATCH_SIZE") or cfg.MODEL.ARGS.get("PATCH_STRIDES", [4, 2, 2])[0]
    assert cfg.AUG.CROP == "padded"
    assert not cfg.AUG.RESIZE_FIRST
    text = "\n".join(header(name))
    if "/swin/" in name:
        window = cfg.MODEL.ARGS.WINDOW_SIZE
        grids = [side // patch // 2**stage for stage in range(4)]
        assert " and ".join([", ".join(f"{g}x{g}" for g in grids[:3]), f"{grids[3]}x{grids[3]}"]) in text
        assert all(grid % window == 0 or grid < window for grid in grids)
    elif "/cvt/" in name:
        grids = [f"{side // patch // 2**stage}x{side // patch // 2**stage}" for stage in range(3)]
        assert f"{grids[0]}, {grids[1]} and {grids[2]} tokens" in text
    else:
        assert f"into {side // patch}x{side // patch} = {(side // patch) ** 2} tokens" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_model_can_be_built_and_has_the_size_of_the_header(name, counted):
    """On the meta device: shapes without memory. Published figures are rounded or cut to their last digit."""
    cfg = load(name)
    with torch.device("meta"):
        model = build_model(cfg, cfg.MODEL.NUM_CLASSES)
    stated = re.search(r"([\d.]+) M parameters, ([\d.]+) GFLOPs", "\n".join(header(name)))
    if stated:
        large = cfg.MODEL.NUM_CLASSES > 1000  # other heads do not count
        same = cfg.MODEL.TYPE, cfg.DATA.IMG_SIZE, str(cfg.MODEL.ARGS), large
        if same not in counted:
            counted[same] = count_macs(model, cfg.DATA.IMG_SIZE)["total"]
        measured = sum(parameter.numel() for parameter in model.parameters()) / 1e6, counted[same] / 1e9
        for figure, value in zip(stated.groups(), measured, strict=True):
            last_digit = 10.0 ** -len(figure.partition(".")[2])
            assert float(figure) == pytest.approx(value, abs=last_digit * (0.51 if name in NATIVE else 1))


@pytest.mark.parametrize("name", TASKS)
def test_of_a_task_is_short_and_its_command_runs_it(name):
    body = Path(name).read_text().splitlines()[len(header(name)) :]
    assert {"detection": 4, "segmentation": 3}[Path(name).parent.name] <= len(header(name)) <= 5
    assert 5 <= len(body) <= 12
    args = parse_args(command(name))
    assert args.cfg == name
    cfg = load(args.cfg, args.opts, flag_overrides(args))
    assert (Path(name).parent.name, Path(name).stem) == (cfg.TASK, cfg.MODEL.NAME)


@pytest.mark.parametrize("name", TASKS)
def test_header_of_a_task_gives_the_other_half_of_the_comparison(name):
    (line,) = [line for line in header(name) if "--opts MODEL.SHORTCUT.KERNELS" in line]
    other = [3] if "with the shortcut" in line else []
    assert ("[3]" in line) == bool(other)
    assert ([] if other else [3]) == load(name).MODEL.SHORTCUT.KERNELS
