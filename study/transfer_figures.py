"""Figures of transfer: examples carried between networks, layers under attack, amounts of target data.

As those of figures.py: each function returns a matplotlib Figure, `figures.save` keeps it.
"""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from evaluation.finding import CLEAN
from evaluation.statistics import check_attacks
from study.figures import demo, distinct, done, looks
from study.style import BESIDE, OTHERS, SOURCES, STYLE, family_of, source_of


def _looks(named):
    """As `looks`, but a source has one colour in every figure, and others of the same source are dashed."""
    known, free = {}, itertools.cycle(OTHERS)
    for name, look in zip(named, looks(named), strict=True):
        family = family_of(name)
        if family not in known:
            source = source_of(family)
            dashes = ("-", "--", "-.", (0, (1, 1)))[sum(source_of(other) == source for other in known) % 4]
            known[family] = {"color": SOURCES[source], "linestyle": dashes} if source else {"color": next(free)}
        yield look | known[family]


@mpl.rc_context(STYLE | {"axes.grid": False})
def plot_carried(table):
    """The table of `evaluation.carried_matrix` as a field of numbers; the diagonal is the white box."""
    size = 1.6 + 0.62 * len(table)
    figure, axis = plt.subplots(figsize=(size + 1.2, size))
    _field(axis, 100 * table.to_numpy(), np.eye(len(table), dtype=bool))
    axis.set_xticks(range(len(table)), table.columns, rotation=40, ha="right")
    axis.set_yticks(range(len(table)), table.index)
    axis.set(xlabel="scored: the victim", ylabel="crafted on")
    where = f"{demo(table.attrs['split'])}, n = {table.attrs['n']}"
    axis.set_title(f"Accuracy, %, {table.attrs['attack']};\n{where}; bold: white box")
    return done(figure)


@mpl.rc_context(STYLE | {"axes.grid": False})
def plot_carried_attacks(stood, split):
    """How much each victim gets right under examples of several attacks on several sources; one panel a victim.

    `stood` maps an attack's label to what `evaluation.carried_outcomes` returns. Rows are sources, columns are
    attacks. Bold: the white box, which alone is robustness.
    """
    first = next(iter(stood.values()))
    sources, victims = (list(dict.fromkeys(pair[place] for pair in first)) for place in (0, 1))
    size = (2.2 + len(victims) * (0.5 + 0.42 * len(stood)), 1.5 + 0.3 * len(sources))
    figure, (axes,) = plt.subplots(1, len(victims), figsize=size, sharey=True, squeeze=False)
    for axis, victim in zip(axes, victims, strict=True):
        shares = [[float(found[source, victim].double().mean()) for found in stood.values()] for source in sources]
        white = np.array([[source == victim] * len(stood) for source in sources])
        _field(axis, 100 * np.array(shares), white)
        axis.set_xticks(range(len(stood)), stood, rotation=50, ha="right", fontsize=7)
        axis.set_title(f"victim: {victim}", fontsize=8)
    axes[0].set_yticks(range(len(sources)), sources, fontsize=8)
    axes[0].set_ylabel("crafted on")
    n = len(next(iter(first.values())))
    figure.suptitle(f"Accuracy, %, on carried examples; {demo(split.name)}, n = {n}; bold: white box")
    return done(figure)


def _field(axis, values, bold):
    """Numbers from 0 to 100 on their colours."""
    axis.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        look = {"color": "white" if values[row, column] > 55 else "black"}
        look |= {"weight": "bold" if bold[row, column] else "normal"}
        axis.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center", fontsize=8, **look)


LAYERS = {
    "shift": "change of the features, × their length",
    "cka": "likeness of clean and attacked features, CKA",
    "alignment": "alignment of gradients, cosine",
    "source_cka": "likeness with the source's features, CKA",
}


@mpl.rc_context(STYLE)
def plot_layers(tables):
    """What an attack does to each layer of several networks: `tables` maps names to `features.through_layers`.

    Dotted: the change that noise of the same ε makes.
    """
    shown = [column for column in LAYERS if any(column in table for table in tables.values())]
    names = list(dict.fromkeys(name for table in tables.values() for name in table.index))
    figure, (axes,) = plt.subplots(1, len(shown), figsize=(3.1 * len(shown), 3.2), squeeze=False)
    for axis, column in zip(axes, shown, strict=True):
        for table, look in zip(tables.values(), _looks(tables), strict=True):
            places = [names.index(name) for name in table.index]
            if column in table:
                axis.plot(places, table[column], marker="o", markersize=3, **look)
            if column == "shift":
                axis.plot(places, table.noise, color=look["color"], linestyle=":", linewidth=0.9)
        axis.set_xticks(range(len(names)), names, rotation=50, ha="right", fontsize=7)
        axis.set_title(LAYERS[column], fontsize=8)
        lowest = min(float(table[column].min()) for table in tables.values() if column in table)
        axis.set_ylim(min(0.0, 1.05 * lowest), None if column == "shift" else 1.03)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
    known = [table.attrs for table in tables.values()]
    attack, where, n = (distinct(str(one[key]) for one in known) for key in ("attack", "split", "n"))
    figure.suptitle(f"{attack}; {demo(where)}, n = {n}; dotted: noise of the same ε")
    return done(figure)


@mpl.rc_context(STYLE)
def plot_amounts(scores, label):
    """Accuracy, clean and under one attack, against the number of target pictures, with 95 % intervals.

    `scores` maps a method's name to {number of pictures: Scores}. Invalid numbers are left out.
    """
    everything = [score for amounts in scores.values() for score in amounts.values()]
    check_attacks(everything, label)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
    for axis, row in zip(axes, (CLEAN, label), strict=True):
        for amounts, look in zip(scores.values(), _looks(scores), strict=True):
            kept = {n: score for n, score in amounts.items() if score.verdict(row) != "invalid"}
            shares = [100 * score.share(row) for score in kept.values()]
            ends = [[100 * end for end in score.interval(row)] for score in kept.values()]
            reach = np.abs(np.array(ends).reshape(-1, 2).T - np.array(shares))
            axis.errorbar(list(kept), shares, yerr=reach, marker="o", markersize=4, capsize=2, **look)
        axis.set(xscale="log", xlabel="target pictures to train with", ylim=(0, 100))
        axis.set_title(everything[0].title(row), fontsize="large")
        axis.set_xticks(ticks := sorted({n for amounts in scores.values() for n in amounts}), ticks, fontsize=8)
        axis.minorticks_off()
    axes[0].set_ylabel("accuracy, %")
    axes[1].legend(**BESIDE)
    invalid = any(score.verdict(row) == "invalid" for score in everything for row in (CLEAN, label))
    tested = demo(distinct(f"{score.split}, n = {score.n}" for score in everything))
    figure.suptitle(f"{tested}; 95 % intervals{'; invalid numbers left out' if invalid else ''}")
    return done(figure)


@mpl.rc_context(STYLE)
def plot_stages(stages, label):
    """Clean accuracy against accuracy under one attack as trainings get longer: a line each, a point a stage.

    `stages` maps names to lists of stages, from short to long, each a list of Scores, one a seed. A point is the
    mean of the seeds, its 95 % intervals are those of a single seed, in the mean. Invalid numbers are left out.
    """
    everything = [score for stage in stages.values() for some in stage for score in some]
    check_attacks(everything, label)

    def valid(some):
        return not any(score.verdict(row) == "invalid" for score in some for row in (CLEAN, label))

    every = all(valid(some) for stage in stages.values() for some in stage)
    left_out = "" if every else "; invalid numbers left out"
    figure, axis = plt.subplots(figsize=(6, 4))
    ends_at = [], []
    for points, look in zip(stages.values(), _looks(stages), strict=True):
        places, reach = [], []  # clean, and under attack
        points = [some for some in points if valid(some)]
        if not points:
            continue
        for row in (CLEAN, label):
            shares = np.array([np.mean([100 * score.share(row) for score in some]) for some in points])
            ends = [np.mean([100 * np.array(score.interval(row)) for score in some], axis=0) for some in points]
            places.append(shares)
            ends_at[len(reach)].extend(np.ravel(ends))
            reach.append(np.abs(np.array(ends).T - shares))
        axis.errorbar(*places, xerr=reach[0], yerr=reach[1], marker="o", markersize=4, elinewidth=0.6, **look)
        axis.annotate(
            "longest", (places[0][-1], places[1][-1]), (-4, 4), textcoords="offset points", ha="right", fontsize=7
        )
    axis.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="clean accuracy, %", ylabel=f"accuracy under {everything[0].title(label)}, %")
    if ends_at[0]:
        limits = [(max(min(ends) - 2, -2), min(max(ends) + 2, 102)) for ends in ends_at]
        axis.set(xlim=limits[0], ylim=limits[1])
    tested = demo(distinct(f"{score.split}, n = {score.n}" for score in everything))
    axis.set_title(f"{tested}; 95 % intervals{left_out}")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(**BESIDE)
    return done(figure)
