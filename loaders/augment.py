"""Crop and flip: a training picture is shifted by a few pixels (black comes in) and half the time mirrored."""

import torch

from processes.data_parallel import drawn


def reach(side):
    """The pixels that a picture of this height or width may shift in each direction: an eighth, at least 4."""
    return max(4, side // 8)


class CropAndFlip:
    """Both, or without `mirror` the crop alone, for all pictures of a split at once: images uint8 (N, C, H, W)."""

    def __init__(self, images, mirror=True):
        self.count, self.channels, self.height, self.width = images.shape
        self.down, self.across = reach(self.height), reach(self.width)
        self.copies = 2 if mirror else 1
        self.lines = self._lines(images)

    def __call__(self, indices, generator=None):
        """The pictures (n, C, H, W) uint8, channels-last, for int64 `indices` (n,), on the generator's device."""

        def draw(high):
            return drawn(indices, lambda numbers: numbers.random_(high, generator=generator))

        tall, wide = self.height + 2 * self.down, self.width + 2 * self.across
        which = draw(self.copies) * self.count + indices  # the plain picture or its mirror
        corner = (which * tall + draw(2 * self.down + 1)) * wide + draw(2 * self.across + 1)
        places = corner[:, None] + wide * torch.arange(self.height, device=corner.device)
        cut = self.lines.index_select(0, places.flatten())
        return cut.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def _lines(self, images):
        """A view (positions, W * C): the line of a crop that begins at any pixel of any padded picture or mirror.

        Nothing but the padded copies is stored, and a batch is one look-up of whole lines, which is what makes
        the loader fast.
        """
        edges = [self.across, self.across, self.down, self.down]
        padded = torch.nn.functional.pad(images, edges).permute(0, 2, 3, 1).contiguous()
        copies = torch.stack([padded, padded.flip(2)][: self.copies]).flatten()
        length = self.width * self.channels
        return copies.as_strided(((len(copies) - length) // self.channels + 1, length), (self.channels, 1))
