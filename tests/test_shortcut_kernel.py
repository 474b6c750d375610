"""The fused shortcut against plain PyTorch in float64, on the GPU or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from kernels.shortcut_add import backward_operator, operator, shortcut_add  # noqa: E402
from kernels.shortcut_reference import shortcut_add as reference  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("residual", "x", "weight", "bias", "bn_weight", "bn_bias", "scale")


def inputs(dtype, channels, grid, *, prefix=1, batch=2, kernel=3, kernels=1, scale=True):
    """Tokens in `dtype` and parameters in float32, or float64 for float64 tokens, by name; and what is not learned."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = batch, prefix + grid[0] * grid[1], channels
    per_norm = kernels, channels
    shapes = (tokens, tokens, (kernels, channels, kernel, kernel), (channels,), per_norm, per_norm, (1,))
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in zip(NAMES, shapes, strict=True)}
    values = {name: value.to(dtype if value.dim() == 3 else wide).to(DEVICE) for name, value in values.items()}
    if not scale:
        values["scale"] = None
    return values


def run(function, values, gradient, **settings):
    """{name: value} of the result, the moments and all gradients, in float64."""
    leaves = {name: None if v is None else v.clone().requires_grad_() for name, v in values.items()}
    out, moments = function(**leaves, **settings)
    out.backward(gradient.to(out.dtype))
    found = {"out": out, "moments": moments} | {name: v.grad for name, v in leaves.items() if v is not None}
    return {name: None if v is None else v.detach().double() for name, v in found.items()}


def compare(dtype, channels, grid, *, training=True, identity=False, **options):
    """Run both on the same numbers; the relative error of every tensor must be that of the type's rounding."""
    values = inputs(dtype, channels, grid, **options)
    kernels = len(values["weight"])
    gradient = torch.randn(values["x"].shape, dtype=torch.float64).to(dtype).to(DEVICE)
    running = None if training else (torch.randn(kernels, channels), torch.rand(kernels, channels) + 0.1)
    settings = {"eps": 1e-3, "identity": identity, "grid": grid}
    exact = {name: None if v is None else v.double() for name, v in values.items()}
    results = []
    for function, numbers in ((shortcut_add, values), (reference, exact)):
        like = numbers["weight"]
        given = None if running is None else tuple(part.to(like) for part in running)
        results.append(run(function, numbers, gradient, running=given, **settings))
    limit = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    found, expected = results
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
            continue
        assert found[name].shape == value.shape
        error = (found[name] - value).norm() / value.norm()
        assert error < limit, f"{name}: {error:.1e}"
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_type(dtype, training):
    compare(dtype, 50, (5, 7), training=training, identity=True)


@pytest.mark.parametrize(
    ("channels", "grid", "options"),
    [
        (24, (14, 14), {"kernel": 5, "scale": False}),
        (192, (3, 5), {"prefix": 0, "kernels": 3}),
        (24, (1, 1), {"batch": 3, "kernel": 3}),
        (24, (2, 3), {"kernel": 7, "prefix": 2, "identity": True, "kernels": 2}),
        (8, (56, 56), {"batch": 1, "scale": False}),
        (1, (4, 1), {"kernel": 1, "identity": True}),
        (8, (3, 4), {"batch": 35, "identity": True}),  # more images than one program adds up
        (70, (9, 9), {"batch": 2, "training": False, "kernels": 2}),
    ],
    ids=str,
)
def test_sizes(channels, grid, options):
    compare(torch.float32, channels, grid, **options)


def test_prefix_tokens_get_exactly_nothing():
    values = inputs(torch.float32, 24, (3, 4), prefix=2)
    found = run(shortcut_add, values, torch.randn(2, 14, 24), eps=1e-5, identity=True, grid=(3, 4))
    assert torch.equal(found["out"][:, :2], values["residual"][:, :2].double())
    assert not found["x"][:, :2].any()


def test_tokens_with_any_strides():
    """Parts of larger tensors, and the gradient of a sum, which is one number with strides of zero."""
    values = inputs(torch.float32, 24, (3, 4))
    settings = {"eps": 1e-5, "identity": True, "grid": (3, 4)}
    expected = run(shortcut_add, values, torch.ones(2, 13, 24, device=DEVICE), **settings)
    wide = torch.randn(2, 20, 3 * 24, device=DEVICE)
    wide[:, 4:17, 24:48] = values["x"]
    swapped = values["residual"].transpose(1, 2).contiguous().transpose(1, 2)  # the layout of (B, C, H, W)
    x = wide[:, 4:17, 24:48].detach().requires_grad_()
    out, _ = shortcut_add(**{**values, "x": x, "residual": swapped}, **settings)
    out.sum().backward()
    assert torch.equal(out.double(), expected["out"])
    assert torch.equal(x.grad.double(), expected["x"])


def test_runs_repeat_bit_for_bit():
    values, gradient = inputs(torch.bfloat16, 40, (7, 7), batch=3), torch.randn(3, 50, 40, device=DEVICE)
    first, second = (run(shortcut_add, values, gradient, eps=1e-5, identity=True, grid=(7, 7)) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("rows", [2, 128])
def test_moments_of_values_far_from_zero(rows, monkeypatch):
    """The mean of squares minus the square of the mean would lose every digit of this variance.

    rows: parts that are combined at a time; with 2 of them twice, the 10 parts need a second pass.
    """
    monkeypatch.setattr("kernels.shortcut_stages.PART_ROWS", rows)
    monkeypatch.setattr("kernels.shortcut_stages.MOST_ROUNDS", 2)
    tokens = 600
    x = (3000.0 + torch.randn(2, tokens, 2, dtype=torch.float64)).float()
    x[0, :7] += 500
    values = inputs(torch.float32, 2, (1, 1), prefix=0) | {"x": x.to(DEVICE), "residual": x.to(DEVICE)}
    _, moments = shortcut_add(**values, eps=1e-5, identity=False, grid=(tokens, 1))
    exact = x.double()  # GELU(x) is x here, as far as float64 can tell
    count, mean, squares = moments.double().cpu()
    torch.testing.assert_close(count, torch.full_like(count, 2 * tokens))
    torch.testing.assert_close(mean, exact.mean((0, 1)), rtol=1e-6, atol=0)
    torch.testing.assert_close(squares / count, exact.var((0, 1), correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("function", [reference, shortcut_add], ids=["reference", "operator"])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_in_float64(function, training):
    values = inputs(torch.float64, 3, (2, 3), kernels=2)
    running = None if training else (torch.zeros(2, 3).double().to(DEVICE), torch.ones(2, 3).double().to(DEVICE))

    def out(*leaves):
        given = dict(zip(NAMES, leaves, strict=True))
        return function(**given, running=running, eps=1e-3, identity=True, grid=(2, 3))[0]

    leaves = [value.requires_grad_() for value in values.values()]
    assert torch.autograd.gradcheck(out, leaves, fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
def test_opcheck(training):
    """Schema, shapes of the fake implementation with fixed and free sizes, tracing and autograd registration."""
    values = inputs(torch.float32, 8, (3, 4), kernels=2)
    running = (None, None) if training else (values["bn_bias"].detach(), values["bn_weight"].detach().square())
    leaves = [value.requires_grad_() for value in values.values()]
    torch.library.opcheck(operator, (*leaves, *running, 1e-5, True, 3, 4, torch.bfloat16, False))
    with torch.no_grad():
        out, g, moments, inverse = operator(*leaves, *running, 1e-5, True, 3, 4, torch.bfloat16, False)
        saved = values["x"], g, *leaves[2:], running[0], moments, inverse
        torch.library.opcheck(backward_operator, (out, *saved, True, 3, 4, False))
