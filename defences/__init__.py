"""What a training step minimises.

    defence.loss(model, images, labels, progress=0.3, generator=g, smoothing=0.1, memory={}) -> (loss, logits)

`progress` is the share of the training that is done. `memory` is a dict for what a defence keeps from step to
step, which checkpoints hold: tensors, to be changed in place. The loss is a scalar, the logits (N, K) are those
of the images that the model was trained on, for the curve of training accuracy. A defence may have

    replays                     the number of steps in a row that show the same batch
    single_step_eps(progress)   the ε (L∞) that it has reached, where a single step makes its examples, or None,
                                for training/catastrophic_overfitting.py to watch over it
    whole_batch                 True where a loss of parts of a batch, weighed and added, is not that of the batch
    at(progress)                the defence that it is at that moment: steps of equal ones can be one CUDA graph,
                                also where they differ in ε and step size alone: see with_sizes

Where several processes share a batch (processes/data_parallel.py), each calls `loss` with its part of it. What is
drawn for each picture goes through data_parallel.drawn, as if for the whole batch; else all draw the same.
"""

from defences.adversarial import Adversarial, Standard, TwoHalves, Wrapped, innermost, moment, with_sizes
from defences.free import Free
from defences.single_step import NFGSM, Guided
from defences.source_penalties import L2SP, FeatureDistillation, Penalty
from defences.trades_mart import MART, TRADES
from defences.weight_perturbation import AWP
