"""Image files inside Parquet and Arrow files, read at random through memory-mapped Arrow.

A row of a Parquet file cannot be read without decompressing those beside it, so the images of one are copied, once,
into an uncompressed Arrow file in a cache folder (docs/data.md). Mapped files are shared by all processes.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from data.base import ImageDataset, ignore
from data.images import load_image
from utils.errors import DataError, MissingError, StorageError
from utils.files import replace_whole, sole_maker
from utils.optional import need

FORMAT = 1  # of the copies
DEFAULT_FOLDER = ".datasets/arrow"  # below the current folder, for an empty DATA.ARROW_CACHE
HINT = "; see DATA.ARROW_CACHE"
ROWS = 128  # read at a time: Arrow cannot read more than 2 GB of images at once
PURPOSE = "reading Parquet and Arrow files"


class ArrowImages(ImageDataset):
    """Images below `root` in `files` (relative paths) of `rows` rows each, in the binary column `column`.

    cache: folder for copies of Parquet files; they are made at the first read, or by `prepare`.
    """

    def __init__(self, root, files, rows, labels, column, cache="", log=ignore):
        super().__init__(labels)
        self.root, self.files, self.column = str(root), list(files), column
        self.cache, self.log = Path(cache or DEFAULT_FOLDER), log
        self.first = np.cumsum([0, *rows])  # row of all files together with which each begins
        self.arrays = self.starts = None

    def __getstate__(self):
        return {**self.__dict__, "arrays": None, "starts": None, "log": print}

    def prepare(self):
        """Copy what has no copy yet, and map all files."""
        if self.arrays is not None:
            return
        packed = [file for file in self.files if not is_arrow(file)]
        copies = {file: self.cache / f"{self.key(file)}.arrow" for file in packed}
        missing = [file for file in packed if not copies[file].exists()]
        if missing:
            size = sum(os.path.getsize(os.path.join(self.root, file)) for file in missing) / 1e9
            self.log(f"{self.root}: copying {len(missing)} Parquet files ({size:.3g} GB) to {self.cache}, once")
        for number, file in enumerate(missing):
            copy_images(os.path.join(self.root, file), self.column, copies[file], self.log)
            if (number + 1) * 10 // len(missing) > number * 10 // len(missing) and len(missing) >= 10:
                self.log(f"{self.cache}: {number + 1} of {len(missing)} files copied")
        arrays = []
        for file, rows in zip(self.files, np.diff(self.first).tolist(), strict=True):
            path = copies.get(file, os.path.join(self.root, file))
            found = mapped(path, "image" if file in copies else self.column)
            if sum(map(len, found)) != rows:
                raise DataError(f"{path}: {sum(map(len, found))} images, {rows} expected; delete it")
            arrays += found
        self.starts, self.arrays = np.cumsum([0, *map(len, arrays)]), arrays

    def key(self, file):
        """The name of a Parquet file's copy: a hash of what tells that it has not changed."""
        facts = [FORMAT, file, self.column, *self.state(file)]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()

    def state(self, file):
        """[size, time of change] of a file."""
        status = os.stat(os.path.join(self.root, file))
        return [status.st_size, status.st_mtime_ns]

    def load(self, index, note=ignore):
        """Decode the image; errors name file and row."""
        return load_image(self.content(index), self.name(index), note)

    def content(self, index):
        """The bytes of the image file in the row."""
        self.prepare()
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        found = self.arrays[place][int(index - self.starts[place])].as_py()
        if found is None:
            raise DataError(f"{self.name(index)}: no image in this row")
        return found

    def fingerprint(self):
        """Names, sizes and times of change of the files, and the column."""
        for file in self.files:
            yield f"{file}:{self.column}", self.state(file)

    def identify(self, digest):
        """Labels, names (without folders, which are the cache's for a set of the Hub) and rows of the files."""
        super().identify(digest)
        digest.update(json.dumps([*map(os.path.basename, self.files), self.first.tolist()]).encode())

    def name(self, index):
        """`<file>[<row>]`."""
        place = int(np.searchsorted(self.first, index, side="right")) - 1
        return f"{os.path.join(self.root, self.files[place])}[{index - int(self.first[place])}]"


def is_arrow(file):
    """Whether a file is Arrow, which can be mapped, and not Parquet."""
    return str(file).lower().endswith(".arrow")


def copy_images(path, column, target, log):
    """Write the binary `column` of a Parquet file into an Arrow file `target`, unless another process just did."""
    arrow = need("pyarrow", PURPOSE)
    schema = arrow.schema({"image": arrow.binary()})
    with sole_maker(target, HINT, log):
        if target.exists():
            return
        with replace_whole(target, HINT) as temporary, arrow.ipc.new_file(str(temporary), schema) as file:
            for array in column_of(path, column):
                file.write_batch(arrow.record_batch([array.cast(arrow.binary())], schema))


def mapped(path, column):
    """The arrays of `column` in an Arrow file, which lie in the file itself. Raises DataError if it is compressed."""
    arrow = need("pyarrow", PURPOSE)
    before = arrow.total_allocated_bytes()
    found = list(column_of(path, column))
    if arrow.total_allocated_bytes() - before > sum(array.nbytes for array in found) / 2:
        raise DataError(f"{path}: compressed Arrow, which cannot be mapped; write it uncompressed, or as Parquet")
    return found


def schema_of(path):
    """The Arrow schema of a Parquet or Arrow file. Raises DataError, MissingError or StorageError naming it."""
    arrow = need("pyarrow", PURPOSE)
    with arrow_errors(path):
        if is_arrow(path):
            return open_arrow(arrow, path).schema
        with need("pyarrow.parquet", PURPOSE).ParquetFile(path) as file:
            return file.schema_arrow


def column_of(path, column):
    """Yield the arrays of a `column` of a Parquet or Arrow file; NAME.bytes is in a struct. Raises as `schema_of`."""
    arrow = need("pyarrow", PURPOSE)
    with arrow_errors(path):
        for batch in batches_of(arrow, path, column):
            if column in batch.schema.names:
                yield batch.column(column)
            else:
                name, _, part = column.rpartition(".")
                yield need("pyarrow.compute", PURPOSE).struct_field(batch.column(name), part)


def batches_of(arrow, path, column):
    """Yield record batches with at least `column`."""
    if is_arrow(path):
        reader = open_arrow(arrow, path)
        stream = isinstance(reader, arrow.RecordBatchStreamReader)
        yield from reader if stream else map(reader.get_batch, range(reader.num_record_batches))
        return
    parquet = need("pyarrow.parquet", PURPOSE)
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        yield from file.iter_batches(batch_size=ROWS, columns=[column], use_threads=False)


def open_arrow(arrow, path):
    """A reader of a memory-mapped Arrow file in either of its forms; `datasets` writes the stream."""
    source = arrow.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return arrow.ipc.open_file(source) if is_file else arrow.ipc.open_stream(source)


@contextlib.contextmanager
def arrow_errors(path):
    """Errors of pyarrow in the block become one line that names the file."""
    arrow = need("pyarrow", PURPOSE)
    try:
        yield
    except FileNotFoundError:
        raise MissingError(f"{path}: file not found") from None
    except PermissionError:
        raise MissingError(f"{path}: no permission to read it") from None
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        if getattr(error, "errno", None):
            raise StorageError(f"{path}: could not be read: {reason}") from None
        kind = "Arrow" if is_arrow(path) else "Parquet"
        raise DataError(f"{path}: not a sound {kind} file ({reason})") from None
