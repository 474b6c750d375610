"""Known ways to give a small-data transformer locality, as parts that take the place of a plain one.

A model's `locality` is {slot: "part" or "part:option=value,option=value"}, for instance
{"tokenizer": "conv:kernel=7", "attention": "lsa"}. A slot that is left out keeps the plain part, the first of its row.

| slot | built as part(...) | called as |
|---|---|---|
| tokenizer | in_chans, dim, patch_size (p, q) | (images (B, C, h*p, w*q)) -> tokens (B, h*w, D), row by row |
| attention | dim, heads, dim_head, *, qkv_bias, attn_drop, proj_drop | (x (B, P + h*w, D), (h, w)) -> same shape |
| feed_forward | dim, hidden, *, drop, prefix_tokens | (x (B, P + h*w, D), (h, w)) -> same shape |
| block | as models.layers.Block | (x (B, P + h*w, D), (h, w)) -> same shape |

Attention and feed-forward get normalised x. Options are the keyword-only parameters with a type of the part's
constructor. A tokenizer's `first_conv` is the name of the convolution that sees the image, None if there is none.
A model class that cannot use every part has tables of its own (CaiT, Swin, PiT: their attribute `parts`).
"""

import functools
import inspect
from types import SimpleNamespace

from models import checks
from models.checks import ArgumentError, among
from models.layers import Attention, Block, FeedForward, PatchProjection
from models.locality.attention import LocalitySelfAttention
from models.locality.blocks import LocalViTBlock, NormedResidualBlock
from models.locality.ceit import I2T
from models.locality.dhvt import SOPE, HeadTokenAttention
from models.locality.feed_forward import DAFF, LeFF, LocalFeedForward
from models.locality.tokenizers import ConvTokenizer, ShiftedTokenizer

READ = {int: int, float: float, str: str, bool: {"true": True, "false": False}.__getitem__}  # options from text
PARTS = {
    "tokenizer": {"patch": PatchProjection, "conv": ConvTokenizer, "spt": ShiftedTokenizer, "sope": SOPE, "i2t": I2T},
    "attention": {"plain": Attention, "lsa": LocalitySelfAttention, "head_tokens": HeadTokenAttention},
    "feed_forward": {"mlp": FeedForward, "leff": LeFF, "daff": DAFF, "localvit": LocalFeedForward},
    "block": {"plain": Block, "cct": NormedResidualBlock, "localvit": LocalViTBlock},
}


def choose(locality, parts, class_token=True):
    """The constructors of the chosen parts, with their options: a namespace with an attribute for each slot of `parts`.

    parts: {slot: {name: class}}. Raises ArgumentError for slots, parts and options that there are not, and for a part
    that needs the class token which the model lacks.
    """
    chosen = dict(locality or {})
    for slot in (f"locality.{name}" for name in chosen if name not in parts):
        raise ArgumentError(f"`{slot}`: unknown here{among(slot, [f'locality.{name}' for name in parts])}")
    built = {slot: _part(slot, chosen.get(slot), table) for slot, table in parts.items()}
    for slot, part in built.items():
        if not class_token and getattr(part.func, "needs_class_token", False):
            raise ArgumentError(f"`locality.{slot}` {chosen[slot]!r}: needs a class token (`pool` cls, mean or lca)")
    return SimpleNamespace(**built)


def _part(slot, spec, table):
    """The constructor for "name:option=value,..." (None: the first of `table`), with its options."""
    spec = next(iter(table)) if spec is None else spec
    name, _, text = spec.partition(":")
    checks.choice(f"locality.{slot}", name, list(table))
    return functools.partial(table[name], **_options(f"`locality.{slot}` {spec!r}", text, options_of(table[name])))


def options_of(part):
    """{option: type} of a part."""
    parameters = inspect.signature(part).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind == p.KEYWORD_ONLY and p.annotation is not p.empty}


def _options(where, text, allowed):
    """{option: value} from "option=value,..."; ArgumentError that starts with `where` unless each is allowed."""
    options = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        try:
            options[name] = READ[allowed[name]](value.lower())
        except (KeyError, ValueError):
            known = ", ".join(f"{option}={kind.__name__}" for option, kind in allowed.items()) or "none"
            raise ArgumentError(f"{where}: {item!r} is not an option of it (options: {known})") from None
    return options
