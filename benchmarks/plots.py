"""The figures of the benchmarks."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.timing import spread
from study.style import COLOURS, STYLE

LOOKS = {
    "ours": (COLOURS[1], "o"),
    "ours, float32": (COLOURS[6], "o"),
    "foolbox": (COLOURS[2], "D"),
}
USUAL = ("usual way", "torchattacks")
GROUPS = {"training": "Training step", "evaluation": "Attack at evaluation"}
AXES = {
    "batch": ("pictures in a batch", "time of a training step, s"),
    "steps": ("steps of PGD", "time of a training step, s"),
    "width": ("width of the network, channels", "time of a training step, s"),
    "pictures": ("pictures", "time of an evaluation, s"),
}
UNITS = {"batch": "picture", "steps": "step of PGD", "pictures": "picture"}


def plot_speed(known):
    """How many times as fast as the usual way everybody is, case by case."""
    panels = {name: [r for r in known["results"] if r["group"] == name] for name in GROUPS}
    panels = {name: results for name, results in panels.items() if results} or {"training": []}
    sizes = [len(results) + 1 for results in panels.values()]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels),
            1,
            figsize=(6.6, 0.27 * sum(sizes) + 1.4),
            height_ratios=sizes,
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, results) in zip(axes[:, 0], panels.items(), strict=True):
            _speed_panel(axis, results)
            axis.set_title(GROUPS[name], fontsize=9, loc="left", weight="bold")
        axes[-1, 0].set_xlabel("speed, as a multiple of the usual way's (grey line)")
        axes[-1, 0].set_xscale("log", base=2)
        axes[-1, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        names = ("ours", "ours, float32", "foolbox")
        handles = [Line2D([], [], color=LOOKS[n][0], marker=LOOKS[n][1], linestyle="", label=n) for n in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
        figure.suptitle(_machine(known), fontsize=9)
        plt.close(figure)
        return figure


def _machine(known):
    return f"{known['environment']['device']}. Dots: medians; bars: lowest and highest turn"


def _speed_panel(axis, results):
    axis.axvline(1, color="#999999", linewidth=1.2)
    for place, result in enumerate(results):
        contenders = result["contenders"]
        usual = next(row["turns"] for name, row in contenders.items() if name in USUAL)
        for name, row in contenders.items():
            if name in USUAL:
                continue
            times = spread(mine / theirs for mine, theirs in zip(row["turns"], usual, strict=True))
            middle, (colour, marker) = times["median"], LOOKS[name]
            reach = [[middle - times["lowest"]], [times["highest"] - middle]]
            axis.errorbar(middle, place, xerr=reach, fmt=marker, color=colour, markersize=5, elinewidth=1.2)
        rate = f"{number(contenders['ours']['rate']['median'])} pictures/s"
        axis.text(1.01, place, rate, transform=axis.get_yaxis_transform(), va="center", color=LOOKS["ours"][0])
    axis.set_yticks(range(len(results)), [result["case"] for result in results])
    axis.set_ylim(len(results) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def plot_scaling(known):
    """Time against batch, steps, width and pictures, each with its line."""
    results = known["results"]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(7.5, 5.4), layout="constrained")
        for axis, result in zip(axes.flat, results, strict=False):
            _scaling_panel(axis, result)
        for axis in axes.flat[len(results) :]:
            axis.set_visible(False)
        figure.suptitle(_machine(known), fontsize=9)
        plt.close(figure)
        return figure


def _scaling_panel(axis, result):
    values = np.array(result["values"], dtype=float)
    low, middle, high = (np.array([s[key] for s in result["seconds"]]) for key in ("lowest", "median", "highest"))
    if result["along"] == "width":
        fit = middle
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(values, [f"{value:.0f}" for value in values])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(plt.NullLocator())
        axis.yaxis.set_minor_formatter(plt.NullFormatter())
    else:
        fit = result["slope"] * values + result["intercept"]
    axis.plot(values, fit, color="#999999", linewidth=1)
    axis.errorbar(values, middle, yerr=[middle - low, high - middle], fmt="o", color=COLOURS[1], markersize=4)
    if result["along"] != "width":
        axis.set(xlim=(0, None), ylim=(0, None))
    axis.text(0.05, 0.95, growth(result), transform=axis.transAxes, va="top")
    horizontal, vertical = AXES[result["along"]]
    axis.set(xlabel=horizontal, ylabel=vertical)
    axis.set_title(result["where"], fontsize=9)


def growth(result):
    """The slope in words."""
    if result["along"] == "width":
        return "∝ width^{:.1f} from {} to {}".format(result["exponent"], *result["values"][-2:])
    return f"{number(1000 * result['slope'])} ms per {UNITS[result['along']]}"


def number(value):
    """Three digits that count: 0.12, 4.56, 78.9, 1,230."""
    if value >= 1000:
        return f"{round(value, 3 - len(str(int(value)))):,.0f}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
