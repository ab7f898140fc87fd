"""One picture, one attack, several networks: what each says before and after; as a figure, and with a slider.

draw({"standard": one, "robust": other}, data.test, picture=0, attack=PGD())
explore({"standard": one, "robust": other}, data.test, pictures=[0, 1, 2], attacks=[FGSM(), PGD()])
"""

import io
from dataclasses import replace

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

from attacks import evaluating
from evaluation.per_example import predict
from study.figures import demo, done
from study.style import COLOURS, STYLE

CLASSES = 4  # whose probabilities are drawn: the largest, before or after
STEP = 1.3  # from one picture to the next, in widths of a picture


def recognised(networks, split, count=6):
    """Places of the first pictures that all networks get right, one a class at most: `count` or fewer."""
    right = torch.stack([predict(model, split).argmax(1) for model in networks.values()])
    first = {}
    for place in (right == split.labels).all(0).nonzero()[:, 0].tolist():
        first.setdefault(int(split.labels[place]), place)
    return list(first.values())[:count]


@mpl.rc_context(STYLE | {"axes.grid": False})
def draw(networks, split, picture, attack, *, seed=0):
    """A row a network: the picture, the change that the attack makes, their sum, and what the network says.

    `networks` maps names to models on the split's device, `picture` is a place in the split. Each
    network is attacked with its own gradients. The change is magnified until ±ε is white and black.
    """
    images, labels = split.batch(torch.tensor([picture]))
    label, larger = int(labels), 0.5 / attack.eps if attack.eps else 1
    size, panels = (9, 2.05 * len(networks) + 0.3), {"width_ratios": (3.1, 1)}
    figure, axes = plt.subplots(len(networks), 2, figsize=size, gridspec_kw=panels, squeeze=False)
    for (name, model), (left, right) in zip(networks.items(), axes, strict=True):
        generator = torch.Generator(images.device).manual_seed(seed)
        attacked = attack(model, images, labels, generator=generator)
        with evaluating(model), torch.no_grad():
            before, after = 100 * model(torch.cat([images, attacked])).softmax(1).cpu().numpy()
        change = (larger * (attacked - images) + 0.5).clamp(0, 1)
        _pictures(left, (images, change, attacked), ["+", "=", ""])
        left.text(-0.12, 0.5, name, rotation=90, size="large", weight="bold", ha="center", va="center")
        for place, said in ((0, before), (2, after)):
            guess = int(said.argmax())  # in red where it is wrong
            look = {"color": "black" if guess == label else "#c02020", "weight": "bold", "linespacing": 1.3}
            text = f"“{split.classes[guess]}”\n{said[guess]:.0f} %"
            left.text(STEP * place + 0.5, -0.05, text, ha="center", va="top", **look)
        _bars(right, before, after, label, split.classes)
    named = "picture", f"change × {larger:.0f}" if attack.eps else "no change", "attacked picture"
    for place, text in enumerate(named):
        axes[0, 0].text(STEP * place + 0.5, 1.04, text, ha="center")
    axes[0, 1].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    axes[-1, 1].set_xlabel("probability, %")
    figure.suptitle(f"{split.classes[label]}, a picture of {demo(split.name)}; {attack}")
    return done(figure)


def _pictures(axis, images, signs):
    """Images (1, C, H, W) side by side, with a sign after each."""
    for place, (image, sign) in enumerate(zip(images, signs, strict=True)):
        begin = STEP * place
        colours = image[0].expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
        axis.imshow(colours, extent=(begin, begin + 1, 0, 1), interpolation="nearest")
        axis.text(begin + (1 + STEP) / 2, 0.5, sign, size=15, ha="center", va="center")
    axis.axis("off")
    axis.set(xlim=(0, 2 * STEP + 1), ylim=(0, 1))


def _bars(axis, before, after, label, classes):
    """The probabilities of the likeliest classes, before and after; the true class in bold."""
    shown = np.maximum(before, after).argsort()[::-1][:CLASSES]
    places = np.arange(len(shown))
    axis.barh(places + 0.35, before[shown], 0.22, color="#b8b8b8", label="before")
    axis.barh(places + 0.6, after[shown], 0.22, color=COLOURS[2], label="after the attack")
    for place, index in enumerate(shown):  # above its bars: so long names take no room from the pictures
        axis.text(0.5, place + 0.15, classes[index], weight="bold" if index == label else "normal")
    axis.set(xlim=(0, 100), ylim=(CLASSES - 0.2, -0.2), xticks=(0, 25, 50, 75, 100), yticks=[])


def explore(networks, split, pictures, attacks, *, seed=0):
    """The figure of `draw` below menus of pictures and attacks and a slider for ε, drawn anew at each change.

    `pictures` are places in the split. To be the last line of a cell.
    """
    named = [(split.classes[int(split.labels[place])], place) for place in pictures]
    sizes = [(f"{size}/255", size / 255) for size in range(17)]
    controls = [
        ipywidgets.Dropdown(options=named, description="picture"),
        ipywidgets.Dropdown(options=[(attack.label, attack) for attack in attacks], description="attack"),
        ipywidgets.SelectionSlider(options=sizes, value=2 / 255, description="ε", continuous_update=False),
    ]
    shown = ipywidgets.Image(layout={"max_width": "100%"})

    def redraw(_=None):
        picture, attack, eps = (control.value for control in controls)
        attack = attack.scaled(eps / attack.eps) if eps else replace(attack, eps=0)
        drawn = io.BytesIO()
        draw(networks, split, picture, attack, seed=seed).savefig(drawn, format="png")
        shown.value = drawn.getvalue()

    for control in controls:
        control.observe(redraw, "value")
    redraw()
    return Explorer([ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"}), shown])


class Explorer(ipywidgets.VBox):
    """Controls and a figure; on a page without a kernel, a sentence."""

    def __repr__(self):
        return "Open this notebook in JupyterLab and run it: two menus and a slider stand here then."
