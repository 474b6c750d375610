"""data/samplers.py: every image once, whatever the number of processes; the same global batches; balanced splits."""

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from data.samplers import EvalShare, TrainBatches, epoch_order, stratified_split
from utils.errors import ConfigError, DataError


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_reads_every_image_once(world_size):
    for size in range(1, 65):
        for batch_size in range(1, 17):
            loaders = [EvalShare(size, batch_size, rank, world_size) for rank in range(world_size)]
            shares = [loader.plan for loader in loaders]
            read = [index for share in shares for batch in share for index in batch]
            assert sorted(read) == list(range(size))
            assert max(len(batch) for share in shares for batch in share) <= batch_size
            assert {loader.batches for loader in loaders} == {max(map(len, shares))}


def test_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 6
    assert epoch_order(50, 1, 2).tolist() == orders[1, 2]


def test_the_order_never_changes_between_versions():
    """A frozen generator: a checkpoint of today must be resumable after an upgrade."""
    assert epoch_order(8, 0, 0).tolist() == [6, 5, 0, 4, 7, 2, 1, 3]


def test_global_batches_do_not_depend_on_the_number_of_processes():
    one = TrainBatches(35, 6, 0, 1, seed=3)
    two = [TrainBatches(35, 3, rank, 2, seed=3) for rank in (0, 1)]
    three = [TrainBatches(35, 2, rank, 3, seed=3) for rank in (0, 1, 2)]
    expected = list(one.batches(4))
    assert one.per_epoch == len(expected) == 5
    for parts in (two, three):
        joined = [sum(batches, []) for batches in zip(*(part.batches(4) for part in parts), strict=True)]
        assert joined == expected
    assert len({index for batch in expected for _, index in batch}) == 30
    assert list(two[1].batches(4, start=3)) == list(two[1].batches(4))[3:]


def test_a_batch_that_cannot_be_filled_names_the_maximum():
    assert TrainBatches(10, 5, 0, 2, 0).per_epoch == 1
    with pytest.raises(ConfigError, match="6 x 2 processes is more than the 10 training images; at most 5"):
        TrainBatches(10, 6, 0, 2, 0)


def test_stratified_split_keeps_the_balance_of_the_classes():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 7, 2])
    kept, held = stratified_split(labels, 0.1, 5, "x")
    assert sorted([*kept, *held]) == list(range(159))
    assert np.bincount(labels[held]).tolist() == [10, 5, 1, 1]
    assert np.array_equal(stratified_split(labels, 0.1, 5, "x")[1], held)
    assert not np.array_equal(stratified_split(labels, 0.1, 6, "x")[1], held)
    assert len(stratified_split(labels, 0.5, 0)[1]) == 80
    assert np.bincount(labels[stratified_split(labels, 0.999, 0)[0]]).min() == 1


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match="class 1 has one image"):
        stratified_split([0, 0, 1], 0.5, 0)


@pytest.mark.parametrize(("size", "batch_size", "world_size"), [(700, 16, 1), (1000, 10, 3), (513, 64, 2)])
def test_repeated_augmentation_is_timms(monkeypatch, size, batch_size, world_size):
    """The images of every batch of every process, with timm's sampler in our order, batches cut as its loader does."""
    order = epoch_order(size, 5, 2)
    monkeypatch.setattr("torch.randperm", lambda count, **_: torch.from_numpy(order))
    times = []
    for rank in range(world_size):
        theirs = RepeatAugSampler(range(size), num_replicas=world_size, rank=rank, num_repeats=3, selected_ratio=0)
        theirs.set_epoch(2)
        indices = [int(index) for index in theirs]
        batches = len(indices) // batch_size
        ours = TrainBatches(size, batch_size, rank, world_size, 5, repeats=3)
        found = list(ours.indices(2))
        assert ours.per_epoch == len(found) == batches
        assert [n % size for batch in found for n in batch] == indices[: batches * batch_size]
        assert list(ours.indices(2, start=1)) == found[1:]
        times += [number for batch in found for number in batch]
    assert len(set(times)) == len(times)  # no two copies are augmented alike
    assert {number // size for number in times} == {0, 1, 2}


def test_fewer_images_than_timm_rounds_to_are_not_lost():
    assert TrainBatches(40, 4, 0, 2, 0, repeats=2).per_epoch == 5


def test_an_epoch_of_several_passes():
    one, three = TrainBatches(35, 4, 1, 2, seed=3), TrainBatches(35, 4, 1, 2, seed=3, passes=3)
    assert (one.per_epoch, three.per_epoch) == (4, 12)
    passes = [number for epoch in (6, 7, 8) for number in one.indices(epoch)]
    found = list(three.indices(2))
    assert [[number % 35 for number in batch] for batch in found] == passes
    assert [batch[0] // 35 for batch in found] == [0] * 4 + [1] * 4 + [2] * 4
    for start in range(13):
        assert list(three.indices(2, start)) == found[start:]
