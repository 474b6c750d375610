"""Feature maps for segmentation and detection heads, from any backbone: four of them, each half as large as the last.

A pyramid gives a map for each of its last four stages. An isotropic backbone gives four of its blocks, evenly spaced,
and they are made 4 times and twice larger, left and halved, as BEiT does it (arXiv 2106.08254, code of its UPerNet).
"""

from torch import nn

from models.registry import create, get_variant, keywords_of
from models.timm_models.wrap import keywords

MAPS = 4
# What timm's models are told, those that take it, so that images may have any size.
TIMM_ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True, "strict_img_size": False, "always_partition": True}


def feature_pyramid(name, **arguments):
    """FeatureMaps around the backbone `name`; arguments: the keywords of models.create.

    img_size is that of the training crops: images of any other size work, too, where the backbone itself does not
    forbid it (some models of timm do). Raises ArgumentError as models.create.
    """
    arguments["num_classes"] = 0
    if name.startswith("timm/"):
        taken = keywords(name.removeprefix("timm/").partition(".")[0])
        arguments |= {key: value for key, value in TIMM_ANY_SIZE.items() if key in taken}
    elif "dense" in keywords_of(get_variant(name).constructor):
        arguments["dense"] = True
    return FeatureMaps(create(name, **arguments))


class FeatureMaps(nn.Module):
    """forward(images (B, C, H, W)) -> list of four maps (B, channels[i], H / strides[i], W / strides[i]).

    Sizes are rounded up, except where a model of timm rounds down. Each map has a norm of its own, fresh, as in the
    published dense code: BatchNorm for DWNet, else LayerNorm over the channels. A pyramid with fewer than four stages
    is continued by max-pooling its last map.
    body: the backbone, one of this package or of timm; it is changed, what the maps do not need is removed.

    State-dict names: body.* as the backbone's, map_norms.i, and for isotropic backbones resize.{0.{0, 1, 3}, 1}.
    """

    def __init__(self, body):
        super().__init__()
        body.any_size = True
        info = list(body.feature_info)
        strides = sorted({level["reduction"] for level in info})
        isotropic = len(strides) == 1
        if isotropic:
            wanted = [max(len(info) * (k + 1) // MAPS - 1, 0) for k in range(MAPS)]
        else:
            last = {level["reduction"]: i for i, level in enumerate(info)}  # the last level of each stride
            wanted = [last[stride] for stride in strides[-MAPS:]]
        self.channels = [info[i]["num_chs"] for i in wanted]
        self.strides = [info[i]["reduction"] for i in wanted]
        self.levels = sorted(set(wanted))
        self.order = [self.levels.index(i) for i in wanted]  # fewer blocks than maps: some are taken twice
        body.prune_intermediate_layers(self.levels, prune_norm=True)
        self.body = body
        norm = getattr(body, "map_norm", nn.LayerNorm)
        self.map_norms = nn.ModuleList(norm(channels) for channels in self.channels)
        self.resize = resizing(self.channels[0]) if isotropic else nn.ModuleList(nn.Identity() for _ in wanted)
        if isotropic:
            patch = strides[0]
            self.strides = [patch // 4 if patch % 4 == 0 else patch / 4, patch // 2, patch, 2 * patch]
        self.extra = MAPS - len(wanted)
        self.channels += self.channels[-1:] * self.extra
        self.strides += [self.strides[-1] * 2 ** (k + 1) for k in range(self.extra)]

    def forward(self, images):
        """See the class."""
        found = self.body.forward_intermediates(images, self.levels, output_fmt="NCHW", intermediates_only=True)
        maps = [normalised(norm, found[i]) for norm, i in zip(self.map_norms, self.order, strict=True)]
        maps = [resize(image) for resize, image in zip(self.resize, maps, strict=True)]
        for _ in range(self.extra):
            maps.append(nn.functional.max_pool2d(maps[-1], 2, ceil_mode=True))
        return maps


def normalised(norm, image):
    """(B, C, H, W) under a BatchNorm, or a LayerNorm over C."""
    if isinstance(norm, nn.LayerNorm):  # wants the channels last; the permuted view goes in and out without a copy
        return norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return norm(image)


def resizing(dim):
    """BEiT's: 4 times larger, twice, as it is, half; on maps (B, dim, H, W)."""
    up, again = (nn.ConvTranspose2d(dim, dim, 2, stride=2) for _ in range(2))
    twice = nn.ConvTranspose2d(dim, dim, 2, stride=2)
    four_times = nn.Sequential(up, nn.BatchNorm2d(dim), nn.GELU(), again)
    return nn.ModuleList([four_times, twice, nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)])
