"""Published code bases whose checkpoints can be read; a new one is a Source in a file here and a name in SOURCES."""

from models.sources.efficient_vit_dw import CAIT, VIT
from models.sources.swin import SWIN

SOURCES = (VIT, CAIT, SWIN)
