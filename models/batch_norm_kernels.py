"""BatchNorm in training mode, a shortcut and ReLU as kernels of our own: models/fused.py says where they serve.

With a shortcut torch's read or write the pictures 16 times in a step, these twelve times; without, 13 and ten.
Sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch.nn.functional import batch_norm

PROGRAMS = 512  # that fill a GPU
TILE = 4096  # numbers in a program's hands at once
MANY = {"num_warps": 8}  # where a program goes through many tiles


@triton.jit
def _places(part, per, rows, channels, begin, R: tl.constexpr, C: tl.constexpr):
    """Where a tile of R rows and C channels lies, and what of it is there: no row beyond this part's."""
    row, channel = begin + tl.arange(0, R), tl.program_id(1) * C + tl.arange(0, C)
    there = (row < tl.minimum((part + 1) * per, rows))[:, None] & (channel < channels)[None, :]
    return row[:, None] * channels + channel[None, :], there


@triton.jit
def _channels(start, channels, C: tl.constexpr):
    channel = tl.program_id(1) * C + tl.arange(0, C)
    return start + channel, channel < channels


@triton.jit
def _through_relu(gradient, out):
    return tl.where(out <= 0, 0.0, gradient)  # NaN stays


@triton.jit
def _spread(x, found, rows, channels, per, R: tl.constexpr, C: tl.constexpr):
    """Sums over a part of the rows: how far they are from the mean of the first tile, and the square of it."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    places, there = _places(0, rows, rows, channels, 0, R, C)
    count = tl.maximum(tl.sum(there.to(tl.float32), 0), 1.0)
    first = tl.sum(tl.load(x + places, there, 0.0).to(tl.float32), 0) / count
    sums, squares = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
    for begin in range(part * per, (part + 1) * per, R):
        places, there = _places(part, per, rows, channels, begin, R, C)
        value = tl.load(x + places, there, 0.0).to(tl.float32)
        value = tl.where(there, value - first[None, :], 0.0)
        sums, squares = sums + value, squares + value * value
    at, known = _channels(found + part * channels, channels, C)
    tl.store(at, tl.sum(sums, 0), known)
    tl.store(at + parts * channels, tl.sum(squares, 0), known)
    if part == 0:
        tl.store(at + 2 * parts * channels, first, known)


@triton.jit
def _settle(
    found, moments, mean, var, tracked, parts, rows, channels, momentum, eps, R: tl.constexpr, C: tl.constexpr
):
    """Mean and 1 / deviation from those sums; the running ones follow."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    sums, squares = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
    for begin in range(0, parts, R):
        row = begin + tl.arange(0, R)
        places = row[:, None] * channels + channel[None, :]
        there = (row < parts)[:, None] & known[None, :]
        sums += tl.load(found + places, there, 0.0)
        squares += tl.load(found + parts * channels + places, there, 0.0)
    away = tl.sum(sums, 0) / rows
    spread = tl.sum(squares, 0) / rows - away * away
    spread = tl.where(spread <= 0, 0.0, spread)
    centre = away + tl.load(found + 2 * parts * channels + channel, known, 0.0)
    tl.store(moments + channel, centre, known)
    tl.store(moments + channels + channel, 1 / tl.sqrt(spread + eps), known)
    before, wide = tl.load(mean + channel, known), tl.load(var + channel, known)
    tl.store(mean + channel, before + momentum * (centre - before), known)
    tl.store(var + channel, wide + momentum * (spread * (rows / (rows - 1.0)) - wide), known)
    if tl.program_id(1) == 0:
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def _ahead(
    x, add, out, moments, weight, bias, rows, channels, per, ADDS: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    part = tl.program_id(0)
    places, there = _places(part, per, rows, channels, part * per, R, C)
    at, known = _channels(moments, channels, C)
    centre, scale = tl.load(at, known, 0.0), tl.load(at + channels, known, 0.0)
    at, _ = _channels(weight, channels, C)
    scale *= tl.load(at, known, 0.0)
    at, _ = _channels(bias, channels, C)
    value = (tl.load(x + places, there, 0.0).to(tl.float32) - centre[None, :]) * scale[None, :]
    value += tl.load(at, known, 0.0)[None, :]
    if ADDS:
        value += tl.load(add + places, there, 0.0).to(tl.float32)
    tl.store(out + places, tl.where(value <= 0, 0.0, value), there)


@triton.jit
def _slopes(x, out, gradient, found, moments, rows, channels, per, R: tl.constexpr, C: tl.constexpr):
    """Sums over a part of the rows: the gradient for the bias, and that for the weight."""
    part = tl.program_id(0)
    at, known = _channels(moments, channels, C)
    centre, scale = tl.load(at, known, 0.0), tl.load(at + channels, known, 0.0)
    upright, along = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
    for begin in range(part * per, (part + 1) * per, R):
        places, there = _places(part, per, rows, channels, begin, R, C)
        arrives = _through_relu(tl.load(gradient + places, there, 0.0), tl.load(out + places, there, 0.0)).to(
            tl.float32
        )
        value = (tl.load(x + places, there, 0.0).to(tl.float32) - centre[None, :]) * scale[None, :]
        upright, along = upright + arrives, along + arrives * value
    at, known = _channels(found + part * channels, channels, C)
    tl.store(at, tl.sum(upright, 0), known)
    tl.store(at + tl.num_programs(0) * channels, tl.sum(along, 0), known)


@triton.jit
def _back(
    x,
    out,
    gradient,
    for_x,
    for_add,
    sums,
    moments,
    weight,
    rows,
    channels,
    per,
    ADDS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    part = tl.program_id(0)
    places, there = _places(part, per, rows, channels, part * per, R, C)
    at, known = _channels(moments, channels, C)
    centre, scale = tl.load(at, known, 0.0), tl.load(at + channels, known, 0.0)
    at, _ = _channels(weight, channels, C)
    factor = scale * tl.load(at, known, 0.0)
    at, _ = _channels(sums, channels, C)
    upright, along = tl.load(at, known, 0.0) / rows, tl.load(at + channels, known, 0.0) / rows
    arrives = _through_relu(tl.load(gradient + places, there, 0.0), tl.load(out + places, there, 0.0))
    value = (tl.load(x + places, there, 0.0).to(tl.float32) - centre[None, :]) * scale[None, :]
    found = (arrives.to(tl.float32) - upright[None, :] - value * along[None, :]) * factor[None, :]
    tl.store(for_x + places, found, there)
    if ADDS:
        tl.store(for_add + places, arrives, there)


def _tile(channels):
    """Rows and channels of a tile, and how many tiles go side by side."""
    wide = max(16, min(64, triton.next_power_of_2(channels)))
    return {"R": TILE // wide, "C": wide}, triton.cdiv(channels, wide)


class NormReLU(torch.autograd.Function):
    """ReLU(BatchNorm(x) + add), of tensors (N, C, H, W) that are laid out NHWC; `norm` takes its statistics."""

    @staticmethod
    def forward(ctx, x, add, weight, bias, norm):
        channels, rows = x.shape[1], x.numel() // x.shape[1]
        tile, beside = _tile(channels)
        per = triton.cdiv(triton.cdiv(rows, max(1, PROGRAMS // beside)), tile["R"]) * tile["R"]
        parts, moments = triton.cdiv(rows, per), weight.new_empty(2, channels)
        found, out = weight.new_empty(2 * parts + 1, channels), torch.empty_like(x)
        _spread[parts, beside](x, found, rows, channels, per, **tile, **MANY)
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        fine = {"R": 64, "C": 16}
        _settle[1, triton.cdiv(channels, 16)](
            found, moments, *running, parts, rows, channels, norm.momentum, norm.eps, **fine
        )
        each = triton.cdiv(rows, tile["R"])
        given = x if add is None else add
        _ahead[each, beside](
            x, given, out, moments, weight, bias, rows, channels, tile["R"], ADDS=add is not None, **tile
        )
        ctx.save_for_backward(x, out, moments, weight)
        ctx.adds, ctx.eps, ctx.sizes = add is not None, norm.eps, (rows, channels, per, parts)
        return out

    @staticmethod
    def backward(ctx, gradient):
        x, out, moments, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants the gradient's own gradient, which torch knows
            arrives = torch.where(out <= 0, 0, gradient)
            normed = batch_norm(x, None, None, weight, None, True, 0.0, ctx.eps)
            wanted = {name: one for name, one in (("x", x), ("weight", weight)) if one.requires_grad}
            if wanted:
                found = torch.autograd.grad(normed, [*wanted.values()], arrives, create_graph=True)
                wanted = dict(zip(wanted, found, strict=True))
            upright = arrives.float().sum((0, 2, 3))
            return wanted.get("x"), arrives if ctx.adds else None, wanted.get("weight"), upright, None
        rows, channels, per, parts = ctx.sizes
        tile, beside = _tile(channels)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        found, for_x = weight.new_empty(2, parts, channels), torch.empty_like(x)
        for_add = torch.empty_like(x) if ctx.adds else None
        _slopes[parts, beside](x, out, gradient, found, moments, rows, channels, per, **tile, **MANY)
        sums, each = found.sum(1), triton.cdiv(rows, tile["R"])
        _back[each, beside](
            x,
            out,
            gradient,
            for_x,
            for_x if for_add is None else for_add,
            sums,
            moments,
            weight,
            rows,
            channels,
            tile["R"],
            ADDS=ctx.adds,
            **tile,
        )
        return for_x, for_add, sums[1], sums[0], None
