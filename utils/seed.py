"""Randomness as a pure function of what it is for: (seed, epoch, image index), (seed, step, rank), never of history.

A run that was killed and resumed therefore draws exactly what the uninterrupted one would have drawn, whatever the
number of loader workers.
"""

import contextlib
import hashlib
import random

import numpy as np
import torch


def derive_seed(*keys):
    """A 63-bit seed from integers and strings; different keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(*keys):
    """Seed Python, NumPy and torch (every device) with `derive_seed(*keys)`."""
    seed = derive_seed(*keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_host(*keys):
    """Seed Python, NumPy and torch's CPU generator with `derive_seed(*keys)`."""
    seed = derive_seed(*keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(*keys):
    """Run a block with Python, NumPy and torch's CPU generator seeded by `keys`; restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_host(*keys)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
