"""Linear: parity with torch in every layout and dtype, weights, special values, derivatives."""

import pytest
import torch
from support import Family, case, check_specials, sprinkle

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import parity_cases


class TestLinear(Family):
    parity_cases = (
        *parity_cases("linear"),
        case("Linear", (1, 300), 300, 111),
        case("Linear", (2, 1, 3, 2, 5), 5, 7),
        case("Linear", (2, 0, 5), 5, 7),
        case("Linear", (33, 65), 65, 129),
        case("Linear", (1030, 17), 17, 19),
        case("Linear", (6, 2050), 2050, 10),
        case("Linear", (257, 515), 515, 259),
    )
    views_cases = (
        case("Linear", (3, 5), 5, 7),
        case("Linear", (2, 3, 5), 5, 7),
        case("Linear", (33, 65), 65, 129),
        case("Linear", (1, 300), 300, 111, bias=False),
    )
    derivatives_cases = (
        case("Linear", (3, 4), 4, 2),
        case("Linear", (4,), 4, 2),
        case("Linear", (2, 1, 4), 4, 3, bias=False),
    )
    threads_cases = (
        case("Linear", (257, 515), 515, 259),
        case("Linear", (3, 2000), 2000, 1001),
        case("Linear", (5000, 33), 33, 31),
        case("Linear", (64, 4100), 4100, 70),
    )


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("arrangement", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weight_layouts(arrangement, dtype):
    x, w = randn(9, 31, dtype=dtype), randn(17, 31, dtype=dtype)
    w = {
        "transposed": w.t().contiguous().t(),
        "sliced": torch.cat([w, w], 1)[:, ::2],
        "expanded": w[:1].expand(17, 31),
    }[arrangement]
    torch.testing.assert_close(F.linear(x, w), torch.nn.functional.linear(x, w))


def test_one_dimensional_weight():
    for x in (randn(4, 5), randn(5)):
        w = randn(5)
        torch.testing.assert_close(F.linear(x, w), torch.nn.functional.linear(x, w))


def test_no_features():
    for sizes in ((0, 3), (3, 0)):
        weight, bias, x = randn(sizes[1], sizes[0]), randn(sizes[1]), randn(4, sizes[0])
        torch.testing.assert_close(F.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("shape", [(3, 21), (1, 21), (40, 21)])
def test_specials(shape, capability):
    """A NaN or an infinity reaches the rows that it belongs to, no others; the sign of a zero sum is not tested."""
    check_specials(case("Linear", shape, 21, 18), sprinkle(randn(*shape)))


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_only_the_gradients_asked_for(needs):
    tensors = [randn(6, 5), randn(7, 5), randn(7)]
    ours = [t.clone().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
    theirs = [t.clone().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
    F.linear(*ours).square().sum().backward()
    torch.nn.functional.linear(*theirs).square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_lazy():
    layer = fastnn.LazyLinear(4)
    assert layer(torch.randn(2, 6)).shape == (2, 4)
    assert type(layer) is fastnn.Linear and layer.in_features == 6
