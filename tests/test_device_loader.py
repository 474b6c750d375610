"""The loaders of the device path: order, resume, ranks, both forms, what is chosen, and whole runs with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from config import to_plain
from data.base import ArrayImages
from data.datasets.folders import read_part
from data.device import build as loaders
from data.device.build import CroppedSamples, DeviceLoaders
from data.device.draws import draw, philox_key
from data.device.recipe import read_recipe
from data.device.store import NotResident
from data.pipelines import CpuLoaders, choose_pipeline
from data.transforms import TrainTransform
from engine.resume import check_same_run
from tasks.classification.data import build_data, reading_of
from tests.helpers_data import alone, assert_equal, class_folders, finished, noise, silent, small_config
from tests.helpers_device import MEAN, STD, augmented_by_pil, to_tensor
from tests.launch import run
from tests.tiny import arguments, differences, final_state, write_config
from utils.distributed import World
from utils.errors import ConfigError, MismatchError

FAKE = "fake:train=50,val=13,classes=3"
FORMS = {"resident": 8.0, "streamed": 0.0}  # DATA.DEVICE_BUDGET


def build(form="resident", dataset=FAKE, rank=0, world_size=1, log=silent, path="", **keys):
    keys = {"size": 12, "DATA__PIPELINE": "device", "AUG__RESIZE_FIRST": True, **keys}
    config = small_config(dataset, path, DATA__DEVICE_BUDGET=FORMS[form], **keys)
    return build_data(config, alone(rank, world_size), log)


@pytest.mark.parametrize("form", FORMS)
def test_an_epoch_can_begin_anywhere(form, monkeypatch):
    monkeypatch.setattr(loaders, "CHUNK", 12)  # three batches
    data = build(form)
    whole = finished(data.train.epoch(1))
    assert data.train.batches_per_epoch == len(whole) == 12
    for start in (1, 3, 7, 11):
        assert_equal(finished(data.train.epoch(1, start)), whole[start:])
    assert list(data.train.epoch(1, 12)) == []
    with pytest.raises(ValueError, match="start 13"):
        list(data.train.epoch(1, 13))
    next(data.train.epoch(0))  # an abandoned epoch
    monkeypatch.setattr(loaders, "CHUNK", 4096)
    assert_equal(finished(build(form).train.epoch(1)), whole)
    assert not torch.equal(next(data.train.epoch(2)).finish(), whole[0][0])


@pytest.mark.parametrize("form", FORMS)
def test_order_and_labels_are_those_of_the_cpu_path(form):
    data, cpu = build(form), build(form, DATA__PIPELINE="cpu")
    for epoch in (0, 3):
        labels = [[batch.labels.tolist() for batch in part.train.epoch(epoch)] for part in (data, cpu)]
        assert labels[0] == labels[1]
    batch = next(data.train.epoch(0))
    assert (batch.shape, len(batch), batch.labels.dtype) == ((4, 3, 12, 12), 4, torch.int64)
    assert (batch.finish().shape, batch.finish().dtype) == (batch.shape, torch.float32)
    assert batch.finish(dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="images on cpu are finished there, not on meta"):
        batch.finish(device="meta")
    assert data.train.samples.images is not None


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_see_the_global_batches_of_one(form):
    one = finished(build(form, batch_size=8).train.epoch(1))
    two = [finished(build(form, rank=rank, world_size=2).train.epoch(1)) for rank in (0, 1)]
    joined = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*two, strict=True)]
    assert_equal(joined, one)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"AUG__CROP": "padded", "AUG__VFLIP": 0.5},
        {"AUG__CROP": "none", "AUG__AUTO_AUGMENT": "3a", "DATA__NUM_WORKERS": 2},
        {"AUG__RESIZE_FIRST": False, "DATA__VAL_SPLIT": 0.2, "AUG__REPROB": 0.0},
    ],
    ids=["paper", "padded", "3a", "split"],
)
def test_both_forms_give_the_same_images(keys, tmp_path):
    root = class_folders(tmp_path / "set", size=(9, 9))
    both = [build(form, "imagefolder", path=root, DATA__PIXEL_CACHE=str(tmp_path), **keys) for form in FORMS]
    assert_equal(*(finished(data.train.epoch(2)) for data in both))
    for part in ("val", "test"):
        if getattr(both[0], part):
            assert_equal(*(list(getattr(data, part)) for data in both))


def test_images_of_several_sizes_are_cropped_by_workers(tmp_path):
    """Each as PIL would, by the draws that belong to its own size."""
    root, lines = class_folders(tmp_path / "set", size=(9, 9)), []
    for name, size in (("0", (20, 14)), ("2", (9, 30))):
        noise(7, size).save(root / "train" / "bee" / f"{name}.png")
    data = build(dataset="imagefolder", path=root, log=lines.append, DATA__PIXEL_CACHE=str(tmp_path))
    assert any("train: images differ in size" in line for line in data.description)
    assert any(line.startswith("val: 12 images of 9x9 on cpu") for line in data.description)
    images, transform = read_part(root / "train", silent)[1], TrainTransform((12, 12), MEAN, STD, resize_first=True)
    samples = CroppedSamples(images, transform, read_recipe(transform, (12, 12)), 0, philox_key(0))
    for index in range(len(images)):
        image = images.load(index)
        recipe = read_recipe(transform, (image.height, image.width))
        recipe = replace(recipe, stages=(), hflip=0.0)
        draws = draw(recipe, philox_key(0), 5, torch.tensor([index]))
        assert torch.equal(samples[5, index].image, augmented_by_pil(to_tensor(image), draws, recipe, 0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_equals_the_cpu_path(form, world_size, tmp_path):
    root = class_folders(tmp_path / "set", size=(11, 9), count=5)
    for rank in range(world_size):
        keys = {"path": root, "rank": rank, "world_size": world_size, "DATA__PIXEL_CACHE": str(tmp_path)}
        data = build(form, "imagefolder", **keys)
        cpu = build(form, "imagefolder", DATA__PIPELINE="cpu", **keys)
        for _ in range(2):
            assert_equal(list(data.val), list(cpu.val))
        assert (data.val.size, data.val.batches, data.val.indices) == (cpu.val.size, cpu.val.batches, cpu.val.indices)


def test_evaluation_alone_builds_no_training_data():
    data = build_data(small_config(FAKE, DATA__PIPELINE="device"), alone(), silent, training=False)
    assert data.train is None
    assert sum(len(labels) for _, labels in data.val) == 13


@pytest.mark.parametrize(
    ("changes", "pipeline", "why"),
    [({"DATA__IMG_SIZE": 32}, "device", "at most 32x32 in memory, which"),
     ({"DATA__VAL_SPLIT": 0.2}, "device", "at most 32x32 in memory, which"),
     ({"DATA__IMG_SIZE": 33}, "cpu", "for images of at most 32x32 in memory, this is cpu"),
     ({"DATA__DATASET": FAKE}, "cpu", "for images of at most 32x32 in memory, this is cpu"),
     ({"AUG__AUTO_AUGMENT": "augmix-m3"}, "cpu", "AugMixAugment"), ({"DATA__PIPELINE": "cpu"}, "cpu", "")],
)  # fmt: skip
def test_auto_on_a_cpu_takes_the_device_path_for_small_pixels_in_memory(changes, pipeline, why):
    """Digits are an array of 8x8; the fake images are made one by one."""
    data = build_data(small_config("digits", **{"DATA__IMG_SIZE": 8, **changes}), alone(), silent)
    assert data.info.pipeline == pipeline
    assert type(data.train).__name__ == {"cpu": "TrainLoader", "device": "ResidentTrainLoader"}[pipeline]
    (line,) = (line for line in data.description if line.startswith("pipeline"))
    assert why in line


def test_what_the_device_does_not_do_is_refused_or_left_to_the_cpu():
    with pytest.raises(ConfigError) as caught:
        build(AUG__AUTO_AUGMENT="augmix-m3")
    assert caught.value.line() == (
        "error[config] DATA.PIPELINE: 'device', but it has no AugMixAugment; use cpu or auto"
    )
    with pytest.raises(ConfigError, match="AUGMENT_IMPL: 'triton', but operations"):
        build(AUG__AUTO_AUGMENT="3a", DATA__AUGMENT_IMPL="triton")


def test_auto_says_what_it_chose(monkeypatch):
    """On CUDA; the loaders themselves are not built here."""
    cpu = build(DATA__PIPELINE="cpu")
    parts = {"train": cpu.train.samples.images, "val": cpu.val.samples.images}
    transforms = TrainTransform(12, MEAN, STD, auto_augment="augmix-m3"), cpu.val.samples.transform
    on_cpu = CpuLoaders(reading_of(small_config(FAKE), alone(), silent))
    on_device = DeviceLoaders(on_cpu.reading, torch.device("cuda"), 8.0, "", "auto")
    pipeline, loaders, lines = choose_pipeline("auto", parts, transforms, on_cpu, on_device)
    assert pipeline == "cpu"
    assert lines == ["pipeline: cpu (auto: the device path has no AugMixAugment)"]
    assert type(loaders["train"]).__name__ == "TrainLoader"
    monkeypatch.setattr(on_device, "train", lambda *_: on_device.lines.append("on it"))
    monkeypatch.setattr(on_device, "evaluation", lambda *_: None)
    pipeline, loaders, lines = choose_pipeline("auto", parts, transforms, on_cpu, on_device)
    assert (pipeline, lines) == ("device", ["pipeline: device (auto)", "on it"])
    assert loaders == {"train": None, "val": None}


@pytest.mark.parametrize(("free", "fits"), [(4 * 3 * 12 * 12 * 2, True), (4 * 3 * 12 * 12 * 2 - 1, False)])
def test_the_budget_asks_how_much_memory_the_gpu_has(monkeypatch, free, fits):
    """A dataset within DATA.DEVICE_BUDGET may still be too large for the GPU: half of what is free is for the model."""
    images = ArrayImages(np.zeros((4, 12, 12, 3), np.uint8), np.zeros(4, np.int64), "four")
    reading = reading_of(small_config(FAKE), alone(), silent)
    maker = DeviceLoaders(reading, torch.device("cuda", 0), 8.0, "", "auto")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr("data.device.build.load_store", lambda *_: "loaded")
    if fits:
        assert maker.load(images) == "loaded"
    else:
        with pytest.raises(NotResident, match=r"4 images are .* GB of pixels, cuda:0 has .* GB free"):
            maker.load(images)


def test_auto_that_chooses_otherwise_is_noticed_on_resume():
    """A run that 'auto' (or the time before this key) trained on the CPU path, continued where it takes the device."""
    config, world = small_config(FAKE), World(torch.device("cpu"))
    payload = {"config": to_plain(config), "world_size": 1, "data": {}}
    assert check_same_run(config, world, payload, "last.pth", {"pipeline": "cpu"}) == []
    with pytest.raises(MismatchError, match="DATA.PIPELINE 'cpu' -> 'device'"):
        check_same_run(config, world, payload, "last.pth", {"pipeline": "device"})
    payload["data"]["pipeline"] = "device"
    assert check_same_run(config, world, payload, "last.pth", {"pipeline": "device"}) == []
    config.TRAIN.ALLOW_CHANGES = True
    assert ("DATA.PIPELINE", "device", "cpu") in check_same_run(config, world, payload, "last.pth", {"pipeline": "cpu"})


def test_triton_kernels_give_the_same_batches():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("tests/test_device_cuda.py does it on the GPU")
    keys = {"dataset": "fake:train=6,val=3,classes=3", "batch_size": 6, "AUG__AUTO_AUGMENT": "rand-m9-mstd0.5-inc1"}
    data = [build(DATA__AUGMENT_IMPL=name, **keys) for name in ("torch", "triton")]
    assert any(line.endswith("by triton") for line in data[1].description)
    for batch, other in zip(*(part.train.epoch(0) for part in data), strict=True):
        difference = (batch.pixels.int() - other.pixels.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).double().mean() <= 0.06
        same = batch.implementation.finish(other.pixels, other.draws, other.recipe)
        assert torch.allclose(other.finish(), same, atol=1e-5)


def test_a_run_is_resumed_bit_for_bit(tmp_path):
    """Even in the other form; in another pipeline it is refused."""
    config = write_config(tmp_path, DATA__PIPELINE="device")
    (whole,) = run(arguments(config, tmp_path / "whole"), tmp_path)
    assert whole.code == 0, whole.output
    assert "train: 38 images of 8x8 on cpu" in whole.output
    stop = ("signal_at_step", {"step": 2, "name": "SIGTERM"})
    (stopped,) = run(arguments(config, tmp_path / "stopped"), tmp_path, fault=stop)
    assert stopped.code == 143, stopped.output
    (refused,) = run(arguments(config, tmp_path / "stopped", "--opts", "DATA.PIPELINE", "cpu"), tmp_path)
    assert refused.code == 78
    assert "DATA.PIPELINE device -> cpu" in refused.errors[0].replace("'", "")
    (resumed,) = run(arguments(config, tmp_path / "stopped", "--opts", "DATA.DEVICE_BUDGET", "0.0"), tmp_path)
    assert resumed.code == 0, resumed.output
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped")) == []


def test_two_ranks_train(tmp_path):
    config = write_config(tmp_path, DATA__PIPELINE="device")
    results = run(arguments(config, tmp_path), tmp_path, ranks=2)
    assert [result.code for result in results] == [0, 0], results[0].output
    assert final_state(tmp_path)["progress"]["history"][-1]["total"] == 11
