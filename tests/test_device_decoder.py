"""JPEG files decoded by torchcodec instead of PIL: the same batches, the same errors, the same replacements."""

import io
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import loader as benchmark
from config import load_config, to_plain
from data import build_data
from data.device.jpeg import plain_jpeg
from data.device.windows import resize_each
from data.images import load_image
from tests.helpers_data import encoded, silent, small_config, zip_of_folders
from tests.helpers_device import to_pil, to_tensor
from tests.launch import run
from tests.tiny import arguments, write_config
from utils.config_checks import check
from utils.distributed import World
from utils.errors import ConfigError, DataError, MismatchError
from utils.training_state import check_same_run

decoders = pytest.importorskip("torchcodec.decoders")

ORIENTATION = 0x0112
KINDS = [{"subsampling": s, "quality": q} for s in ("4:4:4", "4:2:2", "4:2:0", "4:1:1") for q in (40, 95)]
KINDS += [{"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}]


def scene(key, size=(33, 47)):
    """Waves, an edge in saturated colours and noise, (height, width) = size."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([127 + 120 * np.sin(rows / 7 + columns / 11 + key + c) for c in range(3)], axis=-1)
    pixels[size[0] // 3 : size[0] // 2] = (255, 0, 0)
    pixels[size[0] // 2 :, size[1] // 2 :] = np.random.RandomState(key).randint(0, 256, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def turned(image, value):
    """JPEG bytes with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return encoded(image, "JPEG", exif=exif)


def with_segment(content, marker, payload):
    """JPEG bytes with one more segment at their beginning."""
    return content[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + content[2:]


def broken(key=1, size=(33, 47)):
    """A whole header and an end marker, but data that no decoder takes."""
    content = bytearray(encoded(scene(key, size), "JPEG"))
    table = content.index(b"\xff\xc4")
    content[table + 5 : table + 21] = b"\xff" * 16  # more Huffman codes than there can be
    return bytes(content)


FILES = [  # what lies in a folder of photographs
    *(encoded(scene(key, size), "JPEG") for key, size in enumerate([(33, 47), (64, 20), (9, 9), (120, 90), (16, 16)])),
    *(encoded(scene(5 + key), "JPEG", **kind) for key, kind in enumerate(KINDS)),
    encoded(scene(20).convert("L"), "JPEG"),
    encoded(scene(21).convert("CMYK"), "JPEG"),
    encoded(scene(22), "PNG"),
    turned(scene(23), 6),
    turned(scene(24), 1),
    encoded(scene(25), "JPEG") + b"trailer",
]


@pytest.fixture
def folder(tmp_path):
    """Class folders with FILES as training images."""
    for part, files in (("train", FILES), ("val", FILES[:3])):
        for name in ("ant", "bee"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
        for number, content in enumerate(files):
            name = "ant" if number % 2 else "bee"
            (tmp_path / "set" / part / name / f"{number:02d}.jpg").write_bytes(content)
    return tmp_path / "set"


def build(path, decoder="torchcodec", rank=0, world_size=1, log=silent, device="cpu", **keys):
    keys = {"size": 12, "DATA__PIPELINE": "device", "DATA__DEVICE_BUDGET": 0.0, "AUG__HFLIP": 0.0, **keys}
    config = small_config("imagefolder", path, DATA__DECODER=decoder, DATA__PIXEL_CACHE=str(path), **keys)
    return build_data(config, rank, world_size, device, log)


def batches(data, epoch=1, start=0):
    """[(uint8 pixels, labels), ...] before normalisation."""
    return [(images.pixels, labels) for images, labels in data.train.to_mix(epoch, start)]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for (a, b), (c, d) in zip(found, expected, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 47), (64, 64)])
def test_torchcodec_on_the_cpu_decodes_as_pillow(size):
    """Both are libjpeg-turbo with its accurate integer transform and smooth chroma; nvJPEG will differ."""
    image = scene(3, size)
    contents = [encoded(image, "JPEG", **kind) for kind in KINDS] + [encoded(image.convert("L"), "JPEG")]
    for content, found in zip(contents, decoders.decode_jpeg(contents, mode="RGB"), strict=True):
        assert torch.equal(found, to_tensor(load_image(content, "image")))


def test_plain_files_are_told_by_their_headers():
    assert plain_jpeg(FILES[0]).size == (33, 47)
    for content in (encoded(scene(1).convert("L"), "JPEG"), turned(scene(1), 1), turned(scene(1), 0)):
        plain = plain_jpeg(content)
        assert b"Exif" not in plain.content
        assert torch.equal(decoders.decode_jpeg(plain.content), to_tensor(load_image(content, "image")))
    others = {
        "PNG": encoded(scene(1), "PNG"),
        "CMYK": encoded(scene(1).convert("CMYK"), "JPEG"),
        "stored as RGB": encoded(scene(1), "JPEG", keep_rgb=True),
        "two pictures": encoded(scene(1), "MPO", save_all=True, append_images=[scene(2)]),
        "cut off": FILES[0][: len(FILES[0]) // 2],
        "bytes after the end": FILES[0] + b"trailer",
        "a marker and no more": b"\xff\xd8\xff\xd9",
        "no marker where one is due": FILES[0][:20] + b"--" + FILES[0][20:],
        "text": b"no image\xff\xd9",
        **{f"orientation {value}": turned(scene(1), value) for value in range(2, 9)},
    }
    assert [name for name, content in others.items() if plain_jpeg(content)] == []


def test_exif_that_decoders_read_differently_turns_nothing():
    """An orientation of the wrong type: Pillow reads all four bytes of it, torchcodec the first two."""
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 4, 1, 6, 0, 0)
    content = with_segment(FILES[0], 0xE1, exif)
    assert decoders.decode_jpeg(content).shape[1:] == (47, 33)
    upright = to_tensor(load_image(content, "image"))
    assert upright.shape[1:] == (33, 47)
    assert torch.equal(decoders.decode_jpeg(plain_jpeg(content).content), upright)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_images_of_any_size_are_resized_as_pillow_does(name):
    sizes = [(40, 25), (25, 40), (12, 16), (3, 5), (12, 90), (200, 16), (1, 1), (97, 31)]
    images = [to_tensor(scene(key, size)) for key, size in enumerate(sizes)]
    found = resize_each(images, (12, 16), name)
    for image, ours in zip(images, found, strict=True):
        assert torch.equal(ours, to_tensor(to_pil(image).resize((16, 12), Image.Resampling[name.upper()])))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"AUG__RESIZE_FIRST": True, "size": 40, "DATA__NUM_WORKERS": 2},
        {"AUG__CROP": "padded", "DATA__INTERPOLATION": "bilinear", "DATA__VAL_SPLIT": 0.2},
        {"AUG__CROP": "none", "AUG__AUTO_AUGMENT": "", "size": [10, 14]},
    ],
    ids=["resized", "enlarged", "padded", "none"],
)
def test_batches_are_those_of_the_pil_decoder(folder, keys):
    ours, pil = (build(folder, decoder, **keys) for decoder in ("torchcodec", "pil"))
    for epoch in (0, 3):
        assert_equal(batches(ours, epoch), batches(pil, epoch))
    assert_equal(list(ours.val), list(pil.val))
    assert_equal(list(ours.train.epoch(2)), list(pil.train.epoch(2)))


def test_an_epoch_can_begin_anywhere_with_any_number_of_workers(folder):
    whole, other = batches(build(folder)), build(folder, DATA__NUM_WORKERS=2)
    for start in (0, 1, 4):
        assert_equal(batches(other, start=start), whole[start:])
    assert batches(other, start=other.train.batches_per_epoch) == []
    two = [batches(build(folder, rank=rank, world_size=2, batch_size=2)) for rank in (0, 1)]
    assert_equal([tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*two, strict=True)], whole)


def test_zip_files(folder, tmp_path):
    zipped = zip_of_folders(folder, tmp_path / "zip", ("ant", "bee"))
    for mode in ("no", "full"):
        keys = {"DATA__ZIP_MODE": True, "DATA__CACHE_MODE": mode}
        assert_equal(batches(build(zipped, **keys)), batches(build(zipped, "pil", **keys)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "content", [broken(), FILES[0][:-20], FILES[0][:400], FILES[0][:60], b"", b"text"], ids=range(6)
)
def test_broken_files_are_the_same_error(folder, content, workers):
    (folder / "train" / "ant" / "01.jpg").write_bytes(content)
    errors = []
    for decoder in ("torchcodec", "pil"):
        with pytest.raises(DataError, match="01.jpg") as caught:
            batches(build(folder, decoder, DATA__NUM_WORKERS=workers))
        errors.append(caught.value.line())
    assert errors[0] == errors[1]


def test_broken_files_are_replaced_in_the_same_way(folder):
    """One that the header tells, two in a row that decoding tells, and the last of its class: the label changes too."""
    for name, content in (("01", b"text"), ("05", broken()), ("07", broken(2)), ("21", broken(3))):
        (folder / "train" / "ant" / f"{name}.jpg").write_bytes(content)
    lines, found = {}, {}
    for decoder in ("torchcodec", "pil"):
        lines[decoder] = []
        data = build(folder, decoder, log=lines[decoder].append, DATA__BAD_IMAGES="skip")
        found[decoder] = batches(data, 0) + batches(data, 1)
    assert_equal(found["torchcodec"], found["pil"])
    names = [sorted(line.split("train/")[1] for line in part if "image left out" in line) for part in lines.values()]
    assert names[0] == names[1]
    assert len(names[0]) == 4


def test_what_torchcodec_refuses_pil_decodes(folder):
    """As nvJPEG may: here it refuses grey images, and the call of a batch does not say which image it was."""
    lines, calls = [], []
    data, pil = build(folder, log=lines.append), build(folder, "pil")

    def refusing(files, **keys):
        calls.append(len(files))
        if any(Image.open(io.BytesIO(file.numpy())).mode == "L" for file in files):
            raise RuntimeError("unsupported")
        return decoders.decode_jpeg(files, **keys)

    data.train.decoder.decode_jpeg = refusing
    assert_equal(batches(data, 0) + batches(data, 1), batches(pil, 0) + batches(pil, 1))
    assert [line.partition(" (first")[0] for line in lines if "warning" in line] == [
        "warning: a JPEG that torchcodec does not decode: PIL did"
    ]
    assert calls.count(1) >= 2


def test_the_log_names_the_decoder(folder):
    lines = [build(folder, decoder).description[-3:] for decoder in ("torchcodec", "pil")]
    how = ": read by 0 workers; plain JPEG decoded and cropped on cpu by torchcodec, the rest by PIL"
    assert lines[0][0].endswith(how)
    assert all(line.endswith("decoded and cropped by 0 workers, with PIL") for line in (lines[1][0], lines[0][2]))
    data = build(folder, DATA__PIPELINE="auto")
    assert "decoder: PIL (DATA.DECODER torchcodec is for the device path)" in data.description
    assert (data.info.pipeline, build(folder).info.pipeline) == ("cpu", "device with torchcodec")


def test_resident_images_are_decoded_by_pil(tmp_path):
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                scene(number).save(tmp_path / part / name / f"{number}.jpg")
    both = [build(tmp_path, decoder, DATA__DEVICE_BUDGET=1.0) for decoder in ("torchcodec", "pil")]
    assert_equal(*(batches(data) for data in both))
    assert any(line.startswith("train: 6 images") and "decoded once, by PIL" in line for line in both[0].description)
    assert both[0].info.pipeline == "device"


def test_the_benchmark_times_it_only_where_it_is_used(folder):
    title = next(title for title in benchmark.CASES if "torchcodec" in title)
    streamed, pil, resident = build(folder), build(folder, "pil"), build_data(small_config(), log=silent)
    found = [benchmark.says_the_truth(title, data.train) for data in (streamed, pil, resident)]
    assert found == [True, False, False]


def test_another_decoder_is_another_run(folder):
    """Also where the images lie on the device now and PIL decoded them."""
    config, world = small_config("imagefolder", folder), World(torch.device("cpu"))
    payload = {"config": to_plain(config), "world_size": 1, "data": {"pipeline": "device with torchcodec"}}
    assert check_same_run(config, world, payload, "last.pth", "device with torchcodec") == []
    with pytest.raises(MismatchError, match="DATA.PIPELINE 'device with torchcodec' -> 'device'"):
        check_same_run(config, world, payload, "last.pth", "device")
    config.DATA.DECODER = "torchcodec"
    with pytest.raises(MismatchError, match="DATA.DECODER 'pil' -> 'torchcodec'"):
        check_same_run(config, world, payload, "last.pth", "device with torchcodec")


def without_nvjpeg(files, mode, device):
    """As a build of torchcodec that lacks the device."""
    raise RuntimeError("not compiled with nvJPEG\nand where that was found")


def test_wrong_settings_are_one_line(folder, tmp_path, monkeypatch):
    config, origins = load_config(write_config(tmp_path, DATA__DECODER="torchcodec", DATA__PIPELINE="cpu"))
    with pytest.raises(ConfigError, match=r"DATA.DECODER: torchcodec \(.*\) - allowed: pil with DATA.PIPELINE cpu"):
        check(config, origins)
    config, origins = load_config(write_config(tmp_path, DATA__DECODER="torchcode"))
    with pytest.raises(ConfigError, match="did you mean torchcodec"):
        check(config, origins)
    with monkeypatch.context() as patch:
        patch.setattr(decoders, "decode_jpeg", without_nvjpeg)
        with pytest.raises(ConfigError, match=r"cannot decode on cpu \(not compiled with nvJPEG\); use pil"):
            build(folder)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ConfigError, match="not installed: pip install 'torchcodec"):
        build(folder)
    assert build_data(small_config("imagefolder", folder, DATA__DECODER="torchcodec"), log=silent, train=False).val


def test_a_run_ends_with_one_line_about_a_broken_file(folder, tmp_path):
    keys = {"DATA__PIPELINE": "device", "DATA__DEVICE_BUDGET": 0.0, "DATA__DECODER": "torchcodec"}
    config = write_config(tmp_path, **keys, DATA__DATASET="imagefolder", DATA__DATA_PATH=str(folder))
    (folder / "train" / "ant" / "01.jpg").write_bytes(broken())
    (bad,) = run(arguments(config, tmp_path / "bad"), tmp_path)
    assert bad.code == 65, bad.output
    assert bad.errors[0].startswith("error[data] ")
    assert "01.jpg: broken image" in bad.errors[0]
    assert "Traceback" not in bad.output
