"""Shifted and mirrored pictures."""

import pytest
import torch

from loaders import Split


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (3, 8, 20), (1, 48, 8)], ids=str)
def test_augmentation_is_a_crop_of_the_padded_picture_or_its_mirror(shape, mirror):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (5, *shape), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(5), list("abcde"), "test", mirror)
    (_, height, width), down = shape, 6 if shape[1] == 48 else 4
    padded = torch.nn.functional.pad(images, [4, 4, down, down])
    ways = [(flip, top, left) for flip in range(1 + mirror) for top in range(2 * down + 1) for left in range(9)]
    seen = set()

    def cut(image, flip, top, left):
        image = (image.flip(2) if flip else image)[:, top : top + height, left : left + width]
        return image.numpy().tobytes()

    crops = [{cut(image, *way): way for way in ways} for image in padded]
    for _ in range(400):
        index = torch.randint(5, (7,), generator=generator)
        batch, labels = split.batch(index, generator, augment=True)
        assert torch.equal(labels, index)
        assert torch.equal(batch, (255 * batch).round() / 255)
        batch = (255 * batch).round().to(torch.uint8)
        for image, label in zip(batch, labels.tolist(), strict=True):
            seen.add(crops[label][image.numpy().tobytes()])
    assert len(seen) > 0.9 * len(ways)
