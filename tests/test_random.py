"""Random numbers: mask and slopes are fair, torch's seeds rule them, threads and layouts do not change them."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastnn

N = 200_000


def mask(p=0.5, shape=(N,)):
    return fastnn.Dropout(p)(torch.ones(shape)) != 0


def slopes(lower=1 / 8, upper=1 / 3, dtype=torch.float32):
    return -fastnn.RReLU(lower, upper)(torch.full((N,), -1.0, dtype=dtype))


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9, 0.999])
def test_share_of_dropped(p, capability):
    dropped = (~mask(p)).sum().item()
    assert abs(dropped - N * p) < 6 * math.sqrt(N * p * (1 - p))


def test_elements_are_independent(capability):
    """Neighbours at every distance that a vector, a counter block or a row could have are uncorrelated."""
    bits = mask().double() * 2 - 1
    for lag in (1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 100, 256, 1024, 4096, 65536):
        correlation = (bits[:-lag] * bits[lag:]).sum().item()
        assert abs(correlation) < 6 * math.sqrt(N - lag), f"distance {lag}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("lower", "upper"), [(1 / 8, 1 / 3), (-0.75, 0.5), (0.0, 1e-3), (-2.0, -2.0)])
def test_slopes_are_uniform(lower, upper, dtype, capability):
    """Bounds, mean, variance, a share of each 64th; neighbours are uncorrelated."""
    r = slopes(lower, upper, dtype)
    rounded = torch.tensor([lower, upper], dtype=dtype)
    assert rounded[0] <= r.min() and r.max() <= rounded[1]
    if lower == upper:
        return
    u = (r.double() - lower) / (upper - lower)
    assert abs(u.mean().item() - 1 / 2) < 6 / math.sqrt(12 * N)
    assert abs(u.var(correction=0).item() - 1 / 12) < 6 / math.sqrt(180 * N)
    counts = torch.histc(u, 64, 0, 1)
    assert counts.sum() == N and ((counts - N / 64).abs() < 6 * math.sqrt(N / 64)).all()
    for lag in (1, 2, 3, 4, 8, 16, 32, 64, 1024):
        correlation = ((u[:-lag] - 1 / 2) * (u[lag:] - 1 / 2)).sum().item()
        assert abs(correlation) < 6 / 12 * math.sqrt(N - lag), f"distance {lag}"
    finest = 2.0**-24 if dtype == torch.float32 else 2.0**-31
    assert r.unique().numel() > N * (1 - 2 * N * finest), "fewer different slopes than the dtype allows"


def test_runs_and_blocks():
    """Counts per block of 64 elements follow the binomial: their variance too."""
    counts = mask()[: N // 64 * 64].view(-1, 64).sum(1).double()
    blocks = counts.numel()
    assert abs(counts.mean().item() - 32) < 6 * 4 / math.sqrt(blocks)
    assert abs(counts.var().item() - 16) < 6 * 16 * math.sqrt(2 / blocks)


def test_calls_differ():
    """Two calls, and the same element in many calls, are independent."""
    layer = fastnn.Dropout(0.5)
    calls = torch.stack([layer(torch.ones(64)) != 0 for _ in range(400)]).double()
    assert abs(calls.mean().item() - 0.5) < 6 * 0.5 / math.sqrt(calls.numel())
    assert (abs(calls.mean(0) - 0.5) < 6 * 0.5 / math.sqrt(400)).all()
    agreement = (calls[:-1] == calls[1:]).double().mean().item()
    assert abs(agreement - 0.5) < 6 * 0.5 / math.sqrt(399 * 64)


def test_seeds():
    for name, shape in (
        ("Dropout", (999,)),
        ("Dropout2d", (9, 99, 3, 3)),
        ("AlphaDropout", (999,)),
        ("RReLU", (999,)),
    ):
        layer, x = getattr(fastnn, name)(), -torch.ones(shape)
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append((layer(x), layer(x)))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
        assert not torch.equal(results[0][0], results[2][0]) and not torch.equal(results[0][0], results[0][1])


@pytest.mark.parametrize("draw", [mask, slopes])
def test_generator_state_round_trip(draw):
    state = torch.get_rng_state()
    first = draw()
    torch.set_rng_state(state)
    assert torch.equal(draw(), first)


@pytest.mark.parametrize("draw", [mask, slopes])
def test_fork_rng(draw):
    torch.manual_seed(5)
    with torch.random.fork_rng():
        inside = draw()
    assert torch.equal(draw(), inside)


@pytest.mark.parametrize("name", ["Dropout", "Dropout2d", "RReLU"])
def test_threads_do_not_change_the_numbers(name, threads, capability):
    shape = (40, 701, 5, 5) if name == "Dropout2d" else (300_001,)
    sign, arguments = (-1, ()) if name == "RReLU" else (1, (0.3,))
    results = []
    for n in (1, 2, 4):
        with threads(n):
            torch.manual_seed(11)
            x = torch.full(shape, float(sign), requires_grad=True)
            y = getattr(fastnn, name)(*arguments)(x)
            results.append((y.detach(), *torch.autograd.grad(y.sum(), x)))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


@pytest.mark.parametrize("draw", [mask, slopes])
def test_capabilities_do_not_change_the_numbers(draw):
    results = []
    before = fastnn._C.cpu_capability()
    for name in fastnn._C.supported_cpu_capabilities():
        fastnn._C.set_cpu_capability(name)
        torch.manual_seed(11)
        results.append(draw())
    fastnn._C.set_cpu_capability(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    """The recomputation draws the same numbers."""
    layer = fastnn.Sequential(
        fastnn.Linear(8, 8), fastnn.Dropout(0.5), fastnn.Tanh(), fastnn.RReLU(), fastnn.AlphaDropout(0.5)
    )
    x = torch.randn(16, 8)
    grads = []
    for use in (True, False):
        torch.manual_seed(2)
        leaf = x.clone().requires_grad_()
        y = checkpoint(layer, leaf, use_reentrant=reentrant) if use else layer(leaf)
        torch.randn(3)
        y.square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_double_backward_uses_the_same_mask():
    x = torch.randn(2000, dtype=torch.float64, requires_grad=True)
    y = fastnn.Dropout(0.5)(x)
    dy = torch.ones_like(y, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (ddy,) = torch.autograd.grad(dx, dy, torch.ones_like(dx))
    assert torch.equal(ddy, dx.detach())
