"""Parameters that are never trained: without a gradient, or with one that is exactly zero."""

from models.shortcut import DWShortcut
from tools.check.finding import failed, ok, warning
from tools.check.steps import Steps
from utils.errors import listing

BATCHES = 3  # the first one makes a step, so that values that start at zero have moved; the others are looked at
WITHOUT_DROPOUT = {"MODEL.DROP_RATE": 0.0, "MODEL.DROP_PATH_RATE": 0.0, "AMP.ENABLE": False}
CLASS_TOKEN = (
    "expected: class tokens get nothing from them, so behind the last look at the patches they cannot reach the output "
    "of a model that classifies by its class token; kept, because they count in the published parameters"
)


def check_gradients(subject):
    """Steps in float32 with the run's recipe, without dropout; then the largest gradient of every parameter."""
    steps = Steps(subject, WITHOUT_DROPOUT)
    model = steps.state.model
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    largest = largest_gradients(steps)
    if largest is None:
        return [failed("loss or gradients are not finite in the first steps", "a smaller TRAIN.BASE_LR? bad images?")]
    dead = [name for name, size in largest.items() if size == 0]
    expected = behind_the_class_token(steps, dead)
    unexpected = [name for name in dead if name not in expected]
    findings = []
    if frozen:
        advice = "set requires_grad, if they are to learn"
        findings.append(failed(f"{len(frozen)} tensors are frozen: {listing(frozen, 4)}", advice))
    if unexpected:
        advice = "they are not trained: use them in the forward pass, or remove them"
        findings.append(failed(f"none reaches {len(unexpected)} tensors: {listing(unexpected, 4)}", advice))
    if expected and not living_shortcuts(model, dead):
        advice = "no shortcut has any effect: more of them (MODEL.SHORTCUT.SPAN), or MODEL.ARGS.POOL mean"
        findings.append(failed(f"none reaches any shortcut: {listing(expected, 4)}", advice))
    elif expected:
        findings.append(warning(f"none reaches {len(expected)} tensors: {listing(expected, 4)}", CLASS_TOKEN))
    looked = f"{BATCHES - 1} batches of {steps.batch} images after one step{subject.trial.remark}"
    return findings or [ok(f"every one of {len(largest)} tensors gets one, in {looked}")]


def largest_gradients(steps):
    """{name: largest absolute gradient over the batches} of the trainable parameters; None if a step is not finite."""
    parameters = {name: p for name, p in steps.state.model.named_parameters() if p.requires_grad}
    largest = dict.fromkeys(parameters, 0.0)
    for number in range(BATCHES):
        if not steps.make():
            return None
        for name, parameter in parameters.items():
            if number and parameter.grad is not None:
                largest[name] = max(largest[name], parameter.grad.abs().max().item())
    return largest


def behind_the_class_token(steps, dead):
    """Those of the dead parameters that get a gradient as soon as the model averages over all tokens instead."""
    model = steps.state.model
    if not dead or getattr(model, "global_pool", "") != "token":
        return []
    model.global_pool = "avg"  # as timm's models call it, and ours
    steps.make()
    model.global_pool = "token"
    parameters = dict(model.named_parameters())
    return [name for name in dead if parameters[name].grad is not None and parameters[name].grad.any()]


def living_shortcuts(model, dead):
    """Whether a parameter of a shortcut gets a gradient, or there are no shortcuts with parameters."""
    prefixes = tuple(name + "." for name, module in model.named_modules() if isinstance(module, DWShortcut))
    names = [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
    return not names or any(name not in dead for name in names)
