"""SGD with Nesterov's momentum, by the kernel of torch.optim.SGD(fused=True): the same weights, bit by bit.

torch.optim imports a compiler at its first step, which nothing here uses: 1.5 s in every process that trains.
"""

import torch


class SGD:
    """`groups` are dictionaries with "params" and, from the first step on, "lr": a float, or on CUDA a tensor.

    torch.amp.GradScaler takes it for one of torch's own.
    """

    _step_supports_amp_scaling = True  # the scaler leaves to the kernel what would wait for the device

    def __init__(self, groups, *, momentum, weight_decay):
        self.param_groups, self.momentum, self.weight_decay = groups, momentum, weight_decay
        weights = self._weights() if momentum else []
        self.state = {weight: {"momentum_buffer": torch.zeros_like(weight)} for weight in weights}

    def _weights(self):
        return [weight for group in self.param_groups for weight in group["params"]]

    def zero_grad(self):
        for weight in self._weights():
            weight.grad = None

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.dtype, []).append(weight)
            for weights in alike.values():
                torch._fused_sgd_(
                    weights,
                    [weight.grad for weight in weights],
                    [self.state[weight]["momentum_buffer"] for weight in weights] if self.momentum else [],
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    lr=group["lr"],
                    dampening=0.0,
                    nesterov=self.momentum > 0,
                    maximize=False,
                    is_first_step=False,  # momentum begins at zero
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                )

    def state_dict(self):
        """In the form of torch.optim, which checkpoints have had from the beginning."""
        return {
            "state": {place: self.state[weight] for place, weight in enumerate(self._weights()) if self.momentum}
        }

    def load_state_dict(self, saved):
        for place, weight in enumerate(self._weights() if self.momentum else []):
            kept, momentum = saved["state"].get(place), self.state[weight]["momentum_buffer"]
            if kept is None:  # torch.optim has none before the first step
                momentum.zero_()
            else:
                momentum.copy_(kept["momentum_buffer"])
