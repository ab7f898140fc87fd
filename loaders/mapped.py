"""Pictures that do not fit into the device's memory: they stay in their file, and are fetched a batch ahead."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import torch

from loaders.augment import CropAndFlip
from loaders.split import Split, checked

SHARE = 0.5  # of the free memory that pictures may take
PASSING = ("_kept", "_epoch", "_fetched", "_thread")  # what no copy has
COPIES = 5  # of them that a split makes, at most: augmentation keeps two, with black around


class Rows:
    """Some rows of a tensor, in an order; choosing among them copies nothing."""

    def __init__(self, tensor, rows=None):
        self.tensor, self.rows = tensor, torch.arange(len(tensor)) if rows is None else rows

    def __getitem__(self, some):
        return Rows(self.tensor, self.rows[some])


def lazily(arrays, device):
    """The arrays, with their pictures as Rows where they would take too much of the device's free memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if COPIES * sum(array.nbytes for array in arrays.values()) < SHARE * free:
        return arrays
    return {key: Rows(array) if key.endswith("images") else array for key, array in arrays.items()}


def _again(kind, known):
    """A split of this kind, with what is known of it."""
    split = object.__new__(kind)
    vars(split).update(known)
    Mapped.__init__(split, *(known[name] for name in ("rows", "labels", "classes", "name", "mirror")))
    return split


class Mapped(Split):
    """A split of Rows, usually of a file, on the CPU, its labels on the device. It gives what a Split gives."""

    def __init__(self, images, labels, classes, name, mirror=True):
        checked(images.tensor, images.rows, labels, classes, name)
        self.rows, self.labels, self.classes, self.name, self.mirror = images, labels, classes, name, mirror
        self._epoch = None  # the batches that `shuffled` has given, and their indices on the CPU
        self._fetched = {}  # what is, or is being, fetched: by its place in the epoch and its length
        self._thread = ThreadPoolExecutor(1)

    def __reduce__(self):
        return _again, (type(self), {name: value for name, value in vars(self).items() if name not in PASSING})

    @property
    def stored(self):
        return self.rows.tensor

    @property
    def images(self):
        """All of them, in memory."""
        return self.pictures(slice(None))

    def _of_pictures(self):  # too many to be read for every test
        return self._as_is("pictures", super()._of_pictures)

    def some(self, indices, device=None):
        kind, known = self.__reduce__()[1]
        return _again(kind, known | self._part(indices, device) | {"rows": self.rows[indices]})

    def shuffled(self, batch_size, seed):
        batches = super().shuffled(batch_size, seed)
        self._epoch, self._fetched = (batches, torch.cat(batches).cpu()), {}
        return batches

    def pictures(self, indices):
        place = self._place(indices)
        if place is None:
            images = self._fetch(indices.cpu() if isinstance(indices, torch.Tensor) else indices)
        else:  # the same part of the next batch is fetched while the device is at work on this one
            (begin, count), (batches, order) = place, self._epoch
            wanted = place, (begin + len(batches[0]), count)
            self._fetched = {
                (at, n): self._fetched.get((at, n)) or self._thread.submit(self._fetch, order[at : at + n])
                for at, n in wanted
            }
            images = self._fetched[place].result()
        images = images.to(self.labels.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last)

    def _place(self, indices):
        """Where a part of the epoch's order begins, and its length; None for other indices."""
        if self._epoch is None or not isinstance(indices, torch.Tensor):
            return None
        ours = indices.untyped_storage().data_ptr() == self._epoch[0][0].untyped_storage().data_ptr()
        return (indices.storage_offset(), len(indices)) if ours else None

    def _fetch(self, indices):
        """Pictures on the CPU; pinned, where they go on to a GPU without anybody waiting."""
        rows, images, pin = self.rows.rows[indices], self.rows.tensor, self.labels.device.type == "cuda"
        order = (0, 2, 3, 1) if images.is_contiguous(memory_format=torch.channels_last) else (0, 1, 2, 3)
        stored = images.permute(order)  # as it lies in memory, so that a picture is copied in one go
        out = torch.empty((len(rows), *stored.shape[1:]), dtype=torch.uint8, pin_memory=pin)
        torch.index_select(stored.flatten(1), 0, rows, out=out.flatten(1))
        return out.permute(0, 3, 1, 2) if order[1] == 2 else out

    def _augmented(self, indices, generator):
        images = self.pictures(indices)
        return CropAndFlip(images, self.mirror)(torch.arange(len(images), device=images.device), generator)
