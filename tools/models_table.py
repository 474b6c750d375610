"""Parameters and FLOPs of the papers' models, counted here, beside the published ones: the table in docs/models.md.

python -m tools.models_table

FLOPs are multiply-accumulates of one image plus norms (LayerNorm 5, BatchNorm 2 per element): fvcore's convention,
which arXiv 2407.19394 uses. Published figures: tools/shared/published_results.yaml. Models are built without values.
"""

import argparse
from pathlib import Path

import torch
import yaml

import models
from utils.flops import count_macs

PUBLISHED = Path(__file__).parent / "shared/published_results.yaml"


def rows(published):
    """(variant, keywords, what is special, classes, published parameters in M, published FLOPs in G, source)."""
    for entry in published["table1_vit"]:
        special = "" if entry["pe"] else "no positional embedding"
        yield entry["model"], {"pos_embed": entry["pe"]}, special, 10, entry, "2407.19394, table 1"
    for entry in published["table3_cait"]:
        on = entry["ls_th_pe"]
        keywords = {"layer_scale": on, "talking_heads": on, "pos_embed": on}
        yield entry["model"], keywords, "" if on else "no LS, TH, PE", 10, entry, "2407.19394, table 3"
    for entry in published["table5_swin_tiny"]:
        special = "" if entry["shift"] else "no shifted windows"
        yield "swin_tiny", {"shift": entry["shift"]}, special, 10, entry, "2407.19394, table 5"
    for entry in published["table6_imagenet"]:
        bare = "cait" in entry["model"] and bool(entry["dw"])
        yield (
            entry["model"], {"layer_scale": False} if bare else {}, "no LayerScale" if bare else "", 1000, entry,
            "2407.19394, table 6",
        )  # fmt: skip
    for entry in published["cvt"]:
        if entry["pretrain"] == "imagenet1k" or entry["model"] == "cvt_w24":
            yield entry["model"], {"img_size": entry["image_size"]}, "", 1000, entry, "2103.15808"
    for entry in published["dwnet"]:
        yield entry["model"], {}, "", 1000, entry, "2106.04263"


def count(variant, keywords, classes, kernels):
    """(parameters, multiply-accumulates, image size) of a model on the meta device."""
    size = keywords.get("img_size", 224)
    with torch.device("meta"):
        model = models.create(
            variant, **{**keywords, "img_size": size}, num_classes=classes, shortcut={"kernels": kernels}
        )
    return sum(parameter.numel() for parameter in model.parameters()), count_macs(model, size)["total"], size


def table():
    """The Markdown table."""
    lines = [
        "| model | shortcut | image | classes | parameters | published, M | FLOPs, G | published, G | source (arXiv) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, keywords, special, classes, entry, source in rows(yaml.safe_load(PUBLISHED.read_text())):
        kernels = entry.get("dw", [])
        params, macs, size = count(variant, keywords, classes, kernels)
        stated = entry["params"][0] if isinstance(entry["params"], list) else entry["params"]
        name = f"{variant}, {special}" if special else variant
        shown = "+".join(map(str, kernels)) or "none"
        lines.append(
            f"| {name} | {shown} | {size} | {classes} | {params:,} | {stated} | "
            f"{macs / 1e9:.3f} | {entry['flops']} | {source} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table())
