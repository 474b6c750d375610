"""What the tests of tools.check look at: tiny experiments, right and wrong on purpose."""

import signal

import torch
from torch import nn

from config import load_config
from models import registry
from models.vit import ViT
from tests.tiny import write_config
from tools.check.__main__ import CHECKS, find


def subject(folder, *opts, processes=1, seconds=30.0, **changes):
    """The Subject of tests/tiny.py's configuration; `opts` and `changes` as there and in --opts."""
    config, origins = load_config(write_config(folder, **changes), opts)
    return find(config.TASK)(config, origins, folder / "report", processes, seconds)


def found(name, of):
    """[(level, text with advice)] of one check."""
    return [(finding.level, " ".join(finding.lines(name))) for finding in CHECKS[name].run(of)]


def only(name, of):
    """The one finding of a check."""
    (finding,) = found(name, of)
    return finding


def enter(monkeypatch, name, constructor):
    """Make a model class known as MODEL.TYPE `name` for the length of a test.

    Such classes add their parts in `initialise`, the last thing that ViT's constructor calls: the registry reads the
    arguments from the constructor's signature.
    """
    monkeypatch.setitem(registry._VARIANTS, name, registry.Variant(constructor, {}, "a test"))


class Unused(ViT):
    """Has a layer that the forward pass leaves out."""

    def initialise(self, init):
        super().initialise(init)
        self.forgotten = nn.Linear(3, 3)


class Frozen(ViT):
    """Has a tensor that is not to be trained."""

    def initialise(self, init):
        super().initialise(init)
        self.cls_token.requires_grad = False


class StartsAtZero(ViT):
    """Blocks reach the output through a factor that is zero at first, so only a step gives them gradients."""

    def initialise(self, init):
        super().initialise(init)
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return super().forward(x) * self.factor + self.head.bias


class Blind(ViT):
    """Gives the same answer to every image."""

    def forward(self, x):
        return self.head.bias + 0 * super().forward(x)


class Loud(ViT):
    """Starts with huge logits."""

    def forward(self, x):
        return 100 * super().forward(x)


class Forgetful(ViT):
    """Changes with every call, which no checkpoint knows of."""

    def initialise(self, init):
        super().initialise(init)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls / 10)


class Interrupting(ViT):
    """Is called when somebody presses Ctrl-C during a run."""

    def forward(self, x):
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)


class Crashing(ViT):
    """Has a mistake in its forward pass."""

    def forward_features(self, x):
        return self.no_such_thing(x)
