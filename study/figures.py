"""Figures of runs: each function returns a matplotlib Figure, `save` keeps it.

Colours keep their run from figure to figure; error bars and bands are 95 % intervals; where scores are drawn,
what the checks found invalid is left out.
"""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from attacks import evaluating, in_255ths
from evaluation.diagnostics import check_curves
from evaluation.finding import CLEAN
from evaluation.per_example import predict
from evaluation.statistics import check_attacks, expected_robustness, wilson
from storage.atomic_files import replacing
from study.style import BESIDE, COLOURS, MARKERS, OTHERS, SHAPES, SOURCES, STYLE, attacked, family_of, source_of

PGD = "-pgd"  # how the names of networks end that have a twin without it


def demo(name):
    """What every table and figure of drawn pictures says."""
    return f"{name} (drawn pictures: a demonstration)" if name.startswith("shapes10") else name


@mpl.rc_context(STYLE)
def plot_training(runs):
    """Clean and robust validation accuracy, and training loss, by epoch; `runs` maps names to trained Runs."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.9))
    titles = {"accuracy/clean": "clean accuracy, %", "accuracy/robust": "robust accuracy, %"}
    known = [run.settings for run in runs.values()]
    against = [_short_attack(one["recipe"]["validation_attack"]) for one in known]
    unlike = len(set(against)) > 1
    named = [f"{name}: {attack}" if unlike else name for name, attack in zip(runs, against, strict=True)]
    for axis, (column, title) in zip(axes, (titles | {"loss/train": "training loss"}).items(), strict=True):
        scale = 100 if column in titles else 1
        for run, look in zip(runs.values(), looks(named), strict=True):
            axis.plot(run.history["epoch"], scale * run.history[column], marker=".", markersize=3, **look)
        axis.set_title(title, fontsize="large")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if column in titles:
            axis.set_ylim(0, 100)
    axes[0].legend()
    names = demo(distinct(one["data"]["name"] for one in known))
    robust = "under attacks that are NOT the same" if unlike else against[0]
    figure.suptitle(f"Training on {names}; accuracies on the validation split, robust: {robust}")
    return done(figure)


def distinct(texts):
    """What all entries of a figure have in common; everything, where they differ."""
    return " and ".join(dict.fromkeys(texts))


def training_attack(recipe):
    """The attack that a recipe, as it stands in recipe.json, trains with; None where it names none."""
    defence = recipe["defence"]
    while "defence" in defence:  # another one around it
        defence = defence["defence"]
    return defence.get("attack")


def _short_attack(attack):
    """An attack of a recipe.json in few words."""
    norm = f" (L2, ε = {attack['eps']:.4g})" if attack.get("norm") == "L2" else ""
    return attack["kind"] + norm + (f" with {attack['steps']} steps" if "steps" in attack else "")


def _title(label, scores):
    """What a figure says of an attack, by its label in a list of Scores."""
    return next((score.title(label) for score in scores if label in score.attacks), label)


def column(label, score, scores):
    """An attack's title, or all of its settings where the same label stands for different ones."""
    settings = {other.attacks[label] for other in scores.values() if label in other.attacks}
    return score.title(label) if len(settings) < 2 or label not in score.attacks else score.attacks[label]


@mpl.rc_context(STYLE)
def plot_scores(scores):
    """Accuracy of each model, clean and under each attack, as bars with their intervals, without invalid ones."""
    named = [{label: column(label, score, scores) for label in score.outcomes} for score in scores.values()]
    labels = list(dict.fromkeys(title for titles in named for title in titles.values()))
    width = 0.8 / len(scores)
    figure, axis = plt.subplots(figsize=(7.5, 3.2))
    for index, (score, titles, look) in enumerate(zip(scores.values(), named, looks(scores), strict=True)):
        rows = score.table()
        rows = rows[(rows.verdict != "invalid") & rows.index.isin(titles)]
        places = [labels.index(titles[label]) + (index - (len(scores) - 1) / 2) * width for label in rows.index]
        reach = [rows.accuracy - rows.low, rows.high - rows.accuracy]
        for place, value in zip(places, rows.accuracy, strict=True):
            if value < 1:  # a bar too low to be seen
                axis.text(place, 1.5, f"{value:.1f}", ha="center", fontsize=6, rotation=90)
        axis.bar(places, rows.accuracy, width * 0.92, **look)
        axis.errorbar(places, rows.accuracy, yerr=reach, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)
    axis.set_xticks(range(len(labels)), [title.replace(", L2", "\nL2").replace("(", "\n(") for title in labels])
    axis.grid(axis="x", visible=False)
    # Drawn by hand: a model whose numbers are all left out has no bar to take the colour from.
    entries = [Patch(**look) for look in looks(scores) if look["label"]]
    axis.legend(handles=entries, **BESIDE)
    invalid = any(score.verdict() == "invalid" for score in scores.values())
    left_out = ", invalid numbers left out" if invalid else ""
    tested = distinct(f"{score.split}, n = {score.n}" for score in scores.values())
    axis.set(title=demo(tested) + left_out, ylabel="accuracy, %", ylim=(0, 100))
    return done(figure)


AXES = {"eps": "ε, in 255ths of the pixel range", "steps": "steps of the attack", "restarts": "restarts"}


@mpl.rc_context(STYLE)
def plot_against(tables, title, trained=None):
    """Robust accuracy against ε, steps or restarts: `tables` maps names to tables of diagnostics.py.

    `trained` is the ε that the models were trained with, to be marked. Beside a name stands the expected
    robustness up to there, or else up to the largest ε.
    """
    first = next(iter(tables.values()))
    along = first.columns[0]
    check_curves(tables.values())
    in_l2 = first.attrs.get("norm") == "L2"
    scale = 255 if along == "eps" and not in_l2 else 1
    expected = {}
    if along == "eps":
        limit = min(trained or np.inf, *(rows.eps.iloc[-1] for rows in tables.values()))
        for name, rows in tables.items():
            share = expected_robustness(rows.eps, rows.accuracy, limit)
            expected.setdefault(family_of(name), []).append(share)
    figure, axis = plt.subplots(figsize=(6.6, 3.2))
    for rows, look in zip(tables.values(), looks(tables), strict=True):
        if look["label"] in expected:
            look["label"] += f", {100 * np.mean(expected[look['label']]):.1f} %"
        axis.plot(scale * rows[along], 100 * rows.accuracy, marker="o", markersize=3, **look)
        low, high = 100 * rows.low, 100 * rows.high
        axis.fill_between(scale * rows[along], low, high, color=look["color"], alpha=0.15, linewidth=0)
    if trained is not None:
        axis.axvline(scale * trained, color="grey", linewidth=0.8, linestyle=":", label="ε of the training")
    if along == "steps":
        axis.set_xscale("log")
        axis.set_xticks(first.steps, first.steps)
        axis.minorticks_off()
    if along == "restarts":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    named = "ε, the length of the change in L2" if along == "eps" and in_l2 else AXES[along]
    axis.set(xlabel=named, ylabel="accuracy, %", ylim=(0, 100))
    axis.set_title(f"{title}, {demo(first.attrs['split'])}, n = {first.n[0]}, bands: 95 %")
    norm = first.attrs.get("norm", "Linf")
    said = f"expected robustness\nup to ε = {in_255ths(limit, norm)}" if expected else None
    axis.legend(title=said, title_fontsize="small", **BESIDE)
    return done(figure)


@mpl.rc_context(STYLE)
def plot_margins(groups, title):
    """Histograms of margins, one panel a model: `groups` maps names to {"clean": (N,), "PGD-20": (N,), ...}.

    Left of zero the model is wrong. What stands near zero falls at the next small improvement of the attack.
    """
    figure, (axes,) = plt.subplots(1, len(groups), figsize=(3.4 * len(groups), 2.7), squeeze=False)
    for axis, (name, parts) in zip(axes, groups.items(), strict=True):
        low, high = np.quantile(torch.cat(list(parts.values())).numpy(), (0.005, 0.995))
        width = (high - low) / 40
        edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width  # one edge at zero
        for (label, part), colour in zip(parts.items(), COLOURS[1:], strict=False):
            inside = np.clip(part.numpy(), edges[0], edges[-1])
            axis.hist(inside, edges, histtype="stepfilled", alpha=0.45, color=colour, label=label)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel="margin: the label's logit minus the next", title=name)
    axes[0].set_ylabel("pictures")
    axes[0].legend()
    figure.suptitle(title)
    return done(figure)


@mpl.rc_context(STYLE)
def plot_surfaces(surfaces, title, eps=8 / 255):
    """The loss around pictures, one panel a model: `surfaces` maps names to what `loss_surface` returns."""
    figure = plt.figure(figsize=(3.3 * len(surfaces), 3.1))
    for place, (name, surface) in enumerate(surfaces.items(), 1):
        axis = figure.add_subplot(1, len(surfaces), place, projection="3d")
        line = 255 * np.linspace(-eps, eps, len(surface))
        across, along = np.meshgrid(line, line)
        axis.plot_surface(across, along, surface.numpy(), cmap="viridis", linewidth=0, antialiased=True)
        axis.set_title(name)
        axis.set_xlabel("random direction, /255", fontsize=7, labelpad=-6)
        axis.set_ylabel("gradient's sign, /255", fontsize=7, labelpad=-6)
        axis.set_zlabel("loss", fontsize=7, labelpad=-3)
        axis.tick_params(labelsize=6, pad=-2)
        axis.view_init(28, -60)
    figure.suptitle(f"{title}; each panel has a scale of its own")
    return done(figure)


@mpl.rc_context(STYLE)
def plot_claims(table, title):
    """Wrong protocols beside the right one: `table` has a row a protocol, columns claimed, true, low, high, n."""
    figure, axis = plt.subplots(figsize=(6.4, 0.42 * len(table) + 1.1))
    places, true, claimed = np.arange(len(table)), 100 * table.true, 100 * table.claimed
    axis.plot([true, claimed], [places] * 2, color="#cccccc", linewidth=3, zorder=0)
    reach = 100 * np.array([table.true - table.low, table.high - table.true])
    axis.errorbar(true, places + 0.13, xerr=reach, fmt="o", color=COLOURS[1], markersize=4)
    axis.plot(claimed, places - 0.13, "X", color=COLOURS[2], markersize=6)
    axis.set_yticks(places, [f"{name} (n = {n})" for name, n in table.n.items()])
    axis.invert_yaxis()
    axis.set(xlabel="accuracy under attack, %", xlim=(-2, 102))
    entries = [("X", COLOURS[2], "claimed"), ("o", COLOURS[1], "measured the right way, 95 % interval")]
    handles = [Line2D([], [], marker=m, color=c, linestyle="", label=text) for m, c, text in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(title)
    return done(figure)


@mpl.rc_context(STYLE)
def plot_overfitting(run):
    """Accuracy under attack by epoch, on the training and the validation pictures; dots: best epoch and last.

    The training curve is of the moving pictures that the weights are just being fitted to, under the attack that
    makes them, whose ε may rise at first. Two attacks of unlike strength are named, so that nobody takes
    their distance for overfitting.
    """
    history, best, last = run.history.set_index("epoch"), run.best_epoch, len(run.history)
    known = run.settings
    recipe, data = known["recipe"], known["data"]
    training, validation = training_attack(recipe) or {"kind": "no attack"}, recipe["validation_attack"]
    n = min(recipe["validation_images"], data["val"])
    figure, axis = plt.subplots(figsize=(5, 3.2))
    lines = {
        "accuracy/train": f"training pictures: {_short_attack(training)}",
        "accuracy/robust": f"validation pictures: {_short_attack(validation)}, n = {n}",
    }
    for (column, label), colour in zip(lines.items(), COLOURS[1:], strict=False):
        axis.plot(100 * history[column], color=colour, label=label)
    sides = {last: ("last", "left"), best: ("best", "right") if best != last else ("best and last", "center")}
    for epoch, (name, side) in sides.items():
        value = 100 * history.loc[epoch, "accuracy/robust"]
        axis.plot(epoch, value, "o", color=COLOURS[2], markersize=4)
        axis.annotate(name, (epoch, value), xytext=(0, -12), textcoords="offset points", ha=side)
    axis.set(xlabel="epoch", ylabel="accuracy under attack, %", ylim=(0, 100))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    axis.set_title(f"{demo(data['name'])}, {data['train']} training pictures")
    return done(figure)


@mpl.rc_context(STYLE)
def plot_per_class(scores, split, label):
    """Accuracy of each class under one attack (dots, with intervals), and clean (lines); one panel a model."""
    valid = {name: score for name, score in scores.items() if score.verdict(label) != "invalid"}
    left_out = f"; invalid {'left out' if valid else 'shown: all are'}" if len(valid) < len(scores) else ""
    scores = valid or scores
    check_attacks(scores.values(), label)
    if strange := [name for name, score in scores.items() if score.pictures not in (None, split.checksum)]:
        raise ValueError(f"{', '.join(strange)}: these scores are of other pictures than {split!r}")
    counts = torch.bincount(split.labels, minlength=split.num_classes).tolist()
    size = (1 + 2.2 * len(scores), 0.24 * len(counts) + 1)
    figure, (axes,) = plt.subplots(1, len(scores), figsize=size, sharey=True, squeeze=False)
    for axis, (name, score), look in zip(axes, scores.items(), looks(scores), strict=True):
        for place, count in enumerate(counts):
            if count == 0:
                continue
            mine = (split.labels == place).cpu()
            clean, robust = (int(score.outcome(row)[mine].sum()) for row in (CLEAN, label))
            value = 100 * robust / count
            reach = [[100 * abs(end - robust / count)] for end in wilson(robust, count)]
            axis.plot([value, 100 * clean / count], [place] * 2, color="#cccccc", linewidth=3, zorder=0)
            axis.errorbar(value, place, xerr=reach, fmt="o", markersize=3, color=look["color"], elinewidth=0.8)
        axis.set(xlim=(-2, 102), xlabel="accuracy, %", title=name)
        axis.set_yticks(range(len(counts)), split.classes)
        axis.invert_yaxis()
    where = f"{demo(split.name)}, n = {min(counts)} to {max(counts)} a class{left_out}"
    figure.suptitle(f"{_title(label, scores.values())} by class (dots), up to clean (grey); {where}")
    return done(figure)


@mpl.rc_context(STYLE)
def plot_plane(groups, label, sources=None):
    """Clean against robust accuracy of every model: the upper right is where one wants to be.

    `groups` maps a group's name, which has a colour, to {model's name: Scores}. The same name has the same marker
    in every group, and SHAPES the same in every figure; filled it is where the name is of ATTACKED. `sources`
    maps names of groups to the Scores, on its own task, of what all in the group were made of: a star, with a line
    to each. Invalid numbers are left out.
    """
    everything = [score for scores in groups.values() for score in scores.values()]
    groups = {group: {n: s for n, s in scores.items() if _place(s, label)} for group, scores in groups.items()}
    groups = {group: scores for group, scores in groups.items() if scores}
    names = dict.fromkeys(family_of(name) for scores in groups.values() for name in scores)
    trained = list(dict.fromkeys(name.removesuffix(PGD) for name in names))
    others = [name for name in trained if name not in SHAPES]
    shapes = {name: SHAPES[name] for name in trained if name in SHAPES} | dict(zip(others, MARKERS, strict=False))
    if len(others) > len(MARKERS):  # too many to tell apart
        shapes = dict.fromkeys(trained, "o")
    kinds, free = list(map(source_of, groups)), itertools.cycle(OTHERS)
    own = [SOURCES[kind] if kind and kind not in kinds[:place] else next(free) for place, kind in enumerate(kinds)]
    colours = dict(zip(groups, own, strict=True))
    shown = [score for scores in groups.values() for score in scores.values()] or everything
    tested = [demo(distinct(score.split for score in shown)), distinct(str(score.n) for score in shown)]
    compared = [*everything, *(sources or {}).values()]
    check_attacks([score for score in compared if label in score.outcomes], label)
    invalid = any(label in score.outcomes and _place(score, label) is None for score in everything)
    figure, axis = plt.subplots(figsize=(7.4, 4.2))
    highest = 0.0
    for group, scores in groups.items():
        start = _place(sources[group], label) if group in (sources or {}) else None
        if start:
            highest = max(highest, start[1])
            axis.plot(*start, "*", color=colours[group], markersize=13, markeredgecolor="black", zorder=3)
        for name, score in scores.items():
            place = _place(score, label)
            if start:
                axis.plot(*zip(start, place, strict=True), color=colours[group], linewidth=0.5, alpha=0.5)
            ends = [[[100 * end] for end in score.interval(row)] for row in (CLEAN, label)]
            across, along = (np.abs(np.subtract(two, one)) for two, one in zip(ends, place, strict=True))
            highest = max(highest, ends[1][1][0])
            inside = colours[group] if attacked(name) else "none"
            look = {"color": colours[group], "markersize": 6, "markerfacecolor": inside, "elinewidth": 0.6}
            axis.errorbar(*place, xerr=across, yerr=along, fmt=shapes[family_of(name).removesuffix(PGD)], **look)
    axis.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle=":")
    axis.set(
        xlabel="clean accuracy, %",
        ylabel=f"accuracy under {_title(label, everything)}, %",
        xlim=(0, 102),
        ylim=(-2, 52 if highest < 50 else 102),
    )
    axis.set_title(f"{', n = '.join(tested)}; 95 % intervals{'; invalid numbers left out' * invalid}")
    entries = [Patch(color=colour, label=group) for group, colour in colours.items()]
    grey = {"color": "#555555", "linestyle": ""}
    if len(set(shapes.values())) > 1:
        entries += [Line2D([], [], marker=shape, label=name, mfc="none", **grey) for name, shape in shapes.items()]
    filled = Line2D([], [], marker="o", label="filled: trained on\nattacked pictures", **grey)
    entries += [filled] * any(map(attacked, names))
    if sources:
        told = f"its source, on {distinct(score.split for score in sources.values())}"
        entries.append(Line2D([], [], color="white", marker="*", markersize=11, mec="black", label=told))
    axis.legend(handles=entries, **BESIDE)
    return done(figure)


def _place(score, label):
    """Clean and robust accuracy in percent; None where one of them is invalid or missing."""
    if label not in score.outcomes or "invalid" in (score.verdict(CLEAN), score.verdict(label)):
        return None
    return 100 * score.share(CLEAN), 100 * score.share(label)


@mpl.rc_context(STYLE | {"axes.grid": False, "font.size": 7})
def plot_examples(models, split, attack, count=6):
    """Pictures before and after the attack and the change, with what each model says; `models` maps names.

    Shown are the first pictures that all of these models get right, so that red means: the attack did it.
    """
    few = split.first(200)
    right = torch.stack([predict(model, few).argmax(1) == few.labels for model in models.values()]).all(0)
    images, labels = split.batch(torch.argsort(~right, stable=True)[:count])
    before = "Right" if int(right.sum()) >= count else "Not all right"
    rows = [("clean", images, labels.tolist())]
    for name, model in models.items():
        adversarial = attack(model, images, labels, generator=torch.Generator(images.device).manual_seed(0))
        with evaluating(model), torch.no_grad():
            said = model(adversarial).argmax(1).tolist()
        change = adversarial - images
        largest = (
            attack.eps if attack.norm == "Linf" else change.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        )
        change = change / (2 * largest) + 0.5
        rows += [(f"{name}:\nattacked", adversarial, said), ("change", change.clamp(0, 1), [None] * count)]
    figure, axes = plt.subplots(len(rows), count, figsize=(1.15 * count + 0.9, 1.32 * len(rows)))
    for places, (name, pictures, said) in zip(axes, rows, strict=True):
        for axis, picture, guess, label in zip(places, pictures.cpu(), said, labels.tolist(), strict=True):
            axis.imshow(picture.expand(3, -1, -1).permute(1, 2, 0).numpy(), interpolation="nearest")
            caption = "" if guess is None else split.classes[guess]
            axis.set_title(caption, fontsize=7, pad=2, color="black" if guess in (None, label) else "#c02020")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        places[0].set_ylabel(name)
    where = f"{attack}, {demo(split.name)}. {before} before the attack"
    reach = "±ε" if attack.norm == "Linf" else "the largest, up or down,"
    figure.suptitle(f"{where}.\nCaptions: what the model says; change: {reach} is black to white", fontsize=8)
    return done(figure)


def looks(named):
    """Colour and legend entry of each: seeds of one model share a colour and one entry."""
    families = [family_of(name) for name in named]
    known = list(dict.fromkeys(families))
    sources = [source_of(family) for family in known]
    colours = [SOURCES.get(source) for source in sources]
    if None in sources or len(set(sources)) < len(known):  # a source's colour where there is one network of each
        colours = [COLOURS[index % len(COLOURS)] for index in range(len(known))]
    for index, family in enumerate(families):
        first = families.index(family) == index
        yield {"color": colours[known.index(family)], "label": family if first else None}


def done(figure):
    """Hand the figure over without leaving it open: pyplot would show it twice in a notebook."""
    plt.close(figure)
    return figure


def save(figure, session, name):
    """Keep a figure of an experiment as PNG and PDF, for the report and for papers; returns it."""
    for ending in ("png", "pdf"):
        with replacing(session.runs / "figures" / f"{name}.{ending}") as partial, mpl.rc_context(STYLE):
            figure.savefig(partial)
    return figure
