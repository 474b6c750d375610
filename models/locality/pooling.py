"""From tokens to one vector: what takes the place of a class token and of the mean."""

from torch import nn


class SeqPool(nn.Module):
    """Sequence pooling (CCT, arXiv 2104.05704, section 3.2): a mean of the tokens with learned, softmax-ed scores."""

    def __init__(self, dim):
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x):
        """(B, N, C), normalised -> (B, C)."""
        return (self.score(x).softmax(dim=1).transpose(1, 2) @ x).squeeze(1)
