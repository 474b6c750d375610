"""Whole runs of any task: ended normally, or broken by a fault, started again and compared with the unbroken one."""

import signal

import torch

from tests.launch import run
from tests.tiny import arguments, differences, final_state, metrics

EVERY_STEP = ("--opts", "SAVE.STEPS", "1")


def finish(config, folder, ranks=1, more=EVERY_STEP):
    """Run to the end; returns the results of the ranks."""
    results = run(arguments(config, folder, *more), folder, ranks=ranks)
    assert [result.code for result in results] == [0] * ranks, "\n".join(result.output for result in results)
    return results


def references(tmp_path_factory, write):
    """get(ranks): the folder of an uninterrupted run of `write(folder)`, made once for each number of ranks."""
    folders = {}

    def get(ranks):
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp(f"reference{ranks}")
            finish(write(folders[ranks]), folders[ranks], ranks)
        return folders[ranks]

    return get


def break_and_finish(config, folder, ranks, fault):
    """A run that `fault` kills or stops, and the same command again."""
    results = run(arguments(config, folder, *EVERY_STEP), folder, ranks=ranks, fault=fault)
    codes = {result.code for result in results}
    assert (143 if fault[0] == "signal_at_step" else -signal.SIGKILL) in codes
    assert 0 not in codes
    finish(config, folder, ranks)


def check_equal(folder, reference):
    """The same final state, bit for bit, and the same figures."""
    assert differences(final_state(reference), final_state(folder)) == []
    rows, others = ([{**row, "seconds": 0, "img_per_s": 0} for row in metrics(one)] for one in (folder, reference))
    assert rows == others
    assert [row["epoch"] for row in rows] == [0, 1]


def check_nan_is_named(config, folder, module):
    """What one step finds is no checkpoint, and the first module that is not finite is named: 28."""
    fault = ("nan_module", {"step": 1, "module": module})
    (result,) = run(arguments(config, folder, *EVERY_STEP), folder, fault=fault)
    assert result.code == 76
    assert module.removesuffix(".0") in result.errors[0]
    assert all(torch.isfinite(tensor).all() for tensor in final_state(folder)["model"].values())


def check_nan_of_one_rank_is_skipped(config, folder):
    """By both ranks: 27."""
    more = ("--opts", "TRAIN.MAX_SKIPPED_STEPS", "2")
    fault = ("nan_loss", {"steps": [1], "ranks": (1,)})
    results = run(arguments(config, folder, *more), folder, ranks=2, fault=fault)
    assert [result.code for result in results] == [0, 0], results[0].output
    assert final_state(folder)["progress"]["skipped_total"] == 1
