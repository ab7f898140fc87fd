"""Which examples withstand an attack: the one place where pictures are attacked and judged.

Always in float32 and eval mode, always crafted on a model and judged right after: ready-made pictures are
never taken. What `attacked` returns is what every robust accuracy of this project counts.
"""

import copy
import hashlib
import json
import logging
import time
from pathlib import Path

import torch

import attacks
from attacks import evaluating
from files import replacing
from runs import fingerprint, structure
from utils import derive_seed

BATCH = {"cpu": 250, "cuda": 1000}  # pictures at once
SAVE_EVERY = 5.0  # seconds, at least, between two writes of what is done

log = logging.getLogger("study")


def on_device_of(split, model):
    """The model on the split's device: itself, or a copy."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device == split.labels.device:
        return model
    return copy.deepcopy(model).to(split.labels.device)


def predict(model, split):
    """Logits (N, K) of the pictures of a split, in float32 and eval mode."""
    with evaluating(model), torch.no_grad():
        return torch.cat([model(images) for images, _ in split.batches(BATCH[split.labels.device.type])])


def attacked(source, victim, split, attack, indices, seed, bar=None, kept=None):
    """Which of the examples withstand the attack, bool (len(indices),), and how far it went.

    Examples are crafted on `source` and judged by `victim`. An attack of several stages gives each stage what the
    ones before have left, in full batches. The extent is the largest change of a pixel (L2: the largest
    length), the lowest and the highest pixel, and the number of examples whose logits are not finite.
    `kept` holds the batches that an earlier, interrupted call has done.
    """
    device, kept = split.labels.device, Kept(None, None) if kept is None else kept
    extents, standing = [[0.0, 0.0, 0.0, 0]], torch.ones_like(indices, dtype=torch.bool)
    left = len(indices)
    for number, stage in enumerate(attack.stages):
        final = number == len(attack.stages) - 1
        for batch, some in enumerate(standing.nonzero()[:, 0].split(BATCH[device.type])):
            if not len(some):
                continue
            place = f"{attack!r}, seed {seed}, {number}, {batch}"
            if place not in kept:
                generator = torch.Generator(device).manual_seed(derive_seed(seed, number, batch))
                kept[place] = _judge(source, victim, stage, *split.batch(indices[some]), generator)
            stood, extent = kept[place]
            standing[some] = torch.tensor([mark == "1" for mark in stood], device=device)
            extents.append(extent)
            left -= stood.count("0")
            if bar is not None:
                bar.update(len(stood) if final else stood.count("0"))
                bar.set_postfix_str(f"{stage.label}, at most {100 * left / len(split):.1f} % withstand")
    size, low, high, broken = torch.tensor(extents, dtype=torch.float64).T  # NaN stays NaN in its extremes
    return standing, (float(size.max()), float(low.min()), float(high.max()), int(broken.sum()))


def _judge(source, victim, attack, images, labels, generator):
    """One batch: a "1" for each example that withstands, and how far the attack went.

    The attack gets a copy of the pictures, so that one that writes into them cannot hide how far it went.
    """
    with evaluating(source):
        adversarial = attack.craft(source, images.clone(), labels, generator)
    with evaluating(victim), torch.no_grad():
        logits = victim(adversarial)
    broken = ~torch.isfinite(logits).all(1)
    stood = (logits.argmax(1) == labels) & ~broken
    change = (adversarial - images).flatten(1)
    size = change.norm(dim=1) if getattr(attack, "norm", "Linf") == "L2" else change.abs().amax(1)
    extent = torch.stack([size.max(), adversarial.min(), adversarial.max(), broken.sum()]).tolist()
    return "".join("01"[mark] for mark in stood.tolist()), [*extent[:3], int(extent[3])]


class Kept(dict):
    """Batches that are done, in a file of a folder, so that a test that was stopped goes on where it was.

    They are used again only for the same models, pictures and attacks' code; the file goes when the test is done.
    """

    def __init__(self, folder, key):
        super().__init__()
        self.path = None if folder is None else Path(folder) / "test-unfinished.json"
        self.key, self.written = key, time.monotonic()
        if self.path is None or not self.path.exists():
            return
        try:
            saved = json.loads(self.path.read_text())
            if saved["key"] == key:
                self.update(saved["batches"])
                log.info("%s: the test goes on after %d batches", self.path.parent.name, len(self))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("%s cannot be read (%s): the test begins anew", self.path, error)

    def __setitem__(self, place, batch):
        super().__setitem__(place, batch)
        if self.path is not None and time.monotonic() - self.written > SAVE_EVERY:
            with replacing(self.path) as partial:
                partial.write_text(json.dumps({"key": self.key, "batches": self}))
            self.written = time.monotonic()

    def remove(self):
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def key_of(source, victim, split):
    """What decides the outcome of a batch, besides the attack and its seed."""
    digest = hashlib.sha256()
    for path in sorted(Path(attacks.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for tensor in (split.images, split.labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    models = [part(model) for model in (source, victim) for part in (fingerprint, structure)]
    return [split.name, digest.hexdigest(), BATCH[split.labels.device.type], *models]
