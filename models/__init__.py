"""Backbones with depth-wise convolution shortcuts: `create(variant, **kwargs)`, `list_variants()`."""

from models import cait, swin, vit  # noqa: F401  (importing a file registers its variants)
from models.registry import create, get_variant, list_variants

__all__ = ["create", "get_variant", "list_variants"]
