"""timm's own tests/test_models.py on every variant of this project instead of timm's models.

Unchanged but for its cases of TorchScript and torch.fx, which these models do not offer.

timm's wheel has no tests, its source distribution has: unpack the one of the installed version and name the file,

    pip download timm==1.0.31 --no-deps --no-binary timm && tar xf timm-1.0.31.tar.gz
    TIMM_TEST_MODELS=timm-1.0.31/tests/test_models.py python -m pytest tests/test_timm_suite.py

Models have their full size, so this takes long. Without the variable only what tests/test_timm_registry.py says again
is tested.
"""

import fnmatch
import importlib.util
import os

import pytest
import timm

import models
from models.registry import get_variant
from models.timm_models.registry import KINDS, timm_name

VARIABLE = "TIMM_TEST_MODELS"
NOT_OFFERED = {"torchscript", "fx"}  # in the names of timm's tests
OURS = {timm_name(kind, variant): variant for kind in KINDS for variant in models.list_variants()}
# timm's non-standard models have tokens instead of a grid; its lists know their families, but not CvT.
TOKENS = [name for name, variant in OURS.items() if get_variant(variant).constructor.global_pool == "token"]


class Names(list):
    """Marks the parameters of a test that runs over all models."""


def list_ours(filter="", module="", pretrained=False, exclude_filters="", **options):
    """timm.list_models, as if our models were timm's: its filters are matched without our prefix."""
    if pretrained:
        return Names()
    exclude = [exclude_filters] if isinstance(exclude_filters, str) else exclude_filters
    wanted = [filter] if isinstance(filter, str) else filter
    return Names(
        name for name in OURS if (wanted in ([""], []) or matches(name, wanted)) and not matches(name, exclude)
    )


def matches(name, patterns):
    """Whether timm's patterns speak of this model."""
    plain = name.split("_", 1)[1]
    return any(fnmatch.fnmatch(plain, p) or (p == "vit_*" and name in TOKENS) for p in patterns)


def timms_tests(path):
    """{name: function} of the tests over all models and of the fixtures in timm's file."""
    spec = importlib.util.spec_from_file_location("timms_test_models", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "list_models", list_ours)
        patch.setattr(timm, "list_pretrained", lambda *args, **kwargs: Names())
        spec.loader.exec_module(module)
    parts = vars(module).items()
    fixtures = {name: part for name, part in parts if type(part).__name__ == "FixtureFunctionDefinition"}
    wanted = {name: part for name, part in parts if not NOT_OFFERED & set(name.split("_")) and over_all_models(part)}
    return fixtures | wanted


def over_all_models(part):
    """Whether this is a test that runs over the whole registry rather than over models that it names."""
    return any(
        mark.name == "parametrize" and isinstance(mark.args[1], Names) for mark in getattr(part, "pytestmark", ())
    )


if VARIABLE in os.environ:
    globals().update(timms_tests(os.environ[VARIABLE]))
else:

    @pytest.mark.skip(reason=f"{VARIABLE} names no file of timm's source distribution")
    def test_timms_own_tests():
        pass
