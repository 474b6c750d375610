"""data/samplers.py: every image once, whatever the number of processes; the same global batches; balanced splits."""

import numpy as np
import pytest

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
