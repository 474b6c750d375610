"""JPEG files decoded by nvJPEG, where there is a GPU: everything but the decoder's own pixels is that of the CPU."""

import pytest
import torch

from tests.test_device_decoder import FILES, batches, broken, build, decoders, folder  # noqa: F401 (a fixture)
from utils.errors import DataError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda", 0)
LEVELS = 8  # of 255, on average over a batch: wide enough for any sound decoder, too narrow for a wrong window


def on_host(found):
    return [(pixels.cpu(), labels.cpu()) for pixels, labels in found]


def test_windows_are_resized_as_on_the_cpu(folder):  # noqa: F811
    data = build(folder, device=CUDA, DATA__NUM_WORKERS=2)
    data.train.decoder.decode_jpeg = lambda files, mode, device: [
        image.to(device) for image in decoders.decode_jpeg(files, mode=mode)
    ]
    for (pixels, labels), (expected, same) in zip(on_host(batches(data)), batches(build(folder)), strict=True):
        assert torch.equal(pixels, expected)
        assert torch.equal(labels, same)


def test_nvjpeg_gives_nearly_the_same_batches(folder):  # noqa: F811
    found = [on_host(batches(build(folder, device=CUDA), epoch)) for epoch in (1, 1)]
    for (pixels, labels), (again, _), (expected, same) in zip(*found, batches(build(folder)), strict=True):
        assert (pixels.float() - expected.float()).abs().mean() <= LEVELS
        assert torch.equal(pixels, again)
        assert torch.equal(labels, same)


def test_nvjpeg_gives_an_image_the_same_pixels_in_any_batch(folder):  # noqa: F811
    one, two = (batches(build(folder, device=CUDA, batch_size=size)) for size in (8, 4))
    both = [torch.cat([pixels for pixels, _ in found]) for found in (one, two)]
    assert torch.equal(both[0][: len(both[1])], both[1][: len(both[0])])


def test_a_broken_file_is_one_error_and_the_decoder_goes_on(folder):  # noqa: F811
    (folder / "train" / "ant" / "01.jpg").write_bytes(broken())
    data = build(folder, device=CUDA)
    with pytest.raises(DataError, match="01.jpg"):
        batches(data)
    (folder / "train" / "ant" / "01.jpg").write_bytes(FILES[1])
    assert len(batches(data)) == data.train.batches_per_epoch
