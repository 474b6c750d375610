"""A dataset as a few large files: shards (tar) as `webdataset` writes them, or Parquet as on the Hugging Face Hub.

python -m tools.pack --cfg FILE --data-path DIR --output FOLDER [--format tar|parquet] [--opts DATA.DATASET NAME ...]

Packs the images of a configuration of classification, whatever DATA.DATASET it names. The bytes of image files stay as
they are; pixels in memory (CIFAR, digits) become PNG. FOLDER/train-000000.tar ... and val-...: images in the dataset's
order, named by their number, with class numbers as labels. FOLDER/manifest.json has class names, counts, and size and
SHA-256 of each file; it is written anew after each. Started again, the command keeps what is whole by these checksums
and makes the rest, so it also checks a finished folder. In a configuration: DATA.DATASET webdataset or parquet.
"""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import torch

import config as configuration
from data.base import ImageDataset
from data.datasets.shards import MANIFEST
from data.images import decode
from engine import command_line
from tasks.classification.data import sources_of
from tools.shared.command import command, parser, positive
from tools.shared.results import write_text
from utils.checkpoint import digest_of
from utils.distributed import World
from utils.errors import ConfigError, OutputError
from utils.files import FileLock, replace_whole, storage_errors
from utils.optional import need
from utils.text import read_text

PURPOSE = "writing Parquet"
ENDINGS = {"JPEG": "jpg", "MPO": "jpg"}  # MPO: a JPEG with further images behind the first
GROUP = 100  # images in a row group
IMAGES = 5000  # in a file: about 550 MB of ImageNet


def image_file(images, index):
    """(bytes, ending) of an image's file, of a PNG where it has none. Raises as `load`."""
    if type(images).content is ImageDataset.content:  # pixels in memory
        buffer = io.BytesIO()
        images.load(index).save(buffer, "PNG")
        return buffer.getvalue(), "png"
    content = images.content(index)
    kind = decode(content, images.name(index), lambda image: image.format)
    return content, ENDINGS.get(kind, kind.lower())


def write_tar(path, images, indices, classes):
    """A shard of key.jpg (or its own ending) and key.cls; the same samples give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index in indices:
            content, ending = image_file(images, index)
            for name, data in ((ending, content), ("cls", str(images.labels[index]).encode())):
                member = tarfile.TarInfo(f"{index:09d}.{name}")
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))


def write_parquet(path, images, indices, classes):
    """Columns image {bytes, path} and label, with the metadata by which `datasets` knows images and class names."""
    arrow, parquet = need("pyarrow", PURPOSE), need("pyarrow.parquet", PURPOSE)
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    schema = arrow.schema({"image": image, "label": arrow.int64()})
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}  # images are compressed
    with parquet.ParquetWriter(path, schema, **options) as writer:
        for start in range(0, len(indices), GROUP):
            group = indices[start : start + GROUP]
            rows = []
            for index in group:
                content, ending = image_file(images, index)
                rows.append({"bytes": content, "path": f"{index:09d}.{ending}"})
            labels = [int(images.labels[index]) for index in group]
            writer.write_table(arrow.table([rows, labels], schema=schema))


FORMATS = {"tar": write_tar, "parquet": write_parquet}


def layout(parts, kind, count):
    """{name of a file: (part, range of its images)}."""
    files = {}
    for part, images in parts.items():
        for number, start in enumerate(range(0, len(images), count)):
            files[f"{part}-{number:06d}.{kind}"] = part, range(start, min(start + count, len(images)))
    return files


def source_of(parts, settings):
    """A hash of what is packed: labels, names, sizes and times of change of all files, and the settings."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for images in parts.values():
        images.identify(digest)
        for entry in images.fingerprint() or ():
            digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def read_manifest(path, source):
    """The shards {file: facts} that a manifest of the same source notes. Raises ConfigError for another one."""
    if not path.exists():
        return {}
    try:
        manifest = json.loads(read_text(path))
        stored, shards = manifest["source"], dict(manifest["shards"])
    except (ValueError, LookupError, TypeError):
        stored, shards = None, {}
    if stored != source:
        raise ConfigError(f"--output {path.parent}: holds another dataset, other settings or files that have changed"
                          " since; name another folder, or delete it")  # fmt: skip
    return shards


def facts_of(path, count):
    """What the manifest says of a file with `count` images. Raises StorageError."""
    with storage_errors(path, "read"):
        size = path.stat().st_size
        return {"images": count, "bytes": size, "sha256": digest_of(path, size)}


def pack(sources, folder, kind, count):
    """Write all files of Sources into `folder`, `count` images in each. Returns (files, how many of them were there).

    Raises what reading images does, ConfigError for a folder of something else, StorageError.
    """
    parts = {"train": sources.train, "val": sources.val}
    classes = list(sources.info.class_names)
    source = source_of(parts, [kind, count, classes])
    path, files = folder / MANIFEST, layout(parts, kind, count)
    noted, shards = read_manifest(path, source), {}
    for number, (name, (part, indices)) in enumerate(files.items(), 1):
        target = folder / name
        whole = name in noted and target.is_file() and facts_of(target, len(indices)) == noted[name]
        if whole:
            shards[name] = noted[name]
            continue
        with replace_whole(target) as temporary:
            FORMATS[kind](temporary, parts[part], indices, classes)
        shards[name] = facts = facts_of(target, len(indices))
        manifest = {"classes": classes, "images": {part: len(images) for part, images in parts.items()}}
        write_text(path, json.dumps({**manifest, "shards": noted | shards, "source": source}, indent=1))
        print(f"{target}: {len(indices):,} images, {facts['bytes'] / 1e6:.4g} MB, {number} of {len(files)}", flush=True)
    return files, sum(shards[name] is noted.get(name) for name in files)


@command
def main(argv):
    """Pack a dataset; raises RunError."""
    options = parser("pack", __doc__)
    command_line.add_configuration(options)
    options.add_argument("--data-path", metavar="DIR", help="folder of the dataset [DATA.DATA_PATH]")
    options.add_argument("--output", dest="folder", required=True, type=Path, metavar="FOLDER", help="of the files")
    options.add_argument("--format", choices=sorted(FORMATS), default="tar", help="default: tar")
    options.add_argument("--images", type=positive, default=IMAGES, metavar="N", help=f"in a file, default: {IMAGES}")
    given = options.parse_args(argv)
    if not given.cfg:
        raise ConfigError("--cfg: missing; name a file such as configs/demo/digits_shortcut.yaml (see --help)")
    config, origins = configuration.load_config(given.cfg, given.opts, command_line.flag_overrides(given))
    configuration.check(config, origins)
    if config.TASK != "classification":
        raise ConfigError(f"TASK: {config.TASK!r}, but only images with a class each can be packed")
    if given.format == "parquet":
        need("pyarrow", PURPOSE)
    sources, folder = sources_of(config, World(torch.device("cpu")), print), given.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output {folder}: cannot be created ({error.strerror})") from None
    with FileLock(folder / ".pack.lock") as lock:
        with storage_errors(folder, "locked"):
            if owner := lock.take():
                raise OutputError(f"--output {folder}: {owner} is packing into it")
        files, kept = pack(sources, folder, given.format, given.images)
    total = f"{len(sources.train):,} images to train on and {len(sources.val):,} to validate"
    print(f"{folder}: {total} in {len(files)} files, {kept} of them kept")


if __name__ == "__main__":
    sys.exit(main())
