"""Parameters and FLOPs of the papers' models, counted here, beside the published ones: the table in docs/models.md.

python -m tools.models_table

FLOPs are multiply-accumulates of one image plus norms (LayerNorm 5, BatchNorm 2 per element): fvcore's convention,
which arXiv 2407.19394 uses. Published figures: tools/shared/published_results.yaml. Models are built without values.
"""

import argparse

import torch

import models
from tools.shared.published import LOCALITY, SWITCHES, rows
from utils.flops import count_macs

SPECIAL = {  # what a model lacks
    (): "",
    ("pe",): ", no positional embedding",
    ("ls",): ", no LayerScale",
    ("pe", "ls", "th"): ", no LS, TH, PE",
    ("shift",): ", no shifted windows",
}


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
    done = set()
    for source, row in rows():
        model, classes = row["features"], 10 if "cifar10" in row else 1000
        name = model["type"] + SPECIAL[tuple(switch for switch in SWITCHES if model.get(switch) is False)]
        which = source, name, *model["dw"], model["size"]
        if "params" not in row or which in done:  # tables 2 and 4 repeat models; so do other weights of the same one
            continue
        done.add(which)
        keywords = {
            key.rpartition(".")[2].lower(): model[switch] for switch, key in SWITCHES.items() if switch in model
        }
        params, macs, size = count(model["type"], {**keywords, "img_size": model["size"]}, classes, model["dw"])
        stated = row["params"][0] if isinstance(row["params"], list) else row["params"]
        shown = "+".join(map(str, model["dw"])) or "none"
        place = source.replace(LOCALITY, "2407.19394").removeprefix("arXiv ")
        lines.append(
            f"| {name} | {shown} | {size} | {classes} | {params:,} | {stated} | "
            f"{macs / 1e9:.3f} | {row['flops']} | {place} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table())
