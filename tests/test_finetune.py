"""From a large set of classes to a small one: rows of the head by class name, rates by depth, frozen parts, and the
whole chain on a small ImageNet-22k."""

import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.optim import param_groups_layer_decay
from torch import nn

import models
from config import default_config, load_config
from data.datasets.imagenet22k import wordnet_names
from engine.freeze import freeze
from models.dense import feature_pyramid
from models.weights.pretrained import load_pretrained
from optimizer import build_optimizer, continue_from, describe_groups, layer_scales
from tasks.backbone import build_model
from tests.launch import run, run_here
from tests.small import small, small_sizes
from tests.tiny import arguments, final_state, write_config
from utils.errors import ConfigError

FAMILIES = ("vit_tiny", "cait_xxs12", "swin_tiny", "swin_v2_tiny", "swin_mlp_tiny_c24", "cvt_13", "dwnet_tiny",
            "dynamic_dwnet_tiny")  # fmt: skip


def with_shortcut(variant, **kwargs):
    return small(variant, shortcut={"kernels": [3]}, **kwargs)


# ---- the head, by class name


def checkpoint(path, model, classes):
    torch.save({"format": 1, "model": model.state_dict(), "data": {"classes": list(classes)}}, path)
    return path


@pytest.mark.parametrize(
    ("here", "rows", "said"),
    [
        ("abcde", "01234", ""),
        ("edcba", "43210", "head: 5 of 5 classes by name"),
        ("bd", "13", "head: 2 of 2 classes by name"),
        ("xbydz", "-1-3-", "head: 2 of 5 classes by name; fresh: x, y, z"),
        ("vwxyz", "01234", ""),  # nothing known of how they belong together
        ("vw", "--", ""),
    ],
)
@pytest.mark.parametrize("variant", ["vit_tiny", "cvt_13"])
def test_rows_of_the_head_go_to_the_classes_of_their_names(tmp_path, variant, here, rows, said):
    source, target, lines = small(variant), small(variant, num_classes=len(here)), []
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = load_pretrained(target, checkpoint(tmp_path / "a.pth", source, "abcde"), log=lines.append, classes=here)
    for name in ("weight", "bias"):
        new, old = getattr(target.head, name), getattr(source.head, name)
        for row, origin in enumerate(rows):
            assert torch.equal(new[row], fresh[f"head.{name}"][row] if origin == "-" else old[int(origin)])
    assert [line for line in lines if line.startswith("head: ")] == [said] * bool(said)
    assert ("head.weight" in report.matched) == (rows != "--")


def test_exported_weights_know_their_classes_too(tmp_path):
    source, target = small("vit_tiny"), small("vit_tiny", num_classes=2)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors", metadata={"class_names": '["a", "b", "c", "d", "e"]'})
    load_pretrained(target, tmp_path / "a.safetensors", log=list, classes=("e", "b"))
    assert torch.equal(target.head.weight, source.head.weight[[4, 1]])
    save_file(state, tmp_path / "b.safetensors", metadata={"class_names": "unreadable"})
    load_pretrained(small("vit_tiny"), tmp_path / "b.safetensors", log=list, classes=("e", "b"))


# ---- rates by depth


@pytest.mark.parametrize("variant", [*FAMILIES, "timm/vit_tiny_patch16_224", "timm/resnet18"])
def test_scales_are_those_of_timm(variant):
    if variant.startswith("timm/"):
        model = models.create(variant, num_classes=5, shortcut={"kernels": [3]} if "vit" in variant else {})
    else:
        model = with_shortcut(variant)
    groups = param_groups_layer_decay(model, 0.05, layer_decay=0.5)
    expected = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    scales = layer_scales(model, 0.5)
    assert {name: expected[id(parameter)] for name, parameter in model.named_parameters()} == scales
    assert {name for name, scale in scales.items() if scale == 1} >= {
        name for name, _ in model.named_parameters() if name.startswith(("head.", "fc."))
    }


@pytest.mark.parametrize("variant", ["vit_tiny", "swin_tiny"])
def test_what_stands_beside_a_backbone_has_the_full_rate(variant):
    sizes = {key: value for key, value in small_sizes(variant).items() if key != "num_classes"}
    model = nn.ModuleDict({"backbone": feature_pyramid(variant, **sizes), "decode_head": nn.Linear(3, 2)})
    scales = layer_scales(model, 0.5)
    inside = {name: scale for name, scale in scales.items() if name.startswith("backbone.body.")}
    assert max(inside.values()) == 0.5
    assert {scale for name, scale in scales.items() if name not in inside} == {1}


def test_a_student_has_the_layers_where_the_model_is_not_trained():
    model = with_shortcut("vit_tiny").requires_grad_(False)
    extra = nn.ModuleDict({"student": with_shortcut("vit_tiny"), "head": nn.Linear(3, 2)})
    alone = layer_scales(extra["student"], 0.5)
    scales = layer_scales(model, 0.5, extra)
    assert {f"extra.student.{name}": scale / 2 for name, scale in alone.items()}.items() <= scales.items()
    assert {scales[f"extra.head.{name}"] for name in ("weight", "bias")} == {1}
    assert layer_scales(extra["student"], 0.5, nn.Linear(3, 2)) == alone  # a head of DRLOC's


def optimizer_of(model, **train):
    config = default_config()
    for key, value in train.items():
        config.TRAIN[key] = value
    return build_optimizer(config, model, lr=1.0)


def test_each_layer_steps_at_its_own_rate_and_all_are_listed():
    model = with_shortcut("vit_tiny")
    optimizer = optimizer_of(model, LAYER_DECAY=0.5)
    scales = layer_scales(model, 0.5)
    seen = {name: (group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups
            for name in group["names"]}  # fmt: skip
    plain = {name: group["weight_decay"] for group in optimizer_of(model).param_groups for name in group["names"]}
    assert seen == {name: (scales[name], plain[name]) for name in plain}
    assert optimizer.param_groups[0]["lr_scale"] == 1  # the rate that the log shows
    *decay, depth = describe_groups(optimizer)
    assert [line for line in decay if "0.05" in line] == [line for line in describe_groups(optimizer_of(model))
                                                          if "0.05" in line]  # fmt: skip
    assert "times 1 on 2, 0.5 on" in depth
    assert not any("by depth" in line for line in describe_groups(optimizer_of(model)))


def test_rates_by_depth_can_be_given_up_on_the_way():
    model = with_shortcut("vit_tiny")
    stored = optimizer_of(model, LAYER_DECAY=0.5).state_dict()
    plain = optimizer_of(model)
    continue_from(plain, stored, "last.pth")
    assert not any("lr_scale" in group for group in plain.param_groups)
    again = optimizer_of(model, LAYER_DECAY=0.5)
    continue_from(again, stored, "last.pth")
    assert len({group["lr_scale"] for group in again.param_groups}) == 5


def test_layers_of_an_unknown_model_are_refused():
    with pytest.raises(ConfigError, match=r"TRAIN.LAYER_DECAY: 0.5, but"):
        optimizer_of(nn.Linear(2, 2), LAYER_DECAY=0.5)


# ---- what is not trained


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        ([], ".*"),
        (["*", "-head"], r"head\..*"),
        (["*", "-head.bias"], r"head\.bias"),
        (["stages.0", "stages.[12].*"], r"(?!stages\.[012]\.).*"),
        (["stages.?.stack.blocks.*.attn.*"], r"(?!stages\.\d\.stack\.blocks\.\d\.attn\.).*"),
        (["*", "-*.shortcuts.*", "stages.0"], r"stages\.[1-9].*\.shortcuts\..*"),
    ],
)
def test_patterns_say_what_is_trained(patterns, trained):
    model = with_shortcut("swin_tiny")
    frozen = freeze(model, patterns)
    named = dict(model.named_parameters())
    assert {name for name, p in named.items() if p.requires_grad} == {n for n in named if re.fullmatch(trained, n)}
    inside = {id(parameter) for part in frozen for parameter in part.parameters()}
    assert not any(parameter.requires_grad and id(parameter) in inside for parameter in named.values())


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["stages.9"], ["'stages.9' matches no parameter", "did you mean stages."]),
        (["*", "-haed"], ["'-haed' matches no parameter", "did you mean head?"]),
        (["Head"], ["'Head' matches no parameter"]),
        ([""], ["'' matches no parameter"]),
        (["*"], ["leaves nothing to train"]),
        (["*", "-head", "head"], ["leaves nothing to train"]),
    ],
)
def test_a_pattern_for_nothing_and_nothing_to_train_are_one_line(patterns, words):
    model = with_shortcut("swin_tiny")
    with pytest.raises(ConfigError) as caught:
        freeze(model, patterns)
    assert all(word in caught.value.line() for word in words), caught.value.line()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_linear_probe_moves_the_head_alone(tmp_path, ranks):
    """No weight, no BatchNorm statistic and no average of what is frozen; and what is trained does move."""
    path = write_config(tmp_path, TRAIN__FREEZE=["*", "-head"])
    stored = torch.load(first_weights(tmp_path, path), weights_only=True)
    results = run(arguments(path, tmp_path, "--pretrained", str(tmp_path / "first.pth")), tmp_path, ranks=ranks)
    assert [result.code for result in results] == [0] * ranks, results[0].output
    assert "frozen: " in results[0].output
    state = final_state(tmp_path)
    for weights in (state["model"], state["ema"]):
        moved = {name for name in stored if not torch.equal(stored[name], weights[name])}
        assert moved == {"head.weight", "head.bias"}


def first_weights(folder, path):
    model = build_model(load_config(path)[0], 4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a training would leave at once
            module.running_mean.fill_(0.3)
            module.running_var.fill_(1.7)
    torch.save(model.state_dict(), folder / "first.pth")
    return folder / "first.pth"


def test_a_pattern_for_nothing_ends_a_run_with_64(tmp_path, capsys):
    path = write_config(tmp_path, TRAIN__FREEZE=["stem"])
    result = run_here(arguments(path, tmp_path), capsys)
    assert (result.code, len(result.errors)) == (64, 1)
    assert "TRAIN.FREEZE" in result.errors[0]


# ---- the chain: pretrain, map, fine-tune at another size, evaluate

IDS = list(wordnet_names())[:21000:70]  # 300 classes
SMALL_SET = IDS[::50]  # that are fine-tuned to
RECIPE = {
    "AUG": {"CROP": "none", "AUTO_AUGMENT": "", "REPROB": 0.0, "MIXUP": 0.0, "CUTMIX": 0.0, "COLOR_JITTER": 0.0},
    "MODEL": {"TYPE": "vit_tiny", "SHORTCUT": {"KERNELS": [3]}, "LABEL_SMOOTHING": 0.0,
              "ARGS": {"DIM": 32, "DEPTH": 2, "HEADS": 2, "PATCH_SIZE": 8, "POOL": "mean"}},
    "DATA": {"BATCH_SIZE": 20, "NUM_WORKERS": 0, "IMG_SIZE": 16},
    "TRAIN": {"WARMUP_EPOCHS": 0, "BASE_LR": 0.01, "MIN_LR": 0.0, "WEIGHT_DECAY": 0.0},
    "AMP": {"ENABLE": False}, "TENSORBOARD": False, "DEVICE": "cpu",
}  # fmt: skip


def colour(number, spread):
    """One of `spread` ** 3 colours."""
    return [20 + 210 * (number // spread**k % spread) // (spread - 1) for k in range(3)]


def pictures(folder, names, count, side=16):
    """`count` noisy pictures of each class, in the colour that belongs to its number in IDS."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.RandomState(hash((IDS.index(name), i, folder.name == "val")) % 2**31)
            pixels = np.array(colour(IDS.index(name), 7)) + noise.randint(-8, 8, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


def accuracies(text):
    """{'before training: val' or 'val': (correct, total)} of the lines with top-1."""
    found = re.findall(r"(before training: val|val|test):? top-1 [\d.]+ % \((\d+)/(\d+)\)", text)
    return {what: (int(correct), int(total)) for what, correct, total in found}


def test_the_whole_chain(tmp_path, capsys):
    pictures(tmp_path / "22k", IDS, 3)
    for part, count in (("train", 4), ("val", 4)):
        pictures(tmp_path / "1k" / part, SMALL_SET, count)
    (tmp_path / "excluded.txt").write_text(f"{SMALL_SET[0]}  # {wordnet_names()[SMALL_SET[0]]}\n")
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    common = ["--cfg", str(path), "--output", str(tmp_path / "out")]
    large = ["--data-path", str(tmp_path / "22k"), "DATA.DATASET", "imagenet22k:val=1", "DATA.EXCLUDE",
             str(tmp_path / "excluded.txt"), "TRAIN.EPOCHS", "6", "TEST.EPOCHS", "6", "--tag", "22k"]  # fmt: skip
    result = run_here([*common, *large], capsys)
    assert result.code == 0, result.output
    assert "299 classes" in result.output
    best = tmp_path / "out/chain/22k/checkpoints/best.pth"

    tune = ["--data-path", str(tmp_path / "1k"), "--tag", "tuned", "DATA.DATASET", "imagenet", "DATA.IMG_SIZE", "24",
            "DATA.BATCH_SIZE", "8", "TRAIN.EPOCHS", "8", "TEST.EPOCHS", "8",
            "TRAIN.LAYER_DECAY", "0.7", "TRAIN.EMA.ENABLE", "true", "TRAIN.EMA.DECAY", "0.5"]  # fmt: skip
    result = run_here([*common, *tune, "--pretrained", str(best)], capsys)
    assert result.code == 0, result.output
    assert f"head: 5 of 6 classes by name; fresh: {SMALL_SET[0]}" in result.output
    before = accuracies(result.output)["before training: val"]
    assert before == zero_shot(best, tmp_path / "1k/val")
    assert before[0] >= 12  # of 24; a guess has 4
    last = tmp_path / "out/chain/tuned/checkpoints/best.pth"
    result = run_here([*common, *tune, "--eval", "--resume", str(last)], capsys)
    assert accuracies(result.output)["val"][0] > max(18, before[0])


def zero_shot(path, folder):
    """(correct, total) by hand: the large model at the new size, its logits of the small set's classes alone. The class
    that it does not know never wins in this model, whose fresh row is near zero."""
    payload = torch.load(path, weights_only=True)
    arguments = {key.lower(): value for key, value in RECIPE["MODEL"]["ARGS"].items()}
    model = models.create("vit_tiny", num_classes=299, img_size=24, shortcut={"kernels": [3]}, **arguments).eval()
    positions = payload["model"]["pos_embed"]
    prefix = positions.shape[1] - 4
    positions = resample_abs_pos_embed(positions, (3, 3), (2, 2), num_prefix_tokens=prefix)
    model.load_state_dict({**payload["model"], "pos_embed": positions})
    classes = payload["data"]["classes"]
    rows = [classes.index(name) for name in SMALL_SET[1:]]
    mean, std = (torch.tensor(payload["data"][key])[:, None, None] for key in ("mean", "std"))
    correct, total = 0, 0
    for label, name in enumerate(SMALL_SET):
        for file in sorted((folder / name).iterdir()):
            pixels = Image.open(file).resize((27, 27), Image.Resampling.BICUBIC)  # 24 / 0.875, then the centre
            image = torch.tensor(np.array(pixels)[1:25, 1:25]).permute(2, 0, 1) / 255
            with torch.no_grad():
                logits = model(((image - mean) / std)[None])[0, rows]
            correct, total = correct + int(1 + logits.argmax() == label), total + 1
    return correct, total
