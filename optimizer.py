"""Parameter groups with explicit weight-decay exemptions and rates by depth, and any timm optimizer by name."""

from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info

from utils.errors import ConfigError, MismatchError, listing

ONE_DIMENSIONAL = "1d"  # the entry of TRAIN.NO_WEIGHT_DECAY that stands for biases, norm scales and scalars


def is_exempt(name, parameter, exemptions):
    """Whether weight decay leaves the parameter alone: it has at most one dimension and '1d' is listed, or a listed
    piece occurs in its name."""
    if ONE_DIMENSIONAL in exemptions and parameter.ndim <= 1:
        return True
    return any(piece in name for piece in exemptions if piece != ONE_DIMENSIONAL)


def parameter_groups(model, weight_decay, exemptions, extra=None):
    """Two groups, decayed and exempt, each with the names of its parameters under 'names'.

    extra: a module beside the model that is trained with it; its names begin with 'extra.'.
    """
    decayed, exempt = [], []
    beside = extra.named_parameters(prefix="extra") if extra is not None else ()
    for name, parameter in (*model.named_parameters(), *beside):
        if parameter.requires_grad:
            (exempt if is_exempt(name, parameter, exemptions) else decayed).append((name, parameter))
    groups = []
    for members, decay in ((decayed, weight_decay), (exempt, 0.0)):
        if members:
            names, parameters = zip(*members, strict=True)
            groups.append({"params": list(parameters), "weight_decay": decay, "names": list(names)})
    return groups


def layer_scales(model, decay, extra=None):
    """{name: decay ** (layers above the parameter's)}, as timm's param_groups_layer_decay counts the layers of BEiT
    (arXiv 2106.08254): 1 for the last one and for all that stands beside the backbone, such as heads.

    extra: see `parameter_groups`; the backbone is there if nothing of the model is trained, which is then an average of
    it. Raises ConfigError for a model without timm's `group_matcher`, which tells its layers.
    """
    beside = extra is not None and not any(parameter.requires_grad for parameter in model.parameters())
    root, prefix = (extra, "extra") if beside else (model, "")
    backbones = [(name, part) for name, part in root.named_modules(prefix=prefix) if hasattr(part, "group_matcher")]
    if not backbones:
        raise ConfigError(f"TRAIN.LAYER_DECAY: {decay:g}, but this model does not say which layers it has; use 1")
    place, backbone = backbones[0]
    layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    inside = {f"{place}.{name}".lstrip("."): layer for name, layer in layers.items()}
    names = [name for name, _ in root.named_parameters(prefix=prefix)]
    last = max(layers.values()) + any(name not in inside for name in names)
    return {name: decay ** (last - inside.get(name, last)) for name in names}


def scaled_by_depth(groups, scales):
    """The groups split so that each has one rate, which its 'lr_scale' is multiplied with: the highest rates first,
    whose number the log shows. A name without a scale has 1."""
    split = {}
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            scale = scales.get(name, 1.0)
            empty = {**group, "params": [], "names": [], "lr_scale": scale}
            part = split.setdefault((scale, group["weight_decay"]), empty)
            part["params"].append(parameter)
            part["names"].append(name)
    return sorted(split.values(), key=lambda group: -group["lr_scale"])


def build_optimizer(config, model, lr, extra=None):
    """The optimizer named by TRAIN.OPTIMIZER.NAME over `parameter_groups`; options that it does not know are left out.
    Raises ConfigError if it cannot be used here. extra: see `parameter_groups`.

    On CUDA the fused form of AdamW is taken: it can skip a step by a flag on the device, without a wait.
    """
    settings = config.TRAIN.OPTIMIZER
    info = get_optimizer_info(settings.NAME)
    if info.second_order:
        raise ConfigError(
            f"TRAIN.OPTIMIZER.NAME: {settings.NAME} needs second derivatives, which this loop does not make"
        )
    options = {}
    if info.has_eps:
        options["eps"] = settings.EPS
    if info.has_betas and info.num_betas == 2:
        options["betas"] = tuple(settings.BETAS)
    if settings.NAME == "adamw" and next(model.parameters()).is_cuda:
        options["fused"] = True
    groups = parameter_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.NO_WEIGHT_DECAY, extra)
    if config.TRAIN.LAYER_DECAY != 1:
        groups = scaled_by_depth(groups, layer_scales(model, config.TRAIN.LAYER_DECAY, extra))
    options |= {"weight_decay": config.TRAIN.WEIGHT_DECAY, "momentum": settings.MOMENTUM}
    try:
        return create_optimizer_v2(groups, opt=settings.NAME, lr=lr, **options)
    except (AssertionError, ImportError) as error:  # timm's way of saying that a package or a GPU is missing
        raise ConfigError(f"TRAIN.OPTIMIZER.NAME: {settings.NAME} cannot be used here: {error}") from None


def continue_from(optimizer, stored, path):
    """Give `optimizer` what a stored state dict has learned of each parameter, by the parameters' names.

    The groups and their options (weight decay, betas, `fused` where this device has it, ...) stay those of the present
    configuration; taken over are the learning rate, which the schedule sets anew, and what optimizers count in groups.
    Raises MismatchError if the parameters are not the same ones.
    """
    place = {name: (group, number) for group in stored["param_groups"]
             for name, number in zip(group.get("names", ()), group["params"], strict=False)}  # fmt: skip
    names = [name for group in optimizer.param_groups for name in group["names"]]
    odd = sorted(set(names) ^ set(place))
    if odd:
        raise MismatchError(f"{path}: its optimizer has other parameters, {len(odd)} differ: {listing(odd, 2)}")
    groups = []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key not in ("params", "lr")}
        before = {key: value for key, value in place[group["names"][0]][0].items() if key != "lr_scale"}
        groups.append(before | options | {"params": [place[name][1] for name in group["names"]]})
    optimizer.load_state_dict({"state": stored["state"], "param_groups": groups})


def describe_groups(optimizer):
    """Lines for the log: how many tensors decay, which are exempt (numbers in names folded), whose rates are lower."""
    lines, names, scales = [], {}, {}
    for group in optimizer.param_groups:
        names.setdefault(group["weight_decay"], []).extend(group["names"])
        scales.setdefault(group.get("lr_scale", 1.0), []).extend(group["names"])
    for decay, members in names.items():
        kinds = sorted({".".join("*" if part.isdigit() else part for part in name.split(".")) for name in members})
        shown = f": {', '.join(kinds)}" if decay == 0 else ""
        lines.append(f"weight decay {decay:g} on {len(members)} tensors{shown}")
    if set(scales) != {1.0}:
        shown = ", ".join(f"{scale:.3g} on {len(members)}" for scale, members in scales.items())
        lines.append(f"learning rate by depth: times {shown} tensors")
    return lines
