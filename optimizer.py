"""Parameter groups with explicit weight-decay exemptions, and any timm optimizer by name."""

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
        before = place[group["names"][0]][0]
        groups.append(before | options | {"params": [place[name][1] for name in group["names"]]})
    optimizer.load_state_dict({"state": stored["state"], "param_groups": groups})


def describe_groups(optimizer):
    """One line per group for the log: how many tensors decay, and which are exempt (numbers in names folded)."""
    lines = []
    for group in optimizer.param_groups:
        kinds = sorted(
            {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in group["names"]}
        )
        shown = f": {', '.join(kinds)}" if group["weight_decay"] == 0 else ""
        lines.append(f"weight decay {group['weight_decay']:g} on {len(group['params'])} tensors{shown}")
    return lines
