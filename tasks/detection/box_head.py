"""The box heads: a class and a box for what is in a region."""

import torch.nn.functional as F
from torch import nn
from torchvision.ops import Conv2dNormActivation

SIZE = 7  # of the regions' features


class BoxHead(nn.Module):
    """forward(features (n, C, 7, 7)) -> (scores (n, num_classes + 1), deltas (n, num_classes, 4)).

    Background is the last score. Convolutions with BatchNorm, if any, then fully connected layers.
    """

    def __init__(self, num_classes, settings):
        super().__init__()
        widths = [settings.channels] + [settings.conv_channels] * settings.box_convs
        self.convs = nn.Sequential(*(Conv2dNormActivation(*pair, 3) for pair in zip(widths, widths[1:], strict=False)))
        widths = [widths[-1] * SIZE**2] + [settings.fc_channels] * settings.box_fcs
        self.fcs = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.fc_cls = nn.Linear(widths[-1], num_classes + 1)
        self.fc_reg = nn.Linear(widths[-1], num_classes * 4)
        self.initialise()

    def initialise(self):
        """As mmdetection: He normal by fan-out; Xavier uniform; the last layers N(0, 0.01), N(0, 0.001); biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)

    def forward(self, features):
        """See the class."""
        features = self.convs(features).flatten(1)
        for layer in self.fcs:
            features = F.relu(layer(features))
        return self.fc_cls(features), self.fc_reg(features).unflatten(1, (-1, 4))
