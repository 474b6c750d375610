"""Images in train.zip and val.zip with train_map.txt and val_map.txt, as the Swin code lays ImageNet out.

A line of a map is `<name in the zip><TAB><label>`. Names and labels come from the maps alone, so the order of samples
is the same as without zip. Cache modes, for the bytes of the files (not the decoded images):
- no: every image is read from the zip when it is needed;
- part: a process keeps its share (the consecutive 1/world_size that it also evaluates) in memory; the rest is read from
  the zip, since the training order mixes all images over all processes;
- full: every process keeps everything in memory.
"""

import os
import struct
import zipfile
import zlib

import numpy as np

from data.base import (
    DatasetInfo,
    ImageDataset,
    PackedStrings,
    Sources,
    check_labels,
    check_same_classes,
    ignore,
    require_folder,
)
from data.images import load_image
from data.samplers import shard
from utils.errors import DataError, MissingError, StorageError, listing
from utils.files import OpenFiles
from utils.text import read_text

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
ENCRYPTED, UTF8 = 0x1, 0x800  # flags of a member


class ZipImages(ImageDataset):
    """Images of a zip file; `cached` are the indices whose bytes `prepare` loads into memory.

    `names` are those of its members, which may lie in a folder besides.

    The zip's table of contents is read once and kept as arrays, which forked workers share (Python's ZipFile objects of
    ImageNet take about a gigabyte per process).
    """

    def __init__(self, path, names, labels, cached=range(0)):
        super().__init__(labels)
        self.path, self.names, self.cached = str(path), PackedStrings(names), cached
        self.opened, self.memory = OpenFiles(), None
        try:
            with zipfile.ZipFile(path) as archive:
                contents = {name: info for info in archive.infolist() for name in spellings(info)}
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: not a sound zip file ({error})") from None
        except PermissionError:
            raise MissingError(f"{path}: no permission to read it") from None
        self.top = top_folder(contents, names[0])
        members = [self.top + name for name in names]
        absent = [name for name, member in zip(names, members, strict=True) if member not in contents]
        if absent:
            there = [name for name in contents if not name.endswith("/")]
            raise DataError(
                f"{path}: {len(absent)} images of the map are not in it (first {absent[0]}; in it {listing(there, 1)})"
            )
        self.table = np.array([entry(contents[member], path) for member in members], dtype=np.int64).reshape(-1, 5)
        self.ends = np.cumsum([0, *self.table[cached.start : cached.stop, 2].tolist()])

    def prepare(self):
        """Fill the cache: one array, which forked workers share without copying."""
        if self.memory is None:
            memory = np.empty(self.ends[-1], dtype=np.uint8)
            for position, index in enumerate(self.cached):
                content = np.frombuffer(self.read(index), dtype=np.uint8)
                memory[self.ends[position] : self.ends[position + 1]] = content
            self.memory = memory

    def load(self, index, note=ignore):
        """Decode the image; errors name zip and member."""
        return load_image(self.content(index), self.name(index), note)

    def content(self, index):
        """The bytes of the file, from the cache or from the zip."""
        if self.memory is None or index not in self.cached:
            return self.read(index)
        position = index - self.cached.start
        return self.memory[self.ends[position] : self.ends[position + 1]].tobytes()

    def read(self, index):
        """The bytes of member `index` from the zip, checked against the checksum in it."""
        offset, packed, size, method, crc = self.table[index].tolist()
        where = self.name(index)
        try:
            header = self.opened.read(self.path, offset, LOCAL_HEADER.size)
            signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
            content = self.opened.read(self.path, offset + LOCAL_HEADER.size + name_length + extra_length, packed)
            if method == zipfile.ZIP_DEFLATED:
                content = zlib.decompress(content, wbits=-zlib.MAX_WBITS)
        except (struct.error, zlib.error) as error:
            raise DataError(f"{where}: broken entry: {error}") from None
        except OSError as error:
            raise StorageError(f"{where}: could not be read: {error.strerror or error}") from None
        if signature != b"PK\3\4" or len(content) != size or zlib.crc32(content) != crc:
            raise DataError(f"{where}: broken entry: content and checksum differ")
        return content

    def fingerprint(self):
        """The zip file's name, size and time of change, and names and checksums of the members."""
        status = os.stat(self.path)
        yield os.path.basename(self.path), [status.st_size, status.st_mtime_ns]
        yield from zip(self.names, self.table[:, [2, 4]].tolist(), strict=True)

    def identify(self, digest):
        """Labels and names as the map has them."""
        super().identify(digest)
        self.names.identify(digest)

    def name(self, index):
        """`<zip>@/<member>`."""
        return f"{self.path}@/{self.top}{self.names[index]}"


def top_folder(contents, name):
    """'' or the folders, `train/`, that stand before the map's `name` in a zip that was made of the folder itself."""
    if name in contents:
        return ""
    found = [member for member in contents if member.endswith(f"/{name}")]
    return found[0].removesuffix(name) if len(found) == 1 else ""


def entry(info, path):
    """(offset, stored bytes, bytes, method, checksum) of a member. Raises DataError for encrypted or odd ones."""
    if info.flag_bits & ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}@/{info.filename}: encrypted or compressed by another method than deflate")
    return info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC


def spellings(info):
    """The names of a member: read as UTF-8 too where the zip does not say that it is, as many programs leave out."""
    if not info.flag_bits & UTF8:
        yield info.filename.encode("cp437").decode("utf-8", "surrogateescape")
    yield info.filename


def read_map(path):
    """(names, labels) of an annotation map. Raises MissingError or DataError with the line."""
    if not path.is_file():
        raise MissingError(f"{path}: annotation map not found (lines of name, tab, label; needed by DATA.ZIP_MODE)")
    names, labels = [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name, _, label = line.partition("\t")
        if not line.strip():
            continue
        if not (name and label.strip().isdecimal()):
            raise DataError(f"{path} line {number}: {line[:60]!r}, but a name, a tab and a label from 0 on expected")
        names.append(name)
        labels.append(int(label))
    if not names:
        raise DataError(f"{path}: no image in it")
    return names, labels


def zip_sources(request):
    """Sources from train.zip, val.zip and their maps. Labels must be 0..C-1, each used in training and validation."""
    root = require_folder(request.path, "train.zip, val.zip, train_map.txt and val_map.txt")
    parts, classes = {}, {}
    for part in ("train", "val"):
        if not (root / f"{part}.zip").is_file():
            raise MissingError(f"{root / part}.zip: not found (DATA.ZIP_MODE needs train.zip and val.zip)")
        names, labels = read_map(root / f"{part}_map.txt")
        share = shard(len(names), request.rank, request.world_size)
        cached = {"no": range(0), "full": range(len(names)), "part": share}[request.cache_mode]
        parts[part] = ZipImages(root / f"{part}.zip", names, labels, cached)
        classes[part] = set(labels)
    num_classes = len(classes["train"])
    gaps = sorted(set(range(max(classes["train"]) + 1)) - classes["train"])
    if gaps:
        raise DataError(f"{root / 'train_map.txt'}: labels up to {max(classes['train'])}, none for {listing(gaps, 5)}")
    check_labels(parts["val"], num_classes)
    check_same_classes(classes["train"], classes["val"], root)
    class_names = tuple(str(label) for label in range(num_classes))
    return Sources(parts["train"], parts["val"], DatasetInfo(request.name, num_classes, class_names))
