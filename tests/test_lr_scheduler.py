"""The schedule against timm's and torch's own, and by hand."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from config import default_config
from lr_scheduler import Schedule, build_scheduler, scaled_lr
from utils.errors import ConfigError


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def test_cosine_with_warmup_equals_timm():
    ours = Schedule("cosine", base_lr=0.5, total_steps=100, warmup_steps=20, warmup_lr=0.01, min_lr=0.02)
    sgd = optimizer()
    theirs = CosineLRScheduler(
        sgd,
        t_initial=80,
        lr_min=0.02,
        warmup_lr_init=0.01,
        warmup_t=20,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=True,
    )
    for step in range(100):
        theirs.step_update(step)
        assert ours(step) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize("milestones", [(), (70, 90)])
def test_step_equals_torch(milestones):
    ours = Schedule("step", base_lr=0.5, total_steps=100, decay_steps=30, decay_rate=0.1, milestones=milestones)
    sgd = optimizer()
    schedulers = torch.optim.lr_scheduler
    theirs = schedulers.MultiStepLR(sgd, milestones, 0.1) if milestones else schedulers.StepLR(sgd, 30, 0.1)
    for step in range(100):
        assert ours(step) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()


def test_linear_and_constant_by_hand():
    linear = Schedule("linear", base_lr=1.0, total_steps=10, min_lr=0.0)
    assert [linear(step) for step in range(11)] == pytest.approx([1 - step / 10 for step in range(11)])
    constant = Schedule("constant", base_lr=0.3, total_steps=10, warmup_steps=2)
    assert [constant(step) for step in range(4)] == pytest.approx([0.0, 0.15, 0.3, 0.3])


def test_apply_honours_the_scale_of_a_group():
    sgd = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 0.5}], lr=1.0)
    assert Schedule("constant", base_lr=0.2, total_steps=1).apply(sgd, 0) == 0.2
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(("scaling", "expected"), [("none", 1e-3), ("linear", 2e-3), ("sqrt", 1e-3 * 2**0.5)])
def test_scaling_is_what_was_asked_for(scaling, expected):
    assert scaled_lr(1e-3, 1024, scaling, 512) == pytest.approx(expected)


def test_schedule_counts_optimizer_steps_and_fractions_of_epochs():
    config = default_config()
    config.TRAIN.EPOCHS, config.TRAIN.WARMUP_EPOCHS = 4, 0.5
    schedule = build_scheduler(config, steps_per_epoch=3, global_batch=128)  # 8 micro-batches, 3 accumulated: 3 steps
    assert (schedule.total_steps, schedule.warmup_steps) == (12, 2)
    assert schedule(12) == pytest.approx(config.TRAIN.MIN_LR)  # the floor is reached at the end, not at 75 %
    assert schedule(9) > 5 * config.TRAIN.MIN_LR


def recipe(**changes):
    config = default_config()
    config.TRAIN.LR_SCHEDULER.NAME, config.TRAIN.MIN_LR = "poly", 0.0
    config.TRAIN.update(changes)
    return config


# The rates that the published UPerNet recipe (160,000 iterations, 1,500 of them warm-up) takes, from its own code.
PUBLISHED = {
    0: 6.000000000172534e-11, 1: 4.005970962525067e-08, 100: 3.997555965000003e-06, 749: 2.9819779649375256e-05,
    1499: 5.939824978962525e-05, 1500: 5.94375e-05, 1501: 5.9437125e-05, 16000: 5.4e-05, 80000: 3e-05,
    150000: 3.75e-06, 159999: 3.7499999999912603e-10,
}  # fmt: skip


def test_poly_with_warmup_gives_the_published_rates_in_steps():
    config = recipe(STEPS=160000, WARMUP_STEPS=1500, BASE_LR=6e-5, WARMUP_LR=6e-11)
    schedule = build_scheduler(config, steps_per_epoch=1263, global_batch=16)
    assert (schedule.total_steps, schedule.warmup_steps) == (160000, 1500)
    assert {step: schedule(step) for step in PUBLISHED} == pytest.approx(PUBLISHED, rel=1e-9)


def test_poly_equals_torch_with_any_power():
    ours, sgd = Schedule("poly", base_lr=0.5, total_steps=40, power=0.9), optimizer()
    theirs = torch.optim.lr_scheduler.PolynomialLR(sgd, 40, power=0.9)
    for step in range(40):
        assert ours(step) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()


@pytest.mark.parametrize("changes", [{"WARMUP_STEPS": 50}, {"WARMUP_STEPS": 0, "WARMUP_EPOCHS": 5.0}])
def test_a_warmup_as_long_as_the_steps_is_refused(changes):
    with pytest.raises(ConfigError, match="TRAIN.WARMUP_.*50 steps of warm-up - allowed: below all 50"):
        build_scheduler(recipe(STEPS=50, **changes), steps_per_epoch=10, global_batch=16)
