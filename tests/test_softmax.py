"""Softmax, LogSoftmax, Softmin, Softmax2d: dimensions, precision, special values, derivatives."""

import pytest
import torch
from support import Family, assert_same, case, pair, run

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import parity_cases

INF, NAN = float("inf"), float("nan")
KINDS = ("Softmax", "LogSoftmax", "Softmin")


class TestSoftmax(Family):
    parity_cases = (
        *parity_cases("softmax"),
        *(
            case(kind, shape, dim)
            for kind in KINDS
            for dim, shape in [(1, (6, 10)), (-2, (3, 33, 17)), (0, (1, 3)), (-1, (2, 2053))]
        ),
        case("Softmax", (), 0),
        case("LogSoftmax", (3, 0), -1),
        case("Softmax", (0, 3), 0),
    )
    views_cases = tuple(case(kind, (3, 5, 4, 7), dim) for kind in KINDS for dim in (0, 1, -1))
    derivatives_cases = tuple(case(kind, (2, 3, 2), dim) for kind in KINDS for dim in (0, 1, 2))
    threads_cases = [case(kind, (130, 7, 90), dim) for kind in KINDS[:2] for dim in (0, 1, 2)] + [
        case("Softmax", (700, 1000), -1)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 1])
def test_specials(kind, dim, capability):
    """Rows with NaN, with +inf, with -inf here and there, all -inf; numbers whose exp overflows."""
    x = torch.randn(9, 37)
    x[0, 3] = NAN
    x[1, 5] = INF
    x[2, ::3] = -INF
    x[3] = -INF
    x[4] = 1e4
    x[5] = -1e4
    x[6, ::2] = 88.9
    x[7, 1], x[7, 2] = 3e38, -3e38
    x = x.t().contiguous() if dim == 0 else x
    one = case(kind, tuple(x.shape), dim)
    theirs, ours = pair(one)
    assert_same(run(one, ours, x), run(one, theirs, x))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_functional(name):
    x = torch.randn(3, 4, 5)
    ours, theirs = getattr(F, name), getattr(torch.nn.functional, name)
    for dim in (-3, -1, 1):
        torch.testing.assert_close(ours(x, dim), theirs(x, dim))
        torch.testing.assert_close(
            ours(x, dim=dim, dtype=torch.float64), theirs(x, dim=dim, dtype=torch.float64)
        )
        half = x.to(torch.bfloat16)
        torch.testing.assert_close(
            ours(half, dim=dim, dtype=torch.float32), theirs(half, dim=dim, dtype=torch.float32)
        )
    whole = torch.arange(6)
    torch.testing.assert_close(
        ours(whole, dim=0, dtype=torch.float32), theirs(whole, dim=0, dtype=torch.float32)
    )


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_implicit_dimension(name, shape):
    """Without dim torch warns and chooses one; so does fastnn."""
    x = torch.randn(shape)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        expected = getattr(torch.nn.functional, name)(x)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        torch.testing.assert_close(getattr(F, name)(x), expected)


def test_rows_sum_to_one(capability):
    for rows in ((7, 1), (3, 1031), (1, 100_003)):
        y = fastnn.Softmax(-1)(torch.randn(rows) * 5)
        torch.testing.assert_close(
            y.double().sum(-1), torch.ones(rows[0], dtype=torch.float64), rtol=0, atol=1e-5
        )
        assert (y >= 0).all()


def test_softmax2d_refuses_other_dimensions():
    with pytest.raises(ValueError, match="3D or 4D"):
        fastnn.Softmax2d()(torch.randn(2, 3))


def test_old_pickles_without_dim():
    """Softmax() without a dimension is allowed by the constructor, the choice is made at the call."""
    layer = fastnn.Softmax()
    with pytest.warns(UserWarning, match="Implicit"):
        assert layer(torch.randn(2, 3)).shape == (2, 3)
