"""Trained models on their way: to the Hugging Face Hub and back, or to a folder that timm reads.

python -m tools.hub push CHECKPOINT TARGET [--weights auto|model|ema] [--data-path DIR]
python -m tools.hub pull NAME FOLDER

push writes the model of a run (CHECKPOINT is a file that it wrote, or its folder, then best.pth) in timm's layout:
config.json, model.safetensors and README.md, a model card with the exact result, the command and the recipe. Then it is
read again and has to give the same output, bit for bit. TARGET is a new or empty folder, or hf-hub:OWNER/NAME, a
repository of the Hub, which is created as a private one if it is not there. Heads travel with the backbone.

pull copies these three files of NAME, hf-hub:OWNER/NAME[@REVISION] or a folder, to a new or empty FOLDER, once they are
known to be whole and to make a model; nothing in them is executed.

The token for the Hub is the one that `hf auth login` stored, or HF_TOKEN of the environment; no option takes it.

  python -m tools.hub push output/demo/digits_shortcut/seed0 digits-vit
  python -m tools.hub pull hf-hub:timm/resnet18.a1_in1k resnet18
"""

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

import models
import tasks
from data.transforms import EVAL_CROP
from models import hub
from tools.shared.card import card, recipe, run_of
from tools.shared.command import EXITS, command, parser
from tools.shared.inputs import add_options, choose_part, console, dataset_parts
from tools.shared.trained import load_model
from utils.errors import ConfigError, MismatchError, MissingError, OutputError

SAMPLE = 50  # images of the validation set whose size is looked at
PIPELINES = {  # the Hub's words
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "dino": "image-feature-extraction",
}
CLASSIFIER = """\
import timm
import models  # of this project

model = timm.create_model("{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # PIL image -> (3, H, W)
class_names = model.pretrained_cfg.get("label_names")"""
WITH_HEADS = """\
import timm
import tasks  # of this project

model = timm.create_model("{name}", pretrained=True).eval()
class_names, mean, std = (model.pretrained_cfg[key] for key in ("label_names", "mean", "std"))"""


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("hub", __doc__, EXITS)
    actions = options.add_subparsers(dest="action", required=True, metavar="push|pull")
    push_options = actions.add_parser("push", help="write a trained model in timm's layout")
    add_options(push_options, "checkpoint")
    push_options.add_argument("target", metavar="TARGET", help="new or empty folder, or hf-hub:OWNER/NAME")
    add_options(push_options, "--weights", "--data-path")
    pull_options = actions.add_parser("pull", help="fetch a model and check it")
    pull_options.add_argument("name", metavar="NAME", help="hf-hub:OWNER/NAME[@REVISION], or a folder")
    pull_options.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty folder")
    return options.parse_args(argv)


def push(given):
    """The action of this name."""
    remote = given.target.startswith(hub.HUB)
    if not remote:
        fresh_folder(given.target)
    loaded = load_model(given.checkpoint, "cpu", given.weights, tasks.TASKS)
    config = config_of(loaded, given.data_path)
    name = given.target if remote else f"{hub.LOCAL}{Path(given.target).name}"
    usage = CLASSIFIER if is_backbone(loaded.model) else WITH_HEADS
    text = front_matter(loaded) + card(loaded, given.weights, rows(loaded), usage.format(name=name))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if remote else Path(given.target)
        hub.write(folder, loaded.model, config, text)
        compare(loaded, models.from_pretrained(folder))
        if remote:
            upload(folder, given.target)
    print(f"written: {given.target} ({config['architecture']}, {config['num_classes']} classes)")
    print("checked: read again it gives the same output, bit for bit")


def fresh_folder(path):
    """The Path of a folder that is new or empty, made if need be. Raises ConfigError, OutputError."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{path}: is there already; name a new or an empty folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be created ({error.strerror})") from None
    return path


def config_of(loaded, data_path):
    """The dictionary for config.json of a LoadedModel."""
    prepared, classes = {"mean": loaded.mean, "std": loaded.std}, len(loaded.class_names)
    if is_backbone(loaded.model):
        classes = loaded.model.num_classes  # 0 where the task looks at features
        architecture, arguments, ours = hub.described(loaded.model)
        prepared = ours | prepared | fitting(loaded, data_path)
    else:
        architecture, arguments = "task_network", {"config": recipe(loaded), "in_chans": len(loaded.mean)}
        prepared |= {"input_size": (len(loaded.mean), *loaded.img_size)}
    return {
        "architecture": architecture,
        "num_classes": classes,
        "label_names": loaded.class_names[:classes],
        "model_args": arguments,
        "pretrained_cfg": prepared,
    }


def is_backbone(model):
    """Whether it is one of models.create, with its last layer at most, and not one with the heads of a task."""
    return hasattr(model, "created_as")


def fitting(loaded, data_path):
    """timm's words for how the run brings images to the model's size.

    The run takes images that have the size already as they are and others through a crop; timm's transform does the
    same with all images, so it has to be known which of them the dataset has.
    """
    fitted = {"interpolation": loaded.config.DATA.INTERPOLATION, "crop_pct": 1.0, "crop_mode": "squash"}
    if not loaded.config.TEST.CROP:
        return fitted
    try:
        images = choose_part(dataset_parts(loaded, data_path, console()), "val")
    except MissingError:
        if data_path:
            raise
        console().warning(
            "the run's images are not here: config.json says how those of other sizes than the model's are prepared; "
            "name --data-path if they have its size"
        )
        return fitted | {"crop_pct": EVAL_CROP, "crop_mode": "center"}
    chosen = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int)).tolist()
    as_they_are = [images.load(index).size[::-1] == loaded.img_size for index in chosen]
    if any(as_they_are) and not all(as_they_are):
        console().warning("some images have the model's size: the run takes them as they are, timm would crop them")
    return fitted | {"crop_pct": 1.0 if all(as_they_are) else EVAL_CROP, "crop_mode": "center"}


def front_matter(loaded):
    """The YAML that the Hub reads in a card."""
    task = PIPELINES.get(loaded.config.TASK, loaded.config.TASK)
    facts = {"library_name": "timm", "pipeline_tag": task, "tags": ["timm", task, loaded.config.MODEL.TYPE]}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n"


def rows(loaded):
    """What the run folder knows beyond the checkpoint: {name: text} for the card."""
    run, found = run_of(loaded), {}
    if run and (run.path / "command.txt").is_file():
        first = (run.path / "command.txt").read_text("utf-8", "backslashreplace").splitlines()[0]
        found["command"] = f"`{without_folders(first)}`"
    summary = (run.summary or {}) if run else {}
    for name in ("best", "final", "test"):
        if summary.get(name):
            found[name] = run.headline.say(summary[name])
    if summary:
        found["best chosen on"] = summary.get("best_chosen_on", "unknown")
    return found


def without_folders(line):
    """A command line in which of absolute paths, which are somebody's, only the last part is left."""
    words = (word.partition("=") if word.startswith("--") else ("", "", word) for word in shlex.split(line))
    return shlex.join(flag + equals + (Path(value).name if value.startswith(("/", "~")) else value)
                      for flag, equals, value in words)  # fmt: skip


@torch.inference_mode()
def compare(loaded, model):
    """Raise MismatchError unless the two give the same for an image of noise."""
    image = torch.randn(1, len(loaded.mean), *loaded.img_size, generator=torch.Generator().manual_seed(0))
    try:
        torch.testing.assert_close(model(image), loaded.model(image), rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        raise MismatchError("read again the model gives something else; please report this") from None


def upload(folder, target):
    """The files of a folder to the repository `hf-hub:OWNER/NAME[@REVISION]` as one commit; raises UnavailableError."""
    from huggingface_hub import HfApi

    repository, _, revision = target.removeprefix(hub.HUB).partition("@")
    with hub.hub_errors(target):
        HfApi().create_repo(repository, private=True, exist_ok=True)
        HfApi().upload_folder(
            repo_id=repository, folder_path=folder, revision=revision or None, commit_message="Add the model"
        )


def pull(given):
    """The action of this name."""
    source = hub.fetch(given.name)
    model = models.from_pretrained(source)
    folder = fresh_folder(given.folder)
    for name in (hub.WEIGHTS, hub.CARD, hub.CONFIG):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    cfg = model.pretrained_cfg
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {cfg['architecture']}, {count:,} parameters, {cfg['num_classes']} classes, "
          f"images {tuple(cfg['input_size'])}")  # fmt: skip


@command
def main(argv):
    """Do what is asked for; raises RunError."""
    given = parse(argv)
    {"push": push, "pull": pull}[given.action](given)


if __name__ == "__main__":
    sys.exit(main())
