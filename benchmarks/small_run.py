"""A run that lasts some seconds: what benchmarks.devices starts under torchrun, and kills."""

import sys
from pathlib import Path

import models
import utils
from attacks import PGD
from defences import Adversarial
from trainer import Recipe, train


def main():
    session = utils.start("small run", preset="smoke", device="cpu")
    data = utils.load_data("shapes10", session)
    recipe = {"precision": "float32", "validation_images": 16, "validation_attack": PGD(steps=1), "batch_size": 64}
    recipe |= {"epochs": 16, "defence": Adversarial(PGD(steps=3))}
    train(models.build("shallow_cnn", 10), data, Recipe(**recipe), Path(sys.argv[1]), progress=False)


if __name__ == "__main__":
    main()
