"""Which tensors decay, counted by hand, and every kind of timm optimizer."""

import pytest
import torch
from torch import nn

from config import default_config
from optimizer import build_optimizer, describe_groups, parameter_groups


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
