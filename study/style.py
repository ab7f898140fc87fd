"""How figures look, and what the name of a network tells of that."""

import re

COLOURS = ("#4c4c4c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008
# What was fine-tuned has its colour in every figure of transfer,
SOURCES = {"standard": COLOURS[1], "robust": COLOURS[2], "scratch": COLOURS[3]}
OTHERS = (*COLOURS[4:], COLOURS[0])  # for what has no source
# what trains in fine-tuning its marker; other networks take those that are left.
SHAPES = {"head": "o", "last-stage": "s", "low-rank": "^", "all": "D", "probe-then-all": "v"}
MARKERS = "PX<>phd8"
# What tells in a name that a network was trained on attacked pictures: its marker is filled.
ATTACKED = {
    "pgd",
    "fgsm",
    "ni",
    "vmi",
    "trades",
    "mart",
    "awp",
    "free",
    "ema",
    "swa",
    "scheduled",
    "stale",
    "epochs",
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "figure.titlesize": 9,
    "font.size": 9,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "legend.frameon": False,
}
BESIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}  # of a legend: right of the axes


def family_of(name):
    """A model's name without its seed."""
    return re.sub(r"(, |-)seed ?\d+", "", name)


def attacked(name):
    """Does its name tell that a network was trained on attacked pictures?"""
    parts = re.split("[ ,-]+", family_of(name))
    return not ATTACKED.isdisjoint(parts) or ("robust" in parts and "from" not in parts)


def source_of(name):
    """What a network such as from-robust-head was made of: a key of SOURCES, or None."""
    return next((source for source in SOURCES if source in re.split("[ ,-]+", name)), None)
