"""The datasets by name: one registered function each, from a Request to Sources."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from data.cifar import cifar_sources
from data.folders import folder_sources
from data.small import digits_sources, fake_sources
from data.tiny_imagenet import tiny_imagenet_sources
from data.zip_folder import zip_sources
from utils.errors import ConfigError, nearest

DATASETS = {}


def nothing():
    """The barrier of a single process."""


@dataclass(frozen=True)
class Request:
    """What a dataset function may want to know. `img_size` is (height, width), used by `fake` alone.

    `barrier` makes the processes of a run wait for each other; `log` takes a line of text; `options` are the numbers
    behind the colon of a dataset's name (`fake:train=512,classes=5`).
    """

    path: str = ""
    img_size: tuple = (224, 224)
    download: bool = True
    zip_mode: bool = False
    cache_mode: str = "part"
    rank: int = 0
    world_size: int = 1
    barrier: Callable = nothing
    log: Callable = print
    options: dict = field(default_factory=dict)


def register(name, options=False, zip_mode=False):
    """Enter a function (Request -> Sources) under `name`; say whether it takes options and zip files."""

    def enter(function):
        DATASETS[name] = (function, options, zip_mode)
        return function

    return enter


def list_datasets():
    """Names of all datasets."""
    return sorted(DATASETS)


def create(spelling, request):
    """Sources of the dataset `spelling` (`name` or `name:key=number,...`).

    Raises ConfigError for unknown names and options, MissingError and DataError as the datasets do.
    """
    name, _, text = spelling.partition(":")
    if name not in DATASETS:
        known = ", ".join(list_datasets())
        raise ConfigError(f"DATA.DATASET: unknown dataset {name!r}; one of {known}{nearest(name, DATASETS)}")
    function, takes_options, takes_zip = DATASETS[name]
    if text and not takes_options:
        raise ConfigError(f"DATA.DATASET: {spelling!r}, but {name} takes no options")
    if request.zip_mode and not takes_zip:
        raise ConfigError(f"DATA.ZIP_MODE: {name} is not read from zip files; turn it off")
    return function(replace(request, options=parse_options(spelling, text)))


def parse_options(spelling, text):
    """{'train': 512} from 'train=512'. Raises ConfigError."""
    options = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if not value.strip().isdecimal():
            raise ConfigError(f"DATA.DATASET: {spelling!r}: {part!r} is not key=number (like fake:train=512,classes=5)")
        options[key.strip()] = int(value)
    return options


@register("digits")
def digits(request):
    """Handwritten digits of scikit-learn, 8x8; nothing to download."""
    return digits_sources()


@register("cifar10")
def cifar10(request):
    """CIFAR-10, 32x32."""
    return cifar_sources("cifar10", request.path, request.download, request.rank, request.barrier, request.log)


@register("cifar100")
def cifar100(request):
    """CIFAR-100, 32x32."""
    return cifar_sources("cifar100", request.path, request.download, request.rank, request.barrier, request.log)


@register("tiny-imagenet")
def tiny_imagenet(request):
    """Tiny-ImageNet, 64x64, as unpacked or sorted."""
    return tiny_imagenet_sources(request.path, request.log)


@register("imagenet", zip_mode=True)
def imagenet(request):
    """ImageNet in class folders train/ and val/, or in zip files."""
    return folders_or_zip("imagenet", request, parts=("val",))


@register("imagefolder", zip_mode=True)
def imagefolder(request):
    """Any class folders train/ and val/ (or test/), or zip files."""
    return folders_or_zip("imagefolder", request, parts=("val", "test"))


@register("fake", options=True)
def fake(request):
    """Noise of the model's input size: 256 images to train on, 64 to validate, 10 classes unless said otherwise."""
    return fake_sources(request.img_size, request.options)


def folders_or_zip(name, request, parts):
    """Class folders, or with `zip_mode` the zip files and maps."""
    if request.zip_mode:
        return zip_sources(name, request.path, request.cache_mode, request.rank, request.world_size)
    return folder_sources(name, request.path, parts, request.log)
