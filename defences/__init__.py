"""What a training step minimises.

    defence.loss(model, images, labels, progress=0.3, generator=g, smoothing=0.1) -> (loss, logits)

`progress` is the share of the training that is done. The loss is a scalar, the logits (N, K) are those of
the images that the model was trained on, for the curve of training accuracy.
"""

from defences.adversarial import Adversarial, Standard
from defences.penalties import L2SP, FeatureDistillation, Penalty
from defences.single_step import NFGSM, Guided

__all__ = ["L2SP", "NFGSM", "Adversarial", "FeatureDistillation", "Guided", "Penalty", "Standard"]
