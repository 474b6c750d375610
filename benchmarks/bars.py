"""Operators and kernels in groups, and a picture of them as stacked bars: for bytes and for time."""

from tools.shared.figures import COLORS, new_figure, save, styled

FUSED = ("locality::", "gelu_moments", "add_kernel", "correlate", "input_gradient", "combine_kernel", "fold_kernel")
GROUPS = {  # parts of the names of operators and of GPU kernels; the first group with one of them counts
    "fused shortcut": FUSED,
    "optimizer, clipping": ("adam", "foreach", "multi_tensor", "lpnorm", "vector_norm"),
    "attention": ("attention", "flash", "fmha", "softmax", "bmm"),
    "linear layers": ("addmm", "mm", "gemm", "nvjet", "cutlass", "xmma"),
    "norms": ("norm",),
    "GELU": ("gelu",),
    "depth-wise convolutions": ("conv", "constant_pad"),
}
REST = "sums, casts, copies"
NOTHING = "no operator runs"


def group_of(name):
    """The group of an operator or kernel."""
    return next((group for group, parts in GROUPS.items() if any(part in name.lower() for part in parts)), REST)


def by_group(amounts):
    """{group: sum} of {name: amount}, in the order of GROUPS; groups without any are left out."""
    found = dict.fromkeys((*GROUPS, REST), 0)
    for name, amount in amounts.items():
        found[group_of(name)] += amount
    return {group: amount for group, amount in found.items() if amount}


def paint(number):
    """Colour and hatch of the `number`-th group; the colours come round once."""
    return {"color": COLORS[number % len(COLORS)], "hatch": "//" if number >= len(COLORS) else None}


@styled
def draw(bars, xlabel, path):
    """One bar for each of {label: {group: amount}}. Raises ConfigError (ending of `path`) and StorageError."""
    figure = new_figure(9, 1.2 + 0.5 * len(bars))
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for number, group in enumerate((*GROUPS, REST, NOTHING)):
        sizes = [bar.get(group, 0) for bar in bars.values()]
        if any(sizes):
            axes.barh(range(len(bars)), sizes, left=left, label=group, edgecolor="white", **paint(number))
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(bars)), bars)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=xlabel)
    figure.legend(loc="outside upper center", ncols=4)
    save(figure, path)
