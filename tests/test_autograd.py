"""The autograd nodes of the private ops (csrc/ops/node.h) behave as torch's own do."""

import pytest
import torch
from models import images, twins

import fastnn


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_compiled_autograd():
    """The whole backward as one graph, with the ops inside it."""
    x = images(4)
    _, model = twins(dropout=True)
    model.eval()  # the same mask, none, in both runs
    expected = gradients(model, x)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        found = gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("inplace", [False, True])
def test_leaves_nothing_behind(inplace):
    """A node keeps what its formula reads and no more, and lets go of it after the backward."""
    x = torch.randn(4, 8, requires_grad=True)
    y = fastnn.ReLU(inplace=inplace)(x.clone())
    assert y.grad_fn.name() == "ActivationBackward"
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_overwriting_what_was_saved_is_noticed():
    x = torch.randn(4, 8, requires_grad=True)
    y = fastnn.Sigmoid()(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_deep_chains_end_without_recursion():
    """Releasing a graph of 100,000 nodes must not use the stack for it."""
    x = torch.randn(2, requires_grad=True)
    y = x
    relu = fastnn.ReLU()
    for _ in range(100_000):
        y = relu(y)
    del y


def test_private_ops_refuse_forward_mode():
    x = torch.randn(3, requires_grad=True)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones(3))
        with pytest.raises(RuntimeError, match="forward-mode"):
            torch.ops.fastnn._activation(dual, 0, 0.0, 0.0)


def test_gradients_that_nobody_wants():
    """Frozen parameters and inputs get none; a missing bias takes no other's place."""
    for bias in (True, False):
        layer = fastnn.Linear(5, 3, bias=bias)
        layer.weight.requires_grad_(False)
        x = torch.randn(2, 5, requires_grad=True)
        layer(x).sum().backward()
        assert layer.weight.grad is None
        assert (layer.bias is None) or torch.equal(layer.bias.grad, torch.full((3,), 2.0))
        assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, 5))
