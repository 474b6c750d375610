"""Which tensors decay, counted by hand, and every kind of timm optimizer."""

import copy

import pytest
import torch
from torch import nn

from config import default_config
from optimizer import build_optimizer, continue_from, describe_groups, parameter_groups
from utils.errors import MismatchError


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        return self.norm(self.linear(x + self.cls_token[0]))


def names(groups):
    return {group["weight_decay"]: sorted(group["names"]) for group in groups}


def test_exemptions_are_what_the_list_says():
    assert names(parameter_groups(Small(), 0.05, ["1d", "cls_token"])) == {
        0.05: ["linear.weight"],
        0.0: ["cls_token", "linear.bias", "norm.bias", "norm.weight"],
    }
    assert names(parameter_groups(Small(), 0.05, ["1d"]))[0.05] == ["cls_token", "linear.weight"]
    assert names(parameter_groups(Small(), 0.05, [])).keys() == {0.05}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion", "adafactor", "rmsprop", "muon", "nadamw"])
def test_optimizers_by_name_step(name):
    config = default_config()
    config.TRAIN.OPTIMIZER.NAME = name
    model = Small()
    before = model.linear.weight.detach().clone()
    optimizer = build_optimizer(config, model, lr=0.1)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.linear.weight)


def test_settings_reach_the_optimizer_and_are_listed():
    config = default_config()
    config.TRAIN.OPTIMIZER.BETAS = [0.8, 0.95]
    optimizer = build_optimizer(config, Small(), lr=0.1)
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    config.TRAIN.OPTIMIZER.NAME, config.TRAIN.OPTIMIZER.MOMENTUM = "sgd", 0.5
    assert build_optimizer(config, Small(), lr=0.1).defaults["momentum"] == 0.5
    assert "cls_token" in describe_groups(optimizer)[1]


def stepped(settings, model, count=2, **options):
    """A configured optimizer over `model` after some steps."""
    config = default_config()
    config.TRAIN.OPTIMIZER.NAME = settings
    optimizer = build_optimizer(config, model, lr=0.1)
    for group in optimizer.param_groups:
        group.update(options)
    for number in range(count):
        optimizer.zero_grad()
        model(torch.full((3, 4), 1.0 + number)).square().sum().backward()
        optimizer.step()
    return optimizer


def continued(stored, model, **changes):
    """An optimizer of a changed configuration that goes on from a stored state."""
    config = default_config()
    for key, value in changes.items():
        (config.TRAIN.OPTIMIZER if key in config.TRAIN.OPTIMIZER else config.TRAIN)[key] = value
    optimizer = build_optimizer(config, model, lr=0.7)
    continue_from(optimizer, stored, "last.pth")
    return optimizer


def averages(optimizer):
    """{name of a parameter: what AdamW keeps of it}."""
    return {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def test_a_continued_optimizer_has_the_new_settings_and_the_old_averages():
    first = stepped("adamw", Small())
    changes = {"WEIGHT_DECAY": 0.5, "EPS": 1e-3, "BETAS": [0.8, 0.9], "NO_WEIGHT_DECAY": ["1d"]}
    second = continued(first.state_dict(), Small(), **changes)
    assert names(second.param_groups)[0.5] == ["cls_token", "linear.weight"]  # was exempt before
    for group in second.param_groups:
        assert (group["eps"], tuple(group["betas"]), group["lr"]) == (1e-3, (0.8, 0.9), 0.1)
    before, after = averages(first), averages(second)
    assert before.keys() == after.keys()
    for name in before:
        assert all(torch.equal(value, after[name][key]) for key, value in before[name].items())
        assert not torch.equal(before[name]["exp_avg"], torch.zeros_like(before[name]["exp_avg"]))


def test_what_an_optimizer_counts_in_its_groups_goes_on():
    first = stepped("adan", Small())
    assert {group["step"] for group in continued(first.state_dict(), Small(), NAME="adan").param_groups} == {2}


@pytest.mark.parametrize("fused", [True, False])
def test_the_form_of_this_device_is_kept(fused):
    """A checkpoint of a device without the fused form continues on one that has it, and the other way round."""
    reference, model = Small(), Small()
    model.load_state_dict(reference.state_dict())
    first = stepped("adamw", reference, fused=not fused)
    model.load_state_dict(reference.state_dict())
    config = default_config()
    second = build_optimizer(config, model, lr=0.1)
    for group in second.param_groups:
        group.update(fused=fused, foreach=False)
    continue_from(second, copy.deepcopy(first.state_dict()), "last.pth")
    assert {(group["fused"], group["foreach"]) for group in second.param_groups} == {(fused, False)}
    for net, optimizer in ((reference, first), (model, second)):
        optimizer.zero_grad()
        net(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
    for one, two in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_other_parameters_are_refused_in_one_line():
    stored = stepped("adamw", Small()).state_dict()
    model = Small()
    model.frozen.requires_grad_(True)
    with pytest.raises(MismatchError, match=r"last.pth: .* 2 differ: frozen.bias, frozen.weight"):
        continued(stored, model)
    for group in stored["param_groups"]:
        del group["names"]
    with pytest.raises(MismatchError, match="other parameters"):
        continued(stored, Small())
