"""CrossEntropyLoss, NLLLoss, MSELoss, BCEWithLogitsLoss: arguments, special values, derivatives, threads, errors."""

import pytest
import torch
from conftest import EMULATED
from support import FLOATS, HALVES, check_parity

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import apply_layout, parity_cases
from fastnn.testing.compare import FORWARD_FACTOR, GRADIENT_FACTOR

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
        if (
            len(case.shape) == 4 and case.layer != "NLLLoss"
        ):  # torch's gradient of that is of contiguous ones only
            for dtype in FLOATS:
                check_parity(case, dtype, layout)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channels_last"])
def test_layouts_of_log_probabilities(layout):
    x, target = torch.randn(2, 3, 5, 7), torch.randint(3, (2, 5, 7))
    grads = []
    for t in (x, apply_layout(x, layout)):
        t.requires_grad_()
        grads.append(torch.autograd.grad(F.nll_loss(t, target), t)[0])
    assert torch.equal(*grads)


def both(x, target, name="cross_entropy", **kw):
    """(value, gradient) of torch and of fastnn."""
    found = []
    for function in (getattr(torch.nn.functional, name), getattr(F, name)):
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf, target, **kw)
        found.append(
            (y.detach(), torch.autograd.grad(y, leaf, torch.linspace(1, 2, y.numel()).view(y.shape))[0])
        )
    return found


CLASS_LOSSES = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.3}),
    ("cross_entropy", {"label_smoothing": 1.0}),
    ("nll_loss", {}),
]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 5), (7,), (2, 7, 3, 9)])
@pytest.mark.parametrize(("name", "kw"), CLASS_LOSSES)
def test_class_weights(reduction, shape, name, kw, capability):
    x, target = torch.randn(shape), torch.randint(7, shape[:1] + shape[2:] if len(shape) > 1 else ())
    with fastnn.strict():
        theirs, ours = both(x, target, name, weight=torch.rand(7), reduction=reduction, ignore_index=3, **kw)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 5), (7,), (2, 7, 3, 9)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_of_probable_classes(reduction, shape, smoothing, capability):
    x, target = torch.randn(shape), torch.rand(shape)
    with fastnn.strict():
        theirs, ours = both(x, target, weight=torch.rand(7), reduction=reduction, label_smoothing=smoothing)
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
            for name, kw in CLASS_LOSSES:
                theirs, ours = both(x, target, name, reduction=reduction, ignore_index=ignored, **kw)
                if name == "nll_loss":  # its mean cancels: torch's own rounding would be the larger part
                    theirs = both(x.double(), target, name, reduction=reduction, ignore_index=ignored)[0]
                    theirs = tuple(t.float() for t in theirs)
                torch.testing.assert_close(ours, theirs, equal_nan=True)
        theirs, ours = both(x, torch.rand_like(x), reduction=reduction)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_all_ignored():
    x, target = torch.randn(3, 4), torch.full((3,), -100)
    theirs, ours = both(x, target)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert torch.equal(ours[1], torch.zeros(3, 4))


def test_what_is_left_to_torch():
    """A gradient of the targets or the weights, and what torch refuses."""
    x, p = torch.randn(4, 5), torch.rand(4, 5, requires_grad=True)
    ours = torch.autograd.grad(F.cross_entropy(x, p), p)
    torch.testing.assert_close(ours, torch.autograd.grad(torch.nn.functional.cross_entropy(x, p), p))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        F.cross_entropy(x, torch.arange(4), label_smoothing=1.5)
    with pytest.raises(RuntimeError, match="ignore_index"):
        F.cross_entropy(x, p.detach(), ignore_index=2)
    with pytest.raises(ValueError, match="batch_size"):
        F.nll_loss(x, torch.arange(3))


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
@pytest.mark.parametrize("shape", [(3, 5), (1, 5, 3)])
def test_class_out_of_bounds(bad, shape):
    x, target = torch.randn(shape), torch.tensor([0, bad, 1]).view(shape[0], *shape[2:])
    for name, kw in CLASS_LOSSES:
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
            getattr(torch.nn.functional, name)(x, target, **kw)
        if EMULATED and (name, kw) == CLASS_LOSSES[0]:  # a CUDA kernel can't raise
            assert getattr(F, name)(x, target, **kw).isnan()
            continue
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
            getattr(F, name)(x, target, **kw)


def test_old_arguments():
    x, target = torch.randn(3, 5), torch.tensor([0, 4, 1])
    with pytest.warns(UserWarning, match="deprecated"):
        y = F.cross_entropy(x, target, size_average=False)
    torch.testing.assert_close(y, torch.nn.functional.cross_entropy(x, target, reduction="sum"))


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3), (5,)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(("name", "kw"), [*CLASS_LOSSES, ("probable", {"label_smoothing": 0.2})])
def test_derivatives(shape, reduction, name, kw):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    classes = shape[min(1, len(shape) - 1)]
    target = torch.randint(classes, shape[:1] + shape[2:] if len(shape) > 1 else ())
    weight = torch.rand(classes, dtype=torch.float64) + 0.1

    if name == "probable":
        name, target = "cross_entropy", torch.rand(shape, dtype=torch.float64)

    def loss(x):
        return getattr(F, name)(x, target, weight, reduction=reduction, **kw)

    with fastnn.strict():
        assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("shape", [(700, 1000), (40000, 3), (3, 21, 65, 64)])
def test_threads(shape, threads, capability):
    x, target = torch.randn(shape), torch.randint(shape[1], shape[:1] + shape[2:])
    for name, kw in CLASS_LOSSES:
        check_same_bits(threads, lambda name=name, kw=kw: both(x, target, name, **kw)[1])
    p = torch.rand(shape)
    check_same_bits(threads, lambda: both(x, p)[1])


def check_same_bits(threads, call):
    runs = []
    for n in (1, 2, 4):
        with threads(n):
            runs.append(call())
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_keeps_no_log_probabilities():
    x = torch.randn(64, 100, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        F.cross_entropy(x, torch.randint(100, (64,)))
    assert sorted(sizes) == [1, 64, 128, 6400]  # normaliser, targets, statistics, the logits themselves


PAIRED = ("mse_loss", "binary_cross_entropy_with_logits")


def arguments_of(name, shape, dtype=torch.float32):
    """No weights, and each way in which weights fit a shape."""
    whole = torch.rand(shape, dtype=dtype)
    if name == "mse_loss":
        return [{}, {"weight": whole}]
    parts = [
        (1,) * len(shape), shape[-1:], (*shape[:1], *[1] * (len(shape) - 1)), (*shape[:-1], 1), shape
    ]  # fmt: skip
    if len(shape) > 1:  # channels, and all but the middle
        parts += [(shape[1], *[1] * (len(shape) - 2)), (shape[0], *[1] * (len(shape) - 2), shape[-1])]
    found = [{}]
    for part in parts:
        weights = {key: torch.rand(part, dtype=dtype) for key in ("weight", "pos_weight")}
        found += [
            weights,
            {"weight": weights["weight"], "pos_weight": whole},
            {"pos_weight": weights["pos_weight"]},
        ]
    return found


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("shape", [(7,), (5, 3), (33, 70), (2, 3, 5, 67), (3, 300)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_weights(name, shape, reduction, capability):
    x, target = torch.randn(shape), torch.rand(shape)
    for kw in arguments_of(name, shape):
        for layout in ("contiguous", "channels_last")[: 1 + (len(shape) == 4)]:
            with fastnn.strict():
                inputs = (apply_layout(x, layout), apply_layout(target, layout))
                theirs, ours = both(*inputs, name, reduction=reduction, **kw)
            torch.testing.assert_close(ours, theirs)
            assert ours[0].stride() == theirs[0].stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAIRED)
def test_weights_of_other_types(name, dtype):
    x, target = torch.randn(20, 70, dtype=dtype), torch.rand(20, 70).to(dtype)
    for kw in arguments_of(name, x.shape, dtype):
        with fastnn.strict():
            theirs, ours = both(x, target, name, reduction="none", **kw)
        exact = both(
            x.double(), target.double(), name, reduction="none", **{k: w.double() for k, w in kw.items()}
        )[0]
        for a, b, e, factor in zip(ours, theirs, exact, (FORWARD_FACTOR, GRADIENT_FACTOR), strict=True):
            limit = max(factor * (b - e).abs().max(), 8 * torch.finfo(torch.float64).eps * e.abs().max())
            assert (a - e).abs().max() <= limit


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_paired_derivatives(name, reduction):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 5, dtype=torch.float64)

    for kw in arguments_of(name, x.shape, torch.float64):

        def loss(x, kw=kw):
            return getattr(F, name)(x, target, reduction=reduction, **kw)

        with fastnn.strict():
            assert torch.autograd.gradcheck(loss, x)
        assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("name", PAIRED)
def test_paired_threads(name, threads, capability):
    x, target = torch.randn(301, 997), torch.rand(301, 997)
    for kw in arguments_of(name, x.shape):
        check_same_bits(threads, lambda kw=kw: both(x, target, name, **kw)[1])


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


def test_gradient_of_weights_is_torchs():
    x, target, weight = torch.randn(4, 3), torch.rand(4, 3), torch.rand(4, 3, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        grads = [
            torch.autograd.grad(library.mse_loss(x, target, weight=weight, reduction=reduction).sum(), weight)
            for library in (F, torch.nn.functional)
        ]
        torch.testing.assert_close(*grads)
    for library in (F, torch.nn.functional):
        with pytest.raises(RuntimeError, match="not differentiable"):
            library.binary_cross_entropy_with_logits(x, target, weight)


def test_weights_that_do_not_fit():
    x = torch.rand(4, 3)
    with pytest.raises(RuntimeError, match="match"):
        F.binary_cross_entropy_with_logits(x, x, torch.rand(4))
    with pytest.raises(ValueError, match="same size"):
        F.mse_loss(x, x, weight=torch.rand(3))


def test_shapes_that_differ():
    with pytest.warns(UserWarning, match="different to the input size"):
        assert F.mse_loss(torch.randn(3, 1), torch.randn(3, 4)).shape == ()
    with pytest.raises(ValueError, match="Target size"):
        F.binary_cross_entropy_with_logits(torch.randn(3, 1), torch.randn(3, 4))
