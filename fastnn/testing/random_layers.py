"""What random layers promise, checked on one drawn output: dropouts and RReLU.

The mask that fastnn draws differs from torch's, so values cannot be compared. Each function returns sentences that
say what is broken; an empty list is a pass.
"""

from __future__ import annotations

import math

import torch

_SIGMAS = 6.0  # a fair draw leaves this range once in 5e8 times
_ALPHA_PRIME = -1.7580993408473766  # the limit of SELU at minus infinity


def faults(
    module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor | None
) -> list[str]:
    """x: input; y: output; dy: gradient of y; dx: gradient of x, all of the same shape."""
    if y.shape != x.shape or y.dtype != x.dtype:
        return [f"output is {y.dtype} {tuple(y.shape)}, input {x.dtype} {tuple(x.shape)}"]
    if x.numel() == 0:
        return []
    if isinstance(module, torch.nn.RReLU):
        return _rrelu(module, x, y, dy, dx)
    if not hasattr(module, "p"):
        return _composed(module, x)
    return _dropout(module, x, y, dy, dx)


def _composed(module: torch.nn.Module, x: torch.Tensor) -> list[str]:
    """A layer with dropout somewhere inside: finite, ruled by the seed, in whose mean nothing is dropped."""
    with torch.no_grad(), torch.random.fork_rng():
        draws = []
        for seed in (0, 0, *range(1, 16)):
            torch.manual_seed(seed)
            draws.append(module(x))
        found = [] if torch.equal(draws[0], draws[1]) else ["the same seed gives another output"]
        found += ["the output doesn't depend on the seed"] if torch.equal(draws[1], draws[2]) else []
        still = module.eval()(x)
        module.train()
    mean = torch.stack(draws[1:]).mean(0)
    if not (mean - still).abs().mean() < 0.5 * (draws[0] - still).abs().mean():
        found.append("the mean of the output isn't that without dropout")
    return found


def _close(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Equal up to two roundings of the dtype, element by element."""
    unit = torch.finfo(a.dtype).eps
    return (a.double() - b.double()).abs() <= 2 * unit * (b.double().abs() + unit)


def _fraction_fault(kept: torch.Tensor, p: float) -> list[str]:
    """kept: which independent units survived, each with probability 1 - p."""
    n = kept.numel()
    expected, spread = n * (1 - p), math.sqrt(n * p * (1 - p))
    found = int(kept.sum())
    return (
        [f"{found} of {n} kept, expected {expected:.0f}"]
        if abs(found - expected) > _SIGMAS * spread + 1e-9
        else []
    )


def _dropout(
    module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor | None
) -> list[str]:
    p = float(module.p)  # type: ignore[arg-type]
    if isinstance(module, torch.nn.AlphaDropout | torch.nn.FeatureAlphaDropout):
        # y = a * (x where kept, alpha' elsewhere) + b, with mean 0 and variance 1 kept
        a = 0.0 if p == 1 else 1.0 / math.sqrt((_ALPHA_PRIME**2 * p + 1) * (1 - p))
        b = -a * _ALPHA_PRIME * p
        on, off = a * x.double() + b, torch.full_like(x, a * _ALPHA_PRIME + b, dtype=torch.float64)
    else:
        a = 0.0 if p == 1 else 1.0 / (1 - p)
        on, off = a * x.double(), torch.zeros_like(x, dtype=torch.float64)
    is_on, is_off = _near(y, on), _near(y, off)
    found = [] if bool((is_on | is_off).all()) else ["values that are neither kept nor dropped"]
    if dx is not None:
        passed = is_on & (p != 1)
        expected = torch.where(passed, a * dy.double(), torch.zeros_like(dy, dtype=torch.float64))
        ambiguous = is_on & is_off
        if not bool((_near(dx, expected) | ambiguous).all()):
            found.append("gradient does not follow the mask")
    kept = is_on & ~is_off
    if _per_channel(module, x):
        kept = kept.flatten(_channel_dims(module, x)).any(-1)
        whole = (is_on | ~kept.view(*kept.shape, *[1] * (x.dim() - kept.dim()))).all()
        found += [] if bool(whole) else ["a channel is dropped in part"]
    return found + (_fraction_fault(kept, p) if p not in (0.0, 1.0) else [])


def _near(values: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Equal up to a few roundings of the largest magnitude that went into the sum."""
    unit = torch.finfo(values.dtype).eps
    return (values.double() - expected).abs() <= 4 * unit * (expected.abs() + 1)


def _channel_dims(module: torch.nn.Module, x: torch.Tensor) -> int:
    """How many leading dimensions number the channels: 2 in a batch, 1 in an unbatched input.

    torch takes a 3-D input of Dropout2d as N x C x L, so that class has no unbatched form here.
    """
    unbatched = (isinstance(module, torch.nn.Dropout1d) and x.dim() == 2) or (
        isinstance(module, torch.nn.Dropout3d) and x.dim() == 4
    )
    return 1 if unbatched else 2


def _per_channel(module: torch.nn.Module, x: torch.Tensor) -> bool:
    kinds = (torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d, torch.nn.FeatureAlphaDropout)
    return isinstance(module, kinds) and x.dim() > _channel_dims(module, x)


def _rrelu(
    module: torch.nn.RReLU, x: torch.Tensor, y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor | None
) -> list[str]:
    found = []
    positive, negative = x > 0, x < 0  # at 0 a slope is drawn too, but doesn't show in y
    if not torch.equal(y[x >= 0], x[x >= 0]):
        found.append("values that are not negative changed")
    slope = (y.double() / x.double())[negative]
    unit = 4 * torch.finfo(y.dtype).eps
    if slope.numel() and (
        float(slope.min()) < module.lower - unit or float(slope.max()) > module.upper + unit
    ):
        found.append(f"slopes from {float(slope.min()):.4g} to {float(slope.max()):.4g}")
    spread = (module.upper - module.lower) / math.sqrt(12 * max(1, slope.numel()))
    if (
        slope.numel()
        and abs(float(slope.mean()) - (module.lower + module.upper) / 2) > _SIGMAS * spread + unit
    ):
        found.append(f"mean slope {float(slope.mean()):.4g}")
    if dx is not None:
        factor = torch.where(positive, torch.ones_like(y, dtype=torch.float64), y.double() / x.double())
        if not bool((_near(dx, factor * dy.double()) | (x == 0)).all()):
            found.append("gradient does not use the drawn slopes")
    return found
