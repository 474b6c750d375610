"""CIFAR-10 and CIFAR-100 in their original files (torchvision reads them and knows their checksums)."""

from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from data.base import ArrayImages, DatasetInfo, Sources
from data.datasets.registry import register
from utils.errors import DataError, MissingError

DEFAULT_ROOT = ".datasets"  # below the current folder, for an empty DATA.DATA_PATH
READERS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


@register("cifar10")
@register("cifar100")
def cifar(request):
    """Sources of either, 32x32; one process of each host downloads, the others wait for it.

    Raises MissingError (absent and not to be downloaded) or DataError (a file whose checksum is wrong).
    """
    name, reader = request.name, READERS[request.name]
    root = Path(request.path or DEFAULT_ROOT)
    root = root.parent if root.name == reader.base_folder else root  # whichever of the two was given
    folders = any((root / part).is_dir() for part in ("train", "val", "test"))  # nothing to be fetched into
    if request.download and not folders:
        request.once_per_host(lambda: missing_files(root, reader) and fetch(root, reader, request.log))
    missing = missing_files(root, reader)
    if missing:
        why = "" if request.download else " and DATA.DOWNLOAD is off"
        why += "; the class folders there are read by DATA.DATASET imagefolder" if folders else ""
        raise MissingError(f"{name}: {root / reader.base_folder / missing[0]} not found{why}")
    parts = [reader(str(root), train=train, download=False) for train in (True, False)]
    train, val = (ArrayImages(part.data, part.targets, f"{name}/{'train' if part.train else 'test'}") for part in parts)
    return Sources(train, val, DatasetInfo(name, len(parts[0].classes), tuple(parts[0].classes), MEAN[name], STD[name]))


def missing_files(root, reader):
    """Names of absent files of the reader. Raises DataError if one is there with another content."""
    missing = []
    meta = [(reader.meta["filename"], reader.meta["md5"])]
    for file, md5 in [*reader.train_list, *reader.test_list, *meta]:
        path = root / reader.base_folder / file
        if not path.is_file():
            missing.append(file)
        elif not check_integrity(str(path), md5):
            raise DataError(f"{path}: truncated or changed (MD5 is not {md5}); delete it to have it fetched again")
    return missing


def fetch(root, reader, log):
    """Download and unpack. Raises MissingError that says from where and why not."""
    log(f"downloading {reader.url} to {root}")
    existed = root.exists()
    try:
        reader(str(root), download=True)
    except (OSError, RuntimeError) as error:
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()  # torchvision makes it before it connects
        raise MissingError(f"{root / reader.base_folder}: not found, and {reader.url} cannot be had: {error}") from None
