"""Pooling of every kind: arguments, layouts, dtypes, indices, NaN and -inf, derivatives."""

import dataclasses

import pytest
import torch
from support import Family, assert_same, case, check_derivatives, check_raises, run

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import Case, apply_layout, layouts_of, parity_cases

INF, NAN = float("inf"), float("nan")

MAX = [
    case("MaxPool2d", (2, 3, 8, 9), 2),
    case("MaxPool2d", (2, 3, 9, 8), 3, stride=2, padding=1),
    case("MaxPool2d", (2, 3, 11, 9), (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 3)),
    case("MaxPool2d", (2, 3, 10, 7), 3, stride=2, ceil_mode=True),
    case("MaxPool2d", (2, 3, 10, 7), 3, stride=2, padding=1, ceil_mode=True, return_indices=True),
    case("MaxPool2d", (2, 3, 10, 7), 3, stride=1, padding=1, dilation=1, return_indices=True),
    case("MaxPool2d", (3, 10, 7), 3, stride=3, return_indices=True),
    case("MaxPool2d", (2, 3, 7, 7), 2, stride=3),
    case("MaxPool2d", (2, 3, 7, 7), 7),
    case("MaxPool2d", (2, 3, 20, 21), 17, stride=2, padding=8),
    case("MaxPool2d", (0, 3, 8, 9), 2),
    case("MaxPool2d", (1, 1, 1, 1), 1),
    case("MaxPool2d", (2, 37, 13, 35), 2),
    case("MaxPool2d", (1, 5, 31, 67), 3, stride=2, padding=1),
    case("MaxPool1d", (2, 3, 17), 2),
    case("MaxPool1d", (2, 3, 17), 3, stride=2, padding=1, dilation=2, ceil_mode=True, return_indices=True),
    case("MaxPool1d", (3, 17), 4, stride=1),
    case("MaxPool1d", (2, 3, 17), 4, ceil_mode=True),
    case("MaxPool1d", (0, 3, 17), 4),
    case("MaxPool3d", (2, 3, 6, 7, 8), 2),
    case("MaxPool3d", (2, 3, 6, 7, 8), (3, 2, 1), stride=(2, 1, 2), padding=(1, 1, 0), return_indices=True),
    case("MaxPool3d", (2, 3, 6, 7, 8), 2, stride=2, dilation=(2, 1, 2), ceil_mode=True),
    case("MaxPool3d", (3, 6, 7, 8), 3, stride=2, padding=1),
    case("MaxPool3d", (0, 3, 6, 7, 8), 2),
]
AVERAGE = [
    case("AvgPool2d", (2, 3, 8, 9), 2),
    case("AvgPool2d", (2, 3, 9, 8), 3, stride=2, padding=1),
    case("AvgPool2d", (2, 3, 9, 8), 3, stride=2, padding=1, count_include_pad=False),
    case("AvgPool2d", (2, 3, 10, 7), 3, stride=2, padding=1, ceil_mode=True),
    case("AvgPool2d", (2, 3, 10, 7), 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    case("AvgPool2d", (2, 3, 10, 7), (3, 2), stride=(1, 3), padding=(0, 1), divisor_override=5),
    case("AvgPool2d", (2, 3, 10, 7), 2, ceil_mode=True, divisor_override=-3),
    case("AvgPool2d", (3, 10, 7), 3, stride=1),
    case("AvgPool2d", (0, 3, 10, 7), 3),
    case("AvgPool2d", (2, 3, 7, 7), 7),
    case("AvgPool2d", (2, 37, 13, 35), 2),
    case("AvgPool1d", (2, 3, 17), 2),
    case("AvgPool1d", (2, 3, 17), 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    case("AvgPool1d", (3, 17), 4, stride=1, padding=2),
    case("AvgPool3d", (2, 3, 6, 7, 8), 2),
    case("AvgPool3d", (2, 3, 6, 7, 8), (3, 2, 1), stride=(2, 1, 2), padding=(1, 1, 0), ceil_mode=True),
    case("AvgPool3d", (2, 3, 6, 7, 8), 3, stride=2, padding=1, count_include_pad=False, divisor_override=4),
    case("AvgPool3d", (3, 6, 7, 8), 3, stride=2, padding=1, count_include_pad=False),
    case("AvgPool3d", (0, 3, 6, 7, 8), 3),
]
ADAPTIVE = [
    case("AdaptiveAvgPool2d", (2, 3, 9, 8), 1),
    case("AdaptiveAvgPool2d", (2, 3, 9, 8), (4, 3)),
    case("AdaptiveAvgPool2d", (2, 3, 9, 8), (None, 5)),
    case("AdaptiveAvgPool2d", (2, 3, 4, 5), (7, 9)),
    case("AdaptiveAvgPool2d", (3, 9, 8), 2),
    case("AdaptiveAvgPool2d", (0, 3, 9, 8), 2),
    case("AdaptiveAvgPool2d", (2, 70, 7, 7), 1),
    case("AdaptiveAvgPool1d", (2, 3, 17), 5),
    case("AdaptiveAvgPool1d", (3, 17), 1),
    case("AdaptiveAvgPool3d", (2, 3, 6, 7, 8), (2, None, 3)),
    case("AdaptiveAvgPool3d", (2, 3, 6, 7, 8), 1),
    case("AdaptiveAvgPool3d", (3, 6, 7, 8), 2),
    case("AdaptiveMaxPool2d", (2, 3, 9, 8), 1),
    case("AdaptiveMaxPool2d", (2, 3, 9, 8), (4, 3), return_indices=True),
    case("AdaptiveMaxPool2d", (2, 3, 9, 8), (None, 5)),
    case("AdaptiveMaxPool2d", (3, 4, 5), (7, 9)),
    case("AdaptiveMaxPool2d", (0, 3, 9, 8), 2),
    case("AdaptiveMaxPool1d", (2, 3, 17), 5, return_indices=True),
    case("AdaptiveMaxPool1d", (3, 17), 1),
    case("AdaptiveMaxPool3d", (2, 3, 6, 7, 8), (2, None, 3), return_indices=True),
    case("AdaptiveMaxPool3d", (3, 6, 7, 8), 2),
]


class TestPooling(Family):
    parity_cases = (
        *parity_cases("pooling"),
        *(dataclasses.replace(c, exact=True) for c in MAX),
        *AVERAGE,
        *ADAPTIVE,
    )
    views_cases = (
        c
        for c in MAX[1:6] + MAX[14:17:2] + MAX[19:22] + AVERAGE[1:5] + AVERAGE[11:17:2] + ADAPTIVE
        if c.shape[0]
    )
    derivatives_cases = (
        case("MaxPool2d", (1, 2, 5, 4), 3, stride=2, padding=1),
        case("MaxPool2d", (2, 5, 4), 2, dilation=2, return_indices=True),
        case("MaxPool1d", (2, 2, 7), 3, stride=2, ceil_mode=True),
        case("MaxPool3d", (1, 1, 4, 3, 4), 2, stride=1),
        case("AvgPool2d", (1, 2, 5, 4), 3, stride=2, padding=1, count_include_pad=False),
        case("AvgPool1d", (2, 2, 7), 3, stride=2, ceil_mode=True),
        case("AvgPool3d", (1, 1, 4, 3, 4), 2, divisor_override=3),
        case("AdaptiveAvgPool1d", (1, 2, 7), 3),
        case("AdaptiveAvgPool2d", (1, 2, 5, 4), (3, 2)),
        case("AdaptiveAvgPool3d", (1, 1, 3, 4, 3), 2),
        case("AdaptiveMaxPool1d", (1, 2, 7), 3),
        case("AdaptiveMaxPool2d", (1, 2, 5, 4), (3, 2)),
        case("AdaptiveMaxPool3d", (1, 1, 3, 4, 3), 2),
    )
    threads_cases = (
        case("MaxPool2d", (4, 37, 56, 57), 3, stride=2, padding=1),
        case("AvgPool2d", (4, 37, 56, 57), 3, stride=2, padding=1),
        case("AdaptiveAvgPool2d", (4, 130, 31, 33), 1),
        case("AdaptiveMaxPool2d", (4, 33, 31, 33), 5),
        case("MaxPool3d", (2, 9, 12, 30, 31), 2),
    )


def test_empty_channels_last():
    x = torch.empty(0, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    for layer in (
        fastnn.MaxPool2d(2),
        fastnn.AvgPool2d(2),
        fastnn.AdaptiveAvgPool2d(2),
        fastnn.AdaptiveMaxPool2d(2),
    ):
        y = layer(x)
        y.sum().backward()
        assert x.grad.shape == x.shape and y.shape[0] == 0


# --- special values --------------------------------------------------------------------------------------------------

WINDOWS = [c for c in MAX if c.shape[0] and c.shape[-1] > 1]


def formats(case, x):
    """x contiguous and in channels_last, except where torch's op refuses that: three dimensions without a batch."""
    unbatched = case.layer.endswith("3d") and x.dim() == 4
    wanted = {"contiguous"} if unbatched else {"contiguous", "channels_last"} & set(layouts_of(case))
    return [apply_layout(x, layout) for layout in sorted(wanted)]


def same_maxima(case: Case, x):
    """Values, positions and gradients as torch's of the contiguous input, whatever the layout."""
    for indices in (True, False):
        asked = dataclasses.replace(case, kwargs={**case.kwargs, "return_indices": indices})
        theirs = run(asked, asked.build("torch"), x)
        expected = theirs.pop("gradient of x")
        for arranged in formats(case, x):
            ours = run(asked, asked.build("fastnn"), arranged)
            gradient = ours.pop("gradient of x")
            assert_same(ours, theirs, rtol=0, atol=0)
            if x.dtype is not torch.bfloat16:  # there sums of several windows round in an order of their own
                torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_max_nan(case, capability, dtype):
    x = torch.randn(case.shape).to(dtype)
    x.view(-1)[::5] = NAN
    x.view(-1)[1::11] = INF
    x.view(-1)[2::13] = -INF
    same_maxima(case, x)


def test_max_all_minus_inf(case, capability):
    same_maxima(case, torch.full(case.shape, -INF))


def test_max_ties(case, capability):
    same_maxima(case, torch.randn(case.shape).round())
    same_maxima(case, torch.zeros(case.shape))


test_max_nan.cases = test_max_all_minus_inf.cases = test_max_ties.cases = WINDOWS


def test_adaptive_max_specials(case):
    x = torch.randn(case.shape).round()
    x.view(-1)[::7] = NAN
    same_maxima(case, x)
    same_maxima(case, torch.full_like(x, -INF))


test_adaptive_max_specials.cases = [c for c in ADAPTIVE if "Max" in c.layer and c.shape[0]]


def test_average_specials(case):
    x = torch.randn(case.shape)
    x.view(-1)[5], x.view(-1)[-3], x.view(-1)[x.numel() // 2] = NAN, INF, -INF
    for arranged in formats(case, x):
        assert_same(run(case, case.build("fastnn"), arranged), run(case, case.build("torch"), arranged))


test_average_specials.cases = [c for c in AVERAGE + ADAPTIVE if "Avg" in c.layer and c.shape[0]]


# --- functional ------------------------------------------------------------------------------------------------------


def test_functional_maxima():
    x = torch.randn(2, 3, 9, 8)
    theirs = torch.nn.functional
    for flag in (False, True):
        ours_out = F.max_pool2d(x, 3, 2, 1, 1, ceil_mode=True, return_indices=flag)
        torch.testing.assert_close(
            ours_out, theirs.max_pool2d(x, 3, 2, 1, 1, ceil_mode=True, return_indices=flag)
        )
        torch.testing.assert_close(
            F.adaptive_max_pool2d(x, 3, return_indices=flag),
            theirs.adaptive_max_pool2d(x, 3, return_indices=flag),
        )
    torch.testing.assert_close(F.max_pool2d_with_indices(x, 2), theirs.max_pool2d_with_indices(x, 2))
    torch.testing.assert_close(F.max_pool2d(x, kernel_size=[2, 2], stride=None), theirs.max_pool2d(x, 2))
    torch.testing.assert_close(
        F.max_pool1d(x[0], 2, return_indices=True), theirs.max_pool1d(x[0], 2, return_indices=True)
    )


def test_functional_averages():
    x = torch.randn(2, 3, 9, 8)
    ours = F.avg_pool2d(x, kernel_size=(3, 2), stride=2, padding=1, ceil_mode=True, count_include_pad=False)
    theirs = torch.nn.functional.avg_pool2d(x, (3, 2), 2, 1, True, False)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        F.avg_pool2d(x, 3, divisor_override=2), torch.nn.functional.avg_pool2d(x, 3, divisor_override=2)
    )
    torch.testing.assert_close(F.avg_pool1d(x[0], 2), torch.nn.functional.avg_pool1d(x[0], 2))
    torch.testing.assert_close(
        F.adaptive_avg_pool2d(x, [None, 3]), torch.nn.functional.adaptive_avg_pool2d(x, [None, 3])
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integers(dtype):
    """Maxima of integers exist in torch; averages of them mostly do not. Both agree."""
    x = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6).to(dtype)
    for name, args in (("max_pool2d", (2,)), ("avg_pool2d", (2,)), ("adaptive_avg_pool2d", (2,))):
        theirs, ours = getattr(torch.nn.functional, name), getattr(F, name)
        y = check_raises(lambda f=theirs, a=args: f(x, *a), lambda f=ours, a=args: f(x, *a))
        assert y is None or torch.equal(y, theirs(x, *args))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unpool(dims):
    x = torch.randn(2, 3, *[8] * dims, dtype=torch.float64)
    pool = getattr(fastnn, f"MaxPool{dims}d")(2, return_indices=True)
    y, indices = pool(x)
    for size in (None, x.shape[2:]):
        theirs = getattr(torch.nn, f"MaxUnpool{dims}d")(2)(y, indices, output_size=size)
        ours = getattr(fastnn, f"MaxUnpool{dims}d")(2)(y, indices, output_size=size)
        assert torch.equal(ours, theirs)
    leaf = y.detach().requires_grad_()
    unpool = getattr(fastnn, f"MaxUnpool{dims}d")(2)
    assert torch.autograd.gradcheck(lambda t: unpool(t, indices), leaf)


# --- derivatives, threads --------------------------------------------------------------------------------------------


def test_derivatives_of_power_average(case):
    """Of positive numbers: the root has no derivative at 0."""
    check_derivatives(case, x=torch.rand(case.shape, dtype=torch.float64) + 0.5)


test_derivatives_of_power_average.cases = [
    case("LPPool1d", (1, 2, 6), 2, 3),
    case("LPPool2d", (1, 1, 4, 4), 3, 2),
]


def test_overlapping_gradients_add_up():
    """Every window of stride 1 has the same maximum: it receives one gradient per window."""
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    with torch.no_grad():
        x[0, 0, 2, 2] = 1
    F.max_pool2d(x, 3, 1).sum().backward()
    assert x.grad[0, 0, 2, 2] == 9 and x.grad.sum() == 9
