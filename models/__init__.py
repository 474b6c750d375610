"""Backbones with depth-wise convolution shortcuts: `create(variant, **kwargs)`, `list_variants()`.

Besides these variants, `create('timm/<name>', ...)` takes any model of timm. Importing the package also enters the
variants in timm's registry, see models.timm_registry.
"""

from models import cait, cvt, dwnet, swin, swin_mlp, swin_v2, timm_wrap, vit  # noqa: F401  (importing a file registers its variants)
from models.registry import create, get_variant, list_variants
from models.timm_registry import register_all

__all__ = ["create", "get_variant", "list_variants"]

register_all()
