"""What every backbone answers to, and the two initialisations."""

from timm.layers import trunc_normal_
from torch import nn

from models.checks import choice
from models.shortcut import ShortcutStack
from utils.errors import ConfigError

INITIALISATIONS = ("paper", "timm")


class Backbone(nn.Module):
    """Image classifier: forward(images (B, C, H, W)) = head(features) -> (B, num_classes).

    A subclass builds its parts, sets `num_features`, calls `build_head` and `initialise`, and writes
    `forward_features` and `pool`.
    """

    undecayed = ("pos_embed", "cls_token")  # last parts of parameter names that weight decay usually spares
    linear_std = None  # published: std of the truncated normal of every Linear (its bias 0); None = PyTorch's default

    def forward(self, x):
        """(B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x, pre_logits=False):
        """What forward_features returned -> (B, num_classes), or (B, num_features) before the last layer."""
        x = self.pool(x)
        return x if pre_logits else self.head(x)

    def build_head(self, num_classes):
        """The last layer; 0 classes means none."""
        if num_classes < 0:
            raise ConfigError(f"MODEL.NUM_CLASSES {num_classes}: must be at least 0")
        self.num_classes = num_classes
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self):
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes):
        """A new last layer, initialised as the constructor does, on the device and in the type of the old weights."""
        like = next(self.parameters())
        self.head = self.build_head(num_classes).to(like.device, like.dtype)
        self.head.apply(self.initialise_linear)

    def initialise(self, init):
        """Initialise every Linear and the free parameters. init: 'paper' as published, 'timm' as timm's ViT."""
        choice("init", init, INITIALISATIONS)
        self.init = init
        self.apply(self.initialise_linear)

    def initialise_linear(self, module):
        """Initialise `module` in the chosen manner if it is a Linear."""
        std = 0.02 if self.init == "timm" else self.linear_std
        if std is not None and isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def no_weight_decay(self):
        """Names of the parameters that timm's and Swin's recipes exempt from weight decay."""
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in self.undecayed}

    def set_grad_checkpointing(self, enable=True):
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, ShortcutStack):
                module.use_checkpoint = enable
