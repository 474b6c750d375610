"""One registered function per dataset, from a Request to Sources."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from utils.errors import ConfigError, nearest

DATASETS = {}


@dataclass(frozen=True)
class Request:
    """What a dataset function may want to know. `img_size` is (height, width), used by `fake` alone, `exclude` by
    `imagenet22k`.

    `columns` are the names of the image's and the label's column where a file's own do not tell; `cache` is the folder
    for what is made of the files, '' the usual one.

    `barrier` makes the processes of a run wait for each other; `log` takes a line of text. `name` is the dataset's,
    `options` are the numbers behind its colon (`fake:train=512,classes=5`): `create` fills them in.
    """

    path: str = ""
    img_size: tuple = (224, 224)
    download: bool = True
    zip_mode: bool = False
    cache_mode: str = "part"
    exclude: str = ""
    rank: int = 0
    world_size: int = 1
    barrier: Callable = lambda: None
    log: Callable = print
    columns: tuple = ()
    cache: str = ""
    name: str = ""
    options: dict = field(default_factory=dict)


def register(name, options=False, zip_mode=False, datasets=DATASETS):
    """Enter a function (Request -> Sources) under `name`; say whether it takes options and zip files.

    datasets: of which table; a task that is not classification has one of its own.
    """

    def enter(function):
        datasets[name] = (function, options, zip_mode)
        return function

    return enter


def list_datasets(datasets=DATASETS):
    """Names of all datasets."""
    return sorted(datasets)


def create(spelling, request, datasets=DATASETS):
    """Sources of the dataset `spelling` (`name` or `name:key=number,...`).

    Raises ConfigError for unknown names and options, MissingError and DataError as the datasets do.
    """
    name, _, text = spelling.partition(":")
    if name not in datasets:
        known = ", ".join(list_datasets(datasets))
        raise ConfigError(f"DATA.DATASET: unknown dataset {name!r}; one of {known}{nearest(name, datasets)}")
    function, takes_options, takes_zip = datasets[name]
    if text and not takes_options:
        raise ConfigError(f"DATA.DATASET: {spelling!r}, but {name} takes no options")
    if request.zip_mode and not takes_zip:
        raise ConfigError(f"DATA.ZIP_MODE: {name} is not read from zip files; turn it off")
    return function(replace(request, name=name, options=parse_options(spelling, text)))


def chosen_options(request, defaults):
    """The request's options over the `defaults` of its dataset. Raises ConfigError for one that is not among them."""
    for key in request.options:
        if key not in defaults:
            known = ", ".join(defaults)
            raise ConfigError(
                f"DATA.DATASET {request.name}: unknown option {key!r}; one of {known}{nearest(key, defaults)}"
            )
    return {**defaults, **request.options}


def parse_options(spelling, text):
    """{'train': 512} from 'train=512'. Raises ConfigError."""
    options = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if not value.strip().isdecimal():
            raise ConfigError(f"DATA.DATASET: {spelling!r}: {part!r} is not key=number (like fake:train=512,classes=5)")
        options[key.strip()] = int(value)
    return options
