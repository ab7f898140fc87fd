"""Steps as CUDA graphs: launched at once, where kernel by kernel the device would wait for Python.

A graph replays the same kernels on the same memory. So it serves steps that are alike: what differs between them
(learning rate, an ε that rises) must lie in tensors. Its key says what steps have in common; where that changes
with every step, they run as they are written.
"""

import logging

import torch

from processes import data_parallel

log = logging.getLogger("study")

WARM_UP = 3  # steps in which libraries choose their kernels and buffers come to be


class Graphed:
    """Calls `function(*tensors)` as it is written until `WARM_UP` calls in a row had equal keys, then replays it.

    Functions of equal keys do the same. They return tensors, change in place whatever else they change, and never
    wait for the device; their randomness comes from `generator` or the global one. Where one cannot be captured,
    the log says why, and all go on as they are written. What a call returns is overwritten by the next.
    """

    def __init__(self, generator, name):
        self.generator, self.name = generator, name
        # Capturing what processes tell one another asks for more than a step has: see docs/scaling.md.
        self.possible = generator.device.type == "cuda" and data_parallel.world() == 1
        self.forget()

    def give_up(self, why):
        self.possible = False
        log.warning("%s: no CUDA graph, steps go kernel by kernel, slower for small networks: %s", self.name, why)

    def forget(self):
        """Capture anew: the function's own tensors have been exchanged for others."""
        self.key, self.alike, self.replay = None, 0, None

    def __call__(self, key, function, *tensors):
        if not self.possible:
            return function(*tensors)
        key = (key, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key != self.key:
            self.forget()
            self.key = key
        self.alike += 1
        if self.alike <= WARM_UP:
            return _beside(function, tensors)
        if self.replay is None:
            self._capture(function, tensors)
            if not self.possible:
                return function(*tensors)
        for place, tensor in zip(self.inputs, tensors, strict=True):
            place.copy_(tensor)
        self.replay()
        return self.outputs

    def _capture(self, function, tensors):
        before = self.generator.get_state()
        self.inputs = [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]
        try:
            if self.generator.device.type != "cuda":  # which torch 2.11 would not survive
                raise RuntimeError(f"this is {self.generator.device.type}, not CUDA")
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            # Other threads (TensorBoard's writer) may go about their business meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs)
        except Exception as error:  # whatever a model, a defence or an attack of the user's own does
            self.give_up(f"{type(error).__name__}: {error}".splitlines()[0])
            _release(self.generator, before)
            return
        self.replay = graph.replay
        log.info("%s: from here on each step is one CUDA graph", self.name)


def _beside(function, tensors):
    """On a stream of its own, as capturing will be: autograd remembers streams."""
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        outputs = function(*tensors)
    current.wait_stream(stream)
    for tensor in outputs:
        tensor.record_stream(current)
    return outputs


def _release(generator, state):
    """Out of a failed capture, in which torch 2.11 leaves the generators that took part."""
    device = generator.device
    if device.type != "cuda":
        return
    for one in (generator, torch.cuda.default_generators[device.index or 0]):
        one.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    generator.set_state(state)
