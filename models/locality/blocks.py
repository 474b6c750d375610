"""Forms of a block that differ from the pre-norm one."""

from torch import nn

from models.layers import Block


class NormedResidualBlock(Block):
    """x += mixer(LN(x)); x = LN(x); x += MLP(x): the second residual starts from the normalised tokens.

    So it is in the published code of CCT, ViT-Lite and CVT (arXiv 2104.05704), while the paper shows an ordinary block.
    """

    def forward(self, x, context):
        """x: (B, N, C) -> (B, N, C)."""
        x = self.norm2(x + self.drop_path(self.layer_scale1(self.attn(self.norm1(x), context))))
        return x + self.drop_path(self.layer_scale2(self.mlp(x, context)))


class LocalViTBlock(Block):
    """x += mixer(LN(x)) under drop path; x += feed_forward(x), without a norm and without drop path.

    The published form around LocalViT's feed-forward (arXiv 2104.05707), which has norms of its own.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm2 = nn.Identity()

    def forward(self, x, context):
        """x: (B, N, C) -> (B, N, C)."""
        x = x + self.drop_path(self.layer_scale1(self.attn(self.norm1(x), context)))
        return x + self.mlp(x, context)
