"""CrossEntropyLoss, MSELoss, BCEWithLogitsLoss: arguments, special values, derivatives, threads, errors."""

import pytest
import torch
from conftest import EMULATED
from support import FLOATS, HALVES, check_parity

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import parity_cases

CASES = parity_cases("loss")
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case, capability):
    for dtype in FLOATS:
        check_parity(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_halves(case):
    for dtype in HALVES:
        check_parity(case, dtype)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channels_last"])
def test_layouts(layout):
    for case in CASES:
        if len(case.shape) == 4:
            for dtype in FLOATS:
                check_parity(case, dtype, layout)


def both(x, target, **kw):
    """(value, gradient) of torch and of fastnn."""
    found = []
    for function in (torch.nn.functional.cross_entropy, F.cross_entropy):
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf, target, **kw)
        found.append(
            (y.detach(), torch.autograd.grad(y, leaf, torch.linspace(1, 2, y.numel()).view(y.shape))[0])
        )
    return found


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 5)])
def test_class_weights(reduction, shape, capability):
    x, target = torch.randn(shape), torch.randint(7, (shape[0], *shape[2:]))
    with fastnn.strict():
        theirs, ours = both(x, target, weight=torch.rand(7), reduction=reduction, ignore_index=3)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(8, 37), (1, 37, 8)])
def test_specials(shape, capability):
    x = torch.randn(8, 37)
    x[0, 3], x[1, 5], x[2, ::3], x[3], x[4], x[5] = NAN, INF, -INF, -INF, 1e4, -1e4
    x[6, ::2], x[7, 1], x[7, 2] = 88.9, 3e38, -3e38
    x = x if len(shape) == 2 else x.t()[None].contiguous()
    target = torch.arange(8).view(shape[0], *shape[2:])
    for reduction in ("none", "mean"):
        for ignored in (-100, *range(4)):  # nothing, or a row that has no softmax
            theirs, ours = both(x, target, reduction=reduction, ignore_index=ignored)
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_all_ignored():
    x, target = torch.randn(3, 4), torch.full((3,), -100)
    theirs, ours = both(x, target)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert torch.equal(ours[1], torch.zeros(3, 4))


def test_composed_arguments_are_torchs():
    """Label smoothing and class probabilities."""
    x = torch.randn(4, 5)
    for target, kw in [(torch.randint(5, (4,)), {"label_smoothing": 0.1}), (torch.rand(4, 5), {})]:
        theirs, ours = both(x, target, **kw)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
@pytest.mark.parametrize("shape", [(3, 5), (1, 5, 3)])
def test_class_out_of_bounds(bad, shape):
    x, target = torch.randn(shape), torch.tensor([0, bad, 1]).view(shape[0], *shape[2:])
    with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
        torch.nn.functional.cross_entropy(x, target)
    if EMULATED:  # a CUDA kernel can't raise
        assert F.cross_entropy(x, target).isnan()
        return
    with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
        F.cross_entropy(x, target)


def test_old_arguments():
    x, target = torch.randn(3, 5), torch.tensor([0, 4, 1])
    with pytest.warns(UserWarning, match="deprecated"):
        y = F.cross_entropy(x, target, size_average=False)
    torch.testing.assert_close(y, torch.nn.functional.cross_entropy(x, target, reduction="sum"))


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3), (5,)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_derivatives(shape, reduction):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    classes = shape[min(1, len(shape) - 1)]
    target = torch.randint(classes, shape[:1] + shape[2:] if len(shape) > 1 else ())
    weight = torch.rand(classes, dtype=torch.float64) + 0.1

    def loss(x):
        return F.cross_entropy(x, target, weight, reduction=reduction)

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("shape", [(700, 1000), (40000, 3), (3, 21, 65, 64)])
def test_threads(shape, threads, capability):
    x, target = torch.randn(shape), torch.randint(shape[1], shape[:1] + shape[2:])
    runs = []
    for n in (1, 2, 4):
        with threads(n):
            runs.append(both(x, target)[1])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_keeps_no_log_probabilities():
    x = torch.randn(64, 100, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        F.cross_entropy(x, torch.randint(100, (64,)))
    assert sorted(sizes) == [1, 64, 128, 6400]  # normaliser, targets, statistics, the logits themselves


PAIRED = ("mse_loss", "binary_cross_entropy_with_logits")


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_paired_derivatives(name, reduction):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 5, dtype=torch.float64)

    def loss(x):
        return getattr(F, name)(x, target, reduction=reduction)

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("name", PAIRED)
def test_paired_threads(name, threads, capability):
    x, target = torch.randn(300_001, requires_grad=True), torch.rand(300_001)
    runs = []
    for n in (1, 2, 4):
        with threads(n):
            y = getattr(F, name)(x, target)
            runs.append((y, torch.autograd.grad(y, x)[0]))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("name", PAIRED)
def test_paired_specials(name, capability):
    x = torch.tensor([NAN, INF, -INF, 1e30, -1e30, -0.0, 0.0, 200.0, -200.0] * 4)
    target = torch.rand(36)
    torch.testing.assert_close(
        getattr(F, name)(x, target, reduction="none"),
        getattr(torch.nn.functional, name)(x, target, reduction="none"),
        equal_nan=True,
    )


@pytest.mark.parametrize("name", PAIRED)
def test_gradient_of_the_target_is_torchs(name):
    x, target = torch.randn(4), torch.rand(4, requires_grad=True)
    ours = torch.autograd.grad(getattr(F, name)(x, target), target)
    torch.testing.assert_close(
        ours, torch.autograd.grad(getattr(torch.nn.functional, name)(x, target), target)
    )


def test_weights_are_torchs():
    x, target = torch.randn(4, 3), torch.rand(4, 3)
    for kw in ({"weight": torch.rand(4, 3)}, {"pos_weight": torch.rand(3)}):
        ours = fastnn.BCEWithLogitsLoss(**kw)(x, target)
        torch.testing.assert_close(ours, torch.nn.BCEWithLogitsLoss(**kw)(x, target))
    ours = F.mse_loss(x, target, weight=target)
    torch.testing.assert_close(ours, torch.nn.functional.mse_loss(x, target, weight=target))


def test_shapes_that_differ():
    with pytest.warns(UserWarning, match="different to the input size"):
        assert F.mse_loss(torch.randn(3, 1), torch.randn(3, 4)).shape == ()
    with pytest.raises(ValueError, match="Target size"):
        F.binary_cross_entropy_with_logits(torch.randn(3, 1), torch.randn(3, 4))
