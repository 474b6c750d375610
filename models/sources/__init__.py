"""Published code bases whose checkpoints can be read; a new one is a Source in a file here and a name in SOURCES."""

from models.sources.cvt import CVT
from models.sources.dwnet import DWNET
from models.sources.efficient_vit_dw import CAIT, VIT
from models.sources.swin import SWIN, SWIN_MLP, SWIN_V2
from models.sources.timm_vit import TIMM_VIT

SOURCES = (VIT, CAIT, SWIN, SWIN_V2, SWIN_MLP, CVT, DWNET, TIMM_VIT)
