"""Backbones with depth-wise convolution shortcuts: `create(variant, **kwargs)`, `list_variants()`.

Besides these variants, `create('timm/<name>', ...)` takes any model of timm. Importing the package also enters the
variants in timm's registry, see models.timm_models.registry. `from_pretrained(folder)` and `save_pretrained(model,
folder)` read and write models in timm's layout, see models.hub.
"""

# Importing a file registers its variants.
from models import vit, cct, cait, cvt, dwnet, hybrid_vit, nest, pit, resnet, swin  # noqa: F401, I001
from models.registry import create, get_variant, list_variants
from models.timm_models import wrap  # noqa: F401  (registers timm/<name>)
from models.timm_models.registry import register_all
from models.hub import from_pretrained, save_pretrained

__all__ = ["create", "from_pretrained", "get_variant", "list_variants", "save_pretrained"]

register_all()
