"""TensorBoard curves of a run, in the run's own folder, so that one folder is one run there too."""

import re
import time

import torch

SCALARS = ("loss/train", "loss/val", "accuracy/train", "accuracy/clean", "accuracy/robust", "lr", "time/epoch_s")

FILES = "events.out.tfevents.*"


def _date_back(folder):
    """Let files from before come first, also where the clock was set back: TensorBoard goes by times in names."""
    latest = int(time.time()) - 1
    for path in sorted(folder.glob(FILES), reverse=True):
        if named := re.fullmatch(r"(events\.out\.tfevents\.)(\d+)(.*)", path.name):
            head, stamp, rest = named.groups()
            latest = min(latest, int(stamp))
            if latest < int(stamp):
                path.rename(folder / f"{head}{latest:010d}{rest}")
            latest -= 1


class Curves:
    """Writes one run's curves; with `first_epoch` > 0 it goes on from there and drops what was written beyond."""

    def __init__(self, folder, recipe, first_epoch=0):
        from torch.utils.tensorboard import SummaryWriter  # imported late: it costs a second
        from torch.utils.tensorboard.summary import hparams

        if first_epoch > 0:
            _date_back(folder)
            self.writer = SummaryWriter(folder, purge_step=first_epoch + 1)
            return
        for path in folder.glob(FILES):  # of a start that closed no epoch, perhaps of another recipe
            path.unlink()
        self.writer = SummaryWriter(folder, purge_step=0)
        # The recipe as text and under hparams, whose metrics are the live curves.
        plain = {key: v if isinstance(v, (bool, int, float, str)) else repr(v) for key, v in vars(recipe).items()}
        rows = "\n".join(f"| {key} | {value} |" for key, value in plain.items())
        self.writer.add_text("recipe", f"| setting | value |\n|---|---|\n{rows}", 0)
        for summary in hparams(plain, {"accuracy/clean": 0.0, "accuracy/robust": 0.0}):  # columns of its table
            self.writer.file_writer.add_summary(summary)

    def epoch(self, number, row):
        """Scalars of one epoch; `row` maps tags to values."""
        for tag in (*SCALARS, "accuracy/fgsm"):
            if tag in row:
                self.writer.add_scalar(tag, row[tag], number)
        self.writer.flush()

    def pictures(self, number, clean, adversarial, eps):
        """The same pictures before and after the attack, and the change, with ±ε shown as black to white."""
        change = ((adversarial - clean) / (2 * eps) + 0.5).clamp(0, 1) if eps else torch.full_like(clean, 0.5)
        for name, images in (("clean", clean), ("adversarial", adversarial), ("perturbation", change)):
            self.writer.add_images(f"examples/{name}", images, number)

    def close(self):
        self.writer.close()
