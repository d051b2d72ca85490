"""Random numbers: the mask is fair, torch's seeds rule it, threads and layouts do not change it."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastnn

N = 200_000


def mask(p=0.5, shape=(N,)):
    return fastnn.Dropout(p)(torch.ones(shape)) != 0


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


def test_generator_state_round_trip():
    state = torch.get_rng_state()
    first = mask()
    torch.set_rng_state(state)
    assert torch.equal(mask(), first)


def test_fork_rng():
    torch.manual_seed(5)
    with torch.random.fork_rng():
        inside = mask()
    assert torch.equal(mask(), inside)


@pytest.mark.parametrize("name", ["Dropout", "Dropout2d"])
def test_threads_do_not_change_the_mask(name, threads, capability):
    shape = (300_001,) if name == "Dropout" else (40, 701, 5, 5)
    results = []
    for n in (1, 2, 4):
        with threads(n):
            torch.manual_seed(11)
            x = torch.ones(shape, requires_grad=True)
            y = getattr(fastnn, name)(0.3)(x)
            results.append((y.detach(), *torch.autograd.grad(y.sum(), x)))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


def test_capabilities_do_not_change_the_mask():
    results = []
    before = fastnn._C.cpu_capability()
    for name in fastnn._C.supported_cpu_capabilities():
        fastnn._C.set_cpu_capability(name)
        torch.manual_seed(11)
        results.append(mask())
    fastnn._C.set_cpu_capability(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    """The recomputation draws the same mask."""
    layer = fastnn.Sequential(
        fastnn.Linear(8, 8), fastnn.Dropout(0.5), fastnn.Tanh(), fastnn.AlphaDropout(0.5)
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
