"""What the published models of arXiv 2112.13492 (SPT and LSA) have in common."""

from torch import nn

from models.layers import PatchProjection

NAMES = {"vit": "ViT", "cait": "CaiT", "swin": "Swin", "pit": "PiT"}


def shifted_local(family, sizes):
    """Rows of a table of variants: sl_<family> with both parts, sl_<family>_plain with none.

    One of the two parts alone is a `locality` that names the other plain part.
    """
    both, none = {"tokenizer": "spt", "attention": "lsa"}, {"tokenizer": "patch", "attention": "plain"}
    source = f"arXiv 2112.13492, table 2 ({{}}{NAMES[family]})"
    return {
        f"sl_{family}": ({**sizes, "locality": both}, source.format("SL-")),
        f"sl_{family}_plain": ({**sizes, "locality": none}, source.format("")),
    }


class XavierLinear:
    """For a backbone: 'paper' draws every Linear from the Xavier normal distribution, its bias is 0."""

    def initialise_linear(self, module):
        """See Backbone; projections of patches count as the Linear that they are."""
        if self.init == "paper" and isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif self.init == "paper" and isinstance(module, PatchProjection):
            nn.init.xavier_normal_(module.proj.weight.flatten(1))
            nn.init.zeros_(module.proj.bias)
        else:
            super().initialise_linear(module)
