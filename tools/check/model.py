"""The checks of the model: does it fit the images, is its first loss fair, is all of it trained, can it learn?"""

import math

import torch

from models.shortcut import DWShortcut
from models.weights.pretrained import load_pretrained
from tools.check.subject import TrialSteps, failed, ok, spread, warning
from utils.errors import listing
from utils.flops import count_macs

FEWEST = 16  # tokens in the first level below which there is little for attention to do
WITHOUT_DROPOUT = {"MODEL.DROP_RATE": 0.0, "MODEL.DROP_PATH_RATE": 0.0, "SEG.DROPOUT": 0.0, "AMP.ENABLE": False}

GUESSES = 16  # images of the first loss
USUAL, MOST = 0.5, 1.5  # how far the first loss may be from ln(classes): usual in the families here; too far

BATCHES = 3  # the first one makes a step, so that values that start at zero have moved; the others are looked at
CLASS_TOKEN = (
    "expected: class tokens get nothing from them, so behind the last look at the patches they cannot reach the output "
    "of a model that classifies by its class token; kept, because they count in the published parameters"
)

SHARE = 0.4  # of the time, for learning by heart
CLIP, STEPS = 1.0, 200  # of the gradients; most steps
FALLEN = 0.7  # of the first loss, or of that of a blind answer: a loss below has fallen


def check_model(subject):
    """Build it (a ConfigError says what does not fit and the nearest sizes that do) and count."""
    model, (height, width) = subject.hollow_model(subject.config), subject.img_size
    reductions = [level["reduction"] for level in getattr(getattr(model, "body", model), "feature_info", [])]
    grids = [(-(-height // reduction), -(-width // reduction)) for reduction in reductions]
    shown = ", ".join(dict.fromkeys(f"{rows}x{columns}" for rows, columns in grids))
    shown = f", {shown} tokens" if shown else ""
    if grids and math.prod(grids[0]) < FEWEST:
        patch = max(1, min(height, width) // 8)
        advice = f"a smaller MODEL.ARGS.PATCH_SIZE (at most {patch} gives 8x8) or a larger DATA.IMG_SIZE"
        findings = [warning(f"only {math.prod(grids[0])} tokens{shown}", advice)]
    else:
        macs, parameters = count_macs(model, subject.img_size)["total"], sum(p.numel() for p in model.parameters())
        findings = [ok(f"{subject.config.MODEL.TYPE}, {parameters / 1e6:.2f} M parameters, {macs / 1e6:,.1f} M "
                       f"multiply-accumulates an image of {height}x{width}{shown}")]  # fmt: skip
    weights, said = subject.config.MODEL.PRETRAINED, []
    if weights:  # as a run loads them, with its errors
        load_pretrained(subject.new_model(subject.config), weights, log=said.append, classes=subject.info.class_names)
        findings.append(ok(f"{weights} fits{': ' if said else ''}{'; '.join(said)}"))
    return findings


def check_first_loss(subject):
    """Cross-entropy of the untrained model on images as they are, in training mode but without dropout."""
    indices = spread(len(subject.parts["train"]), GUESSES)
    model, images, labels = _plain(subject, indices)
    with torch.no_grad():
        loss, fair, words = subject.first_loss(model, images, labels)
    text = f"{loss:.3f} on {len(indices)} images, a fair guess has {words} = {fair:.3f}"
    if not math.isfinite(loss) or abs(loss - fair) > MOST:
        advice = f"more than {MOST} away: look at the initial weights, the pixels' range and the labels"
        return [failed(text, advice)]
    if abs(loss - fair) > USUAL:
        return [warning(text, f"more than {USUAL} away, the logits start large: look at the initial weights")]
    return [ok(f"{text} (within {USUAL}){subject.trial.remark}")]


def _plain(subject, indices):
    """(model without dropout, images and labels of the training set without augmentation), at the trial's size."""
    config = subject.at_trial_size(WITHOUT_DROPOUT)
    return subject.new_model(config), *subject.on_device(*subject.plain_batch(config, indices))


def check_gradients(subject):
    """Steps in float32 with the run's recipe, without dropout; then every parameter's gradient in further ones."""
    steps, findings = TrialSteps(subject, WITHOUT_DROPOUT), []
    model = steps.state.model
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached = set()
    for number in range(BATCHES):
        if not steps.advance():
            advice = "a smaller TRAIN.BASE_LR? bad images?"
            return [failed("loss or gradients are not finite in the first steps", advice)]
        if number:
            reached |= {name for name, parameter in trained.items() if has_gradient(parameter)}
    dead = [name for name in trained if name not in reached]
    expected = behind_the_class_token(steps, dead)
    unexpected = [name for name in dead if name not in expected]
    if frozen and not subject.config.TRAIN.FREEZE:
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
    return findings or [ok(f"every one of {len(trained)} tensors gets one, in {looked}")]


def has_gradient(parameter):
    """Whether a value of its gradient is not zero."""
    return parameter.grad is not None and bool(parameter.grad.any())


def behind_the_class_token(steps, dead):
    """Those of the dead parameters that get a gradient as soon as the model averages over all tokens instead."""
    model = steps.state.model
    if not dead or getattr(model, "global_pool", "") != "token":
        return []
    model.global_pool = "avg"  # as timm's models call it, and ours
    steps.advance()
    model.global_pool = "token"
    return [name for name in dead if has_gradient(model.get_parameter(name))]


def living_shortcuts(model, dead):
    """Whether a parameter of a shortcut gets a gradient, or there are no shortcuts with parameters."""
    prefixes = tuple(name + "." for name, module in model.named_modules() if isinstance(module, DWShortcut))
    names = [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
    return not names or any(name not in dead for name in names)


def check_by_heart(subject):
    """Train on one batch alone, without augmentation, mixing, dropout, smoothing and decay, until its loss is gone."""
    how = subject.by_heart
    model, images, labels = _plain(subject, subject.various(how.images))
    blind = subject.blind_loss(labels)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=how.rate, weight_decay=0.0), []
    for _ in subject.until(SHARE, range(STEPS + 1)):  # the last one only to measure
        loss = subject.loss(model, images, labels)
        losses.append(loss.item())
        if losses[-1] <= how.near_zero * blind or not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    text = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses) - 1} steps on {len(images)} images"
    text += f" of {len(subject.classes_of(labels))} classes{subject.trial.remark}"
    if losses[-1] <= how.near_zero * blind:
        return [ok(f"{text} (wanted: {how.near_zero * blind:.3f}, {how.near_zero:.0%} of {how.name})")]
    if min(losses) <= FALLEN * min(losses[0], blind):
        text += f", on its way to {how.near_zero * blind:.3f} when the time was up"
        return [warning(text, "--seconds gives more")]
    if len(losses) > how.enough:
        return [failed(text, "it does not learn even these: look at gradients, labels and the forward pass")]
    return [warning(f"{text}: too few steps to tell on this device", "--seconds gives more, --device another")]
