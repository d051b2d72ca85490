"""Layer, RMS, group and instance norm: every argument, running statistics, precision, special values, derivatives."""

import copy

import pytest
import torch
from support import FLOATS, Family, case, check_derivatives, check_specials, pair, run

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import apply_layout, parity_cases

INSTANCE = {"InstanceNorm1d": (4, 3, 5), "InstanceNorm2d": (4, 3, 5, 6), "InstanceNorm3d": (4, 3, 2, 5, 3)}
TRACKED = {"affine": True, "track_running_stats": True}


class TestNormalization(Family):
    parity_cases = (
        *parity_cases("normalization"),
        case("LayerNorm", (7, 2), 2),
        case("LayerNorm", (259, 33), 33),
        case("LayerNorm", (2, 100_003), 100_003, layouts=("contiguous",)),
        case("GroupNorm", (3, 4, 1, 1), 2, 4),
        case("GroupNorm", (3, 512, 2, 2), 8, 512),
        case("GroupNorm", (2, 130, 5, 5), 13, 130),
        case("GroupNorm", (1, 3, 200, 33), 1, 3),
        case("InstanceNorm2d", (2, 67, 3, 3), 67, affine=True),
    )
    views_cases = (
        case("LayerNorm", (4, 5, 6), (5, 6)),
        case("RMSNorm", (4, 5, 6), 6),
        case("GroupNorm", (4, 6, 5, 4), 3, 6),
        *(
            case(name, shape, 3, **TRACKED, train=train)
            for name, shape in INSTANCE.items()
            for train in (True, False)
        ),
    )
    derivatives_cases = (
        case("LayerNorm", (3, 4), 4),
        case("LayerNorm", (2, 2, 3), (2, 3)),
        case("LayerNorm", (5,), 5),
        case("LayerNorm", (3, 4), 4, elementwise_affine=False),
        case("LayerNorm", (3, 4), 4, bias=False),
        case("RMSNorm", (3, 4), 4),
        case("RMSNorm", (2, 2, 3), (2, 3), elementwise_affine=False),
        case("GroupNorm", (2, 4, 3), 2, 4),
        case("GroupNorm", (2, 4), 2, 4),
        case("GroupNorm", (2, 2, 4, 4), 1, 2, affine=False),
        case("InstanceNorm1d", (2, 2, 3), 2, affine=True),
        case("InstanceNorm2d", (2, 2, 4, 4), 2, **TRACKED),
        case("InstanceNorm2d", (2, 2, 2, 2), 2, **TRACKED, train=False),
    )
    threads_cases = (
        case("LayerNorm", (1000, 300), 300),
        case("LayerNorm", (3, 40_000), 40_000),
        case("LayerNorm", (5, 10_001), 10_001, elementwise_affine=False),
        case("RMSNorm", (3, 40_000), 40_000),
        case("GroupNorm", (9, 36, 31, 33), 6, 36),
        case("GroupNorm", (1, 6, 131, 133), 2, 6),
        case("GroupNorm", (3, 4, 131, 133), 1, 4),
        case("GroupNorm", (500, 60), 5, 60),
        case("InstanceNorm2d", (1, 3, 131, 133), 3, **TRACKED),
    )


# --- running statistics of instance norm -----------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("name", INSTANCE)
def test_statistics_over_many_steps(name, momentum, strict):
    theirs, ours = pair(case(name, INSTANCE[name], 3, momentum=momentum, track_running_stats=True))
    for _ in range(10):
        x = torch.randn(INSTANCE[name]) * 2 + 1
        theirs(x), ours(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_eval_leaves_statistics_alone(strict):
    layer = fastnn.InstanceNorm2d(3, track_running_stats=True).eval()
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_statistics_are_updated_in_place():
    layer = fastnn.InstanceNorm2d(3, track_running_stats=True)
    mean, view, version = layer.running_mean, layer.running_mean[1:], layer.running_mean._version
    layer(torch.randn(2, 3, 4, 4))
    assert layer.running_mean is mean and view.abs().min() > 0 and mean._version > version


@pytest.mark.parametrize(
    "call",
    [
        lambda mean, var: F.instance_norm(torch.randn(2, 3, 1), mean, var),
        lambda mean, var: F.instance_norm(torch.randn(2, 4, 5), mean, var),
        lambda mean, var: F.instance_norm(torch.randn(2, 3, 5), mean, var, weight=torch.ones(4)),
        lambda mean, var: F.instance_norm(torch.randn(2, 3, 5).double(), mean, var, weight=torch.ones(3)),
        lambda mean, var: F.instance_norm(torch.randn(2, 3, 5), mean, var[:2]),
    ],
)
def test_an_error_leaves_statistics_alone(call):
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises((RuntimeError, ValueError)):
        call(mean, var)
    assert torch.equal(mean, torch.zeros(3)) and torch.equal(var, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_small_input_with_float32_statistics(dtype, train, strict):
    theirs, ours = pair(case("InstanceNorm2d", (4, 3, 5, 6), 3, **TRACKED, train=train))
    x = torch.randn(4, 3, 5, 6).to(dtype)
    y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


# --- functional ------------------------------------------------------------------------------------------------------

CALLS = {
    "layer_norm": lambda f, x, w, b: f.layer_norm(x, (6,), w, b, 1e-2),
    "rms_norm": lambda f, x, w, b: f.rms_norm(x, [6], w, 1e-2),
    "rms_norm without eps": lambda f, x, w, b: f.rms_norm(x, [6], w),
    "group_norm": lambda f, x, w, b: f.group_norm(x, 2, w, b, 1e-2),
    "instance_norm": lambda f, x, w, b: f.instance_norm(x, None, None, w, b, eps=1e-2),
    "instance_norm by statistics": lambda f, x, w, b: f.instance_norm(
        x, torch.zeros(6), torch.full((6,), 2.0), w, b, use_input_stats=False
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_functional(name, weight, bias, dtype, strict):
    """Weight without bias, bias without weight; float32 parameters beside a small type, as autocast mixes them."""
    found = []
    for functional in (F, torch.nn.functional):
        torch.manual_seed(0)
        x = torch.randn(4, 6, 6).to(dtype).requires_grad_()
        w = torch.rand(6, requires_grad=True) if weight else None
        b = torch.randn(6, requires_grad=True) if bias else None
        leaves = [leaf for leaf in (x, w, b) if leaf is not None]
        if functional is torch.nn.functional and bias and not weight:
            w = torch.ones(6)  # torch's backward fails without a weight
        y = CALLS[name](functional, x, w, b)
        found.append([y, *torch.autograd.grad(y, leaves, torch.randn(4, 6, 6).to(dtype), allow_unused=True)])
    close = {} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found[0], found[1], **close)


def test_rms_eps_of_the_dtype():
    """Without an eps the unit of the computing type decides how zeros are divided."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.full((2, 8), 1e-4, dtype=dtype)
        torch.testing.assert_close(F.rms_norm(x, (8,)), torch.nn.functional.rms_norm(x, (8,)))


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
@pytest.mark.parametrize(
    "layer",
    [case("LayerNorm", (9, 5), 5), case("GroupNorm", (4, 6, 5), 2, 6), case("GroupNorm", (4, 6, 5, 6), 2, 6)],
    ids=lambda c: c.name,
)
def test_only_the_gradients_asked_for(layer, wanted):
    for layout in ("contiguous", "channels_last") if len(layer.shape) == 4 else ("contiguous",):
        theirs, ours = pair(layer)
        x, found = apply_layout(torch.randn(layer.shape), layout), []
        for module in (theirs, ours):
            module.requires_grad_(False)
            # torch's group norm crashes here with channels_last where x wants no gradient
            leaf = x.clone() if module is ours else x.contiguous().clone()
            target = leaf if wanted == "x" else getattr(module, wanted)
            target.requires_grad_()
            (module(leaf) ** 3).sum().backward()
            found.append(target.grad)
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


# --- precision and special values ------------------------------------------------------------------------------------

WITH_STATISTICS = (
    case("LayerNorm", (6, 700), 700),
    case("LayerNorm", (6, 5000), 5000),
    case("GroupNorm", (3, 6, 17, 19), 2, 6),
    case("InstanceNorm2d", (3, 6, 17, 19), 6),
    case("InstanceNorm1d", (3, 6, 9), 6),
)


@pytest.mark.parametrize(("mean", "spread"), [(1e3, 1.0), (1e4, 0.1), (-1e-3, 1e-4), (0.0, 1e3)])
@pytest.mark.parametrize("layer", WITH_STATISTICS, ids=lambda c: c.name)
def test_precision(layer, mean, spread, capability):
    """A mean much larger than the spread: the variance must not be a difference of large numbers."""
    check_precision(layer, torch.randn(layer.shape) * spread + mean)


@pytest.mark.parametrize("layer", WITH_STATISTICS, ids=lambda c: c.name)
def test_precision_of_an_odd_beginning(layer, capability):
    """The first numbers, from which the kernels guess the mean, lie far from all others."""
    x = torch.randn(layer.shape)
    x.flatten(1)[:, : min(64, x[0].numel() // 8)] += 1e4
    check_precision(layer, x)


def check_precision(layer, x):
    for layout in ("contiguous", "channels_last") if len(layer.shape) == 4 else ("contiguous",):
        x = apply_layout(x, layout)
        theirs, ours = pair(layer)
        expected, got, reference = theirs(x), ours(x), copy.deepcopy(theirs).double()(x.double())
        floor = 4 * torch.finfo(torch.float32).eps * reference.abs().max()
        assert (got - reference).abs().max() <= max(2 * (expected - reference).abs().max(), floor)


@pytest.mark.parametrize("layer", WITH_STATISTICS, ids=lambda c: c.name)
def test_constant_input(layer, capability):
    """Variance 0: the output is the bias, the gradient finite."""
    theirs, ours = pair(layer)
    x = torch.full(layer.shape, 0.1)
    got, expected = run(layer, ours, x), run(layer, theirs, x)
    torch.testing.assert_close(got["output 0"], expected["output 0"], rtol=1e-3, atol=1e-4)
    assert torch.isfinite(got["gradient of x"]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize(
    "layer",
    [
        *WITH_STATISTICS,
        case("RMSNorm", (6, 70), 70),
        case("InstanceNorm2d", (2, 3, 5, 5), 3, **TRACKED, train=False),
    ],
    ids=lambda c: c.name,
)
def test_specials(layer, value, capability):
    """A NaN or an infinity spoils its own statistics; a large number does not overflow them."""
    x = torch.randn(layer.shape)
    x[(1,) * x.dim()] = value
    check_specials(layer, x)


# --- lazies, derivatives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"LazyInstanceNorm{n}d" for n in (1, 2, 3)])
def test_lazy(name):
    layer = getattr(fastnn, name)(affine=True)
    layer(torch.randn(INSTANCE[name.removeprefix("Lazy")]))
    assert type(layer) is getattr(fastnn, name.removeprefix("Lazy")) and layer.num_features == 3


def test_derivatives_of_large_groups():
    """Several parts to a group in both layouts, the kernels' and the second derivatives' rules for weights alike."""
    x = torch.randn(1, 4, 7, 5, dtype=torch.float64)
    check_derivatives(case("GroupNorm", tuple(x.shape), 2, 4), x=x)
    check_derivatives(
        case("GroupNorm", tuple(x.shape), 2, 4), x=x.contiguous(memory_format=torch.channels_last)
    )


def test_dtypes_are_native(strict):
    for dtype in (*FLOATS, "bfloat16", "float16"):
        x = torch.randn(2, 4, 6, dtype=getattr(torch, dtype))
        F.layer_norm(x, (4, 6)), F.rms_norm(x, (6,)), F.group_norm(x, 2), F.instance_norm(x)
