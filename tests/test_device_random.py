"""data/device/draws.py against the published vectors of Philox4x32-10, and as numbers."""

import pytest
import torch
from scipy import stats

from data.device.draws import normals, philox, philox_key, uniforms

# Random123's kat_vectors: counter, key, result of philox4x32 with 10 rounds.
ALL = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    words = philox(key[0] | key[1] << 32, (torch.tensor(counter[0]), *counter[1:]))
    assert tuple(int(word) for word in words) == result


def test_words_match_32_bit_arithmetic():
    """The same rounds with Python's integers, for random counters."""
    counters = torch.randint(0, 2**32, (50, 4), generator=torch.Generator().manual_seed(1))
    key = 0x0123456789ABCDEF
    found = torch.stack(philox(key, counters.unbind(1)), dim=1)
    for counter, words in zip(counters.tolist(), found.tolist(), strict=True):
        c, k0, k1 = counter, key & ALL, key >> 32
        for _ in range(10):
            p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [p1 >> 32 ^ c[1] ^ k0, p1 & ALL, p0 >> 32 ^ c[3] ^ k1, p0 & ALL]
            k0, k1 = (k0 + 0x9E3779B9) & ALL, (k1 + 0xBB67AE85) & ALL
        assert words == c


def test_uniforms_depend_on_the_image_alone():
    index = torch.arange(100)
    whole = uniforms(7, 2, index, 3, 10)
    assert whole.shape == (100, 10)
    assert torch.equal(uniforms(7, 2, index[40:41], 3, 10)[0], whole[40])
    assert torch.equal(uniforms(7, 2, index, 3, 6), whole[:, :6])
    for other in (uniforms(8, 2, index, 3, 10), uniforms(7, 3, index, 3, 10), uniforms(7, 2, index, 4, 10)):
        assert not (other == whole).any()


def test_uniforms_are_uniform_and_independent():
    numbers = uniforms(philox_key(0), 0, torch.arange(4000), 1, 8)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    correlation = torch.corrcoef(numbers.T) - torch.eye(8)
    assert correlation.abs().max() < 0.06  # 4 / sqrt(4000)
    neighbours = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.06


def test_normals_are_normal():
    positions = torch.arange(20000)
    values = normals(philox_key(3), 1, torch.tensor(5), 3, positions)
    assert values.dtype == torch.float32
    for channel in values.T:
        assert stats.kstest(channel.double().numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(values.T) - torch.eye(3)).abs().max() < 0.03
    assert torch.equal(normals(philox_key(3), 1, torch.tensor(5), 3, positions[7]), values[7])


def test_the_extreme_words_give_finite_normals(monkeypatch):
    """All bits 0 would be the logarithm of 0 without the step that is added."""
    for word in (0, ALL):
        words = [torch.full((2,), word)] * 4
        monkeypatch.setattr("data.device.draws.philox", lambda *_, words=words: words)
        assert torch.isfinite(normals(0, 0, torch.zeros(2), 0, 0)).all()


def test_seeds_have_unrelated_keys():
    assert len({philox_key(seed) & ALL for seed in range(1000)}) == 1000
