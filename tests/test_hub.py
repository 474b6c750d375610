"""Models that travel: a folder gives back the model that was saved, through timm too; bad folders are one line."""

import json
import shutil

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import main
import models
from models.checks import ArgumentError
from models.registry import get_variant
from models.vit import ViT
from tests.helpers_data import noise
from tests.small import small
from tests.test_detection_runs import write as write_detection
from tests.test_dino import write as write_dino
from tests.test_segmentation_runs import write as write_segmentation
from tests.tiny import arguments, write_config
from tests.trained import folder_run, restless
from tools import hub
from tools.shared.trained import load_model
from utils.errors import RunError

VARIANTS = ("vit_tiny", "cait_xxs12", "swin_tiny", "swin_v2_tiny", "swin_mlp_tiny_c24", "cvt_13", "dwnet_tiny",
            "i_dynamic_dwnet_tiny")  # fmt: skip
TIMM = {
    "timm/vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "timm/resnet18": {"img_size": 32},
}


def made(name, **kwargs):
    model = small(name, **kwargs) if name in VARIANTS else models.create(name, num_classes=5, **TIMM[name], **kwargs)
    return restless(model).eval()


def images(model, folder):
    cfg = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}"))
    return torch.randn(2, *cfg["input_size"])


@pytest.mark.parametrize("shortcut", [{"kernels": [3, 5], "span": 2, "learned_scale": True}, None], ids=("dw", "plain"))
@pytest.mark.parametrize("name", [*VARIANTS, *TIMM])
def test_timm_and_we_read_what_was_saved(tmp_path, name, shortcut):
    model = made(name, shortcut=shortcut)
    models.save_pretrained(model, tmp_path, {"mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}, list("abcde"), "# card\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    x = images(model, tmp_path)
    assert x.shape[-1] == (TIMM.get(name) or {"img_size": x.shape[-1]})["img_size"]
    for again in (timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), models.from_pretrained(tmp_path)):
        assert torch.equal(again(x), model(x))
        found = timm.data.resolve_model_data_config(again)
        assert list(found["mean"]) == [0.1, 0.2, 0.3]
        assert found["crop_pct"] == 1.0
        assert list(again.pretrained_cfg["label_names"]) == list("abcde")
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    ours = f"{'dw' if shortcut else 'plain'}_{name}_"
    theirs = "timm_with_shortcuts" if shortcut else name.removeprefix("timm/")
    assert architecture.startswith(theirs if name in TIMM else ours)


def test_a_model_is_saved_as_it_is_now(tmp_path):
    model = made("vit_tiny", shortcut={"kernels": [3]})
    model.set_input_size((64, 32))
    model.reset_classifier(7, "avg")
    model.save_pretrained(tmp_path)
    again = models.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 64, 32)
    assert again(x).shape == (2, 7)
    assert torch.equal(again(x), model(x))
    again.save_pretrained(tmp_path / "second")  # and from there once more
    assert torch.equal(models.from_pretrained(f"local-dir:{tmp_path}/second")(x), model(x))


def test_another_last_layer_leaves_the_rest(tmp_path):
    model = made("swin_tiny")
    model.save_pretrained(tmp_path)
    again = models.from_pretrained(tmp_path, num_classes=3)
    same = [name for name, tensor in again.state_dict().items() if torch.equal(tensor, model.state_dict()[name][:3])
            or torch.equal(tensor, model.state_dict()[name])]  # fmt: skip
    assert set(again.state_dict()) - set(same) == {"head.weight", "head.bias"}


def test_what_timm_could_not_build_again_is_refused(tmp_path):
    model = made("vit_tiny")
    model.prune_intermediate_layers([0], prune_head=False)
    with pytest.raises(ArgumentError, match=r"stack.blocks.1.*missing"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="only what models.create made"):
        models.save_pretrained(ViT(**get_variant("vit_tiny").sizes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def change(**changes):
    """A fault: config.json with other values; None takes a key away."""

    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return damage


def task(config):
    return change(architecture="task_network", model_args={"config": config}, pretrained_cfg={})


def text(content):
    return lambda folder: (folder / "config.json").write_text(content)


def weights(edit):
    """A fault: other tensors."""

    def damage(folder):
        state = load_file(folder / "model.safetensors")
        edit(state)
        save_file(state, folder / "model.safetensors")

    return damage


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


FAULTS = {
    "no folder": (shutil.rmtree, 66, "no such folder"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), 66, "config.json: no such file"),
    "no JSON": (text("{"), 65, "is not JSON"),
    "not UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff"), 65, "is not JSON"),
    "a list": (text("[]"), 65, "`architecture` is missing"),
    "no architecture": (change(architecture=None), 65, "`architecture` is missing"),
    "a number": (change(architecture=3), 65, "no str"),
    "unknown architecture": (change(architecture="dw_vit_tinny_patch16_224"), 65, "mean dw_vit_tiny_patch16_224?"),
    "no preprocessing": (change(pretrained_cfg=None), 65, "`pretrained_cfg` is missing"),
    "unknown preprocessing": (change(pretrained_cfg={"men": 3}), 78, "men"),
    "unknown keyword": (change(model_args={"depht": 3}), 64, "depht: vit_tiny has no such argument"),
    "wrong keyword": (change(model_args={"depth": "3"}), 64, "depth '3'"),
    "arguments are a list": (change(model_args=["a"]), 65, "`model_args` is missing or is no dict"),
    "a task without configuration": (change(architecture="task_network", model_args={}), 78, "config"),
    "an unknown task": (task({"TASK": "x"}), 64, "TASK: 'x'"),
    "a task of text": (task("x"), 78, "task_network"),
    "a backbone that is not": (change(architecture="timm_with_shortcuts", model_args={"backbone": "x"}), 64, "timm/x"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), 66, "model.safetensors"),
    "weights are cut": (cut, 65, "not a complete safetensors file"),
    "a tensor is missing": (weights(lambda state: state.pop("cls_token")), 78, "cls_token"),
    "a tensor too many": (weights(lambda state: state.update(extra=torch.zeros(1))), 78, "extra"),
    "another shape": (weights(lambda state: state.update(cls_token=torch.zeros(1, 1, 2))), 78, "cls_token"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_folder_is_one_line(tmp_path, monkeypatch, capsys, name):
    damage, code, fact = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    made("vit_tiny").save_pretrained("model")
    damage(tmp_path / "model")
    with pytest.raises(RunError):
        models.from_pretrained("model")
    assert hub.main(["pull", "model", "copy"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert fact in said
    assert not (tmp_path / "copy").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return folder_run(tmp_path_factory.mktemp("trained"))


def test_a_run_travels_with_its_preprocessing_and_its_card(trained, tmp_path):
    run, _ = trained
    assert hub.main(["push", str(run), str(tmp_path / "model")]) == 0
    assert hub.main(["pull", str(tmp_path / "model"), str(tmp_path / "copy")]) == 0
    model, loaded = timm.create_model(f"local-dir:{tmp_path}/copy", pretrained=True).eval(), load_model(run, "cpu")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = noise(3, (8, 8))  # the size of the run's images, which is also the model's
    torch.testing.assert_close(transform(image), loaded.transform(image))
    assert torch.equal(model(transform(image)[None]), loaded.logits(loaded.transform(image)[None]))
    assert list(model.pretrained_cfg["label_names"]) == ["ant", "bee", "cat"]
    card, summary = (tmp_path / "copy/README.md").read_text(), json.loads((run / "summary.json").read_text())
    best, last = summary["best"], summary["final"]
    assert card.startswith("---\nlibrary_name: timm\n")
    assert f"({best['correct']}/{best['total']}) on the dataset's validation images" in card
    assert f"| final | {100 * last['correct'] / last['total']:.2f} % ({last['correct']}/{last['total']}) |" in card
    assert "| command | `python main.py --cfg tiny.yaml" in card
    assert str(run.parents[2]) not in card + (tmp_path / "copy/config.json").read_text()


@pytest.mark.parametrize(("crop", "mode"), [(True, "center"), (False, "squash")])
def test_images_of_other_sizes_are_fitted_as_in_the_run(trained, tmp_path, crop, mode):
    run, data = trained
    shutil.copytree(data, tmp_path / "data")
    for number, path in enumerate(sorted((tmp_path / "data/val").rglob("*.png"))):
        noise(number, (24, 17)).save(path)
    config = write_config(tmp_path, DATA__DATASET="imagefolder", DATA__DATA_PATH=str(data), TEST__CROP=crop)
    assert main.main(arguments(config, tmp_path)) == 0
    given = ["push", str(tmp_path / "tiny/default"), str(tmp_path / "model"), "--data-path", str(tmp_path / "data")]
    assert hub.main(given) == 0
    model, loaded = models.from_pretrained(tmp_path / "model"), load_model(tmp_path / "tiny/default", "cpu")
    found = timm.data.resolve_model_data_config(model)
    assert found["crop_mode"] == mode
    image = Image.open(tmp_path / "data/val/ant/0.png")
    torch.testing.assert_close(timm.data.create_transform(**found)(image), loaded.transform(image))


def test_where_the_images_are_not_known_or_of_two_kinds_it_is_said(trained, tmp_path, capsys):
    run, data = trained
    shutil.copytree(data, tmp_path / "data")
    noise(1, (24, 17)).save(tmp_path / "data/val/ant/0.png")
    assert hub.main(["push", str(run), str(tmp_path / "a"), "--data-path", str(tmp_path / "data")]) == 0
    assert "some images have the model's size" in capsys.readouterr().err
    assert hub.main(["push", str(run), str(tmp_path / "b"), "--data-path", str(tmp_path / "none")]) == 66
    shutil.move(data, tmp_path / "away")
    assert hub.main(["push", str(run), str(tmp_path / "c")]) == 0
    assert "name --data-path" in capsys.readouterr().err
    shutil.move(tmp_path / "away", data)


def test_training_starts_from_the_folder(trained, tmp_path):
    assert hub.main(["push", str(trained[0]), str(tmp_path / "model")]) == 0
    config = write_config(tmp_path, TRAIN__EPOCHS=1)  # with another number of classes
    weights = str(tmp_path / "model/model.safetensors")
    assert main.main(arguments(config, tmp_path, "--pretrained", weights)) == 0
    said = (tmp_path / "tiny/default/log.txt").read_text()
    assert "42 tensors matched, 0 resized, 2 skipped, 0 missing" in said  # the last layer has other classes


@pytest.mark.parametrize(
    ("task", "write"), [("segmentation", write_segmentation), ("detection", write_detection), ("dino", write_dino)]
)
def test_runs_of_other_tasks_travel_with_their_heads(tmp_path, task, write):
    assert main.main(arguments(write(tmp_path, TRAIN__EPOCHS=1), tmp_path)) == 0
    run = tmp_path / "tiny/default"
    assert hub.main(["push", str(run), str(tmp_path / "model")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path}/model", pretrained=True).eval()
    loaded = load_model(run, "cpu", known=(task,))
    image = torch.randn(1, 3, *((8, 8) if task == "dino" else (40, 56)))  # not the size of the crops
    torch.testing.assert_close(model(image), loaded.model(image), rtol=0, atol=0)
    assert model.state_dict().keys() == loaded.model.state_dict().keys()  # what is for training alone, too
    assert model.pretrained_cfg["mean"] == pytest.approx(loaded.mean)
    names = () if task == "dino" else loaded.class_names  # the features of a backbone without a last layer
    assert tuple(model.pretrained_cfg.get("label_names", ())) == names


class Hub:
    """What is asked of the library, noted; the repository is a folder."""

    def __init__(self, repository):
        self.repository, self.calls = repository, []

    def __call__(self):
        return self

    def create_repo(self, name, **options):
        self.calls.append((name, options))

    def upload_folder(self, *, repo_id, folder_path, **options):
        self.calls.append((repo_id, options))
        shutil.copytree(folder_path, self.repository)

    def snapshot_download(self, name, **options):
        self.calls.append((name, options))
        return str(self.repository)


def test_the_hub_is_asked_for_the_right_things(trained, tmp_path, monkeypatch):
    asked = Hub(tmp_path / "repository")
    monkeypatch.setattr(huggingface_hub, "HfApi", asked)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked.snapshot_download)
    assert hub.main(["push", str(trained[0]), "hf-hub:me/digits"]) == 0
    assert hub.main(["pull", "hf-hub:me/digits@v1", str(tmp_path / "copy")]) == 0
    created, sent, fetched = asked.calls
    assert created == ("me/digits", {"private": True, "exist_ok": True})
    assert sent[0] == "me/digits"
    files = ["config.json", "model.safetensors", "README.md"]
    assert fetched == ("me/digits", {"revision": "v1", "allow_patterns": files})
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted(files)
    assert 'timm.create_model("hf-hub:me/digits"' in (tmp_path / "copy/README.md").read_text()


@pytest.mark.parametrize("error", [ConnectionError("no route"), RuntimeError("401: no token\nsecond")])
def test_no_answer_is_one_line(monkeypatch, tmp_path, capsys, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert hub.main(["pull", "hf-hub:me/digits", str(tmp_path / "copy")]) == 69
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(error).splitlines()[0] in said


@pytest.mark.parametrize(
    ("given", "code", "fact"),
    [
        ([], 64, "push|pull"),
        (["push"], 64, "CHECKPOINT"),
        (["pul", "a", "b"], 64, "pul"),
        (["push", "nothing.pth", "new"], 66, "nothing.pth"),
        (["push", "nothing.pth", "full"], 64, "is there already"),
        (["push", "nothing.pth", "full/file"], 64, "is there already"),
        (["push", "nothing.pth", "full/file/new"], 73, "cannot be created"),
        (["pull", "nothing", "new"], 66, "hf-hub:OWNER/NAME"),
        (["pull", "hf-hub:a/b/c", "new"], 64, "a/b/c"),
        (["pull", "hf-hub:", "new"], 64, "hf-hub:"),
        (["push", "a.pth", "b", "--token", "secret"], 64, "--token"),
    ],
)
def test_wrong_words_are_one_line(tmp_path, monkeypatch, capsys, given, code, fact):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    assert hub.main(given) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert fact in said
