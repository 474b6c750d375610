"""Published code bases whose checkpoints can be read; a new one is a Source in a file here and a name in SOURCES."""

from models.weights.sources.pyramids import DWNET, SWIN, SWIN_MLP, SWIN_V2
from models.weights.sources.vits import CAIT, CVT, TIMM_VIT, VIT

SOURCES = (VIT, CAIT, SWIN, SWIN_V2, SWIN_MLP, CVT, DWNET, TIMM_VIT)
