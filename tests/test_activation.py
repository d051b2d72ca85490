"""Element-wise activations: parity, special values, in place, functional forms, derivatives."""

import pytest
import torch
from support import (
    Family,
    assert_same,
    case,
    check_raises,
    check_specials,
    distinct,
    pair,
    run,
    sprinkle,
)

import fastnn
from fastnn import functional as F
from fastnn.testing import random_layers
from fastnn.testing.cases import parity_cases

# class, arguments: one row per formula
LAYERS = [
    ("ReLU", {}),
    ("LeakyReLU", {"negative_slope": 0.2}),
    ("ELU", {"alpha": 0.7}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("ReLU6", {}),
    ("SELU", {}),
    ("CELU", {"alpha": 0.5}),  # with an exact inverse: torch rounds it to a float
    ("GELU", {}),
    ("GELU", {"approximate": "tanh"}),
    ("SiLU", {}),
    ("Mish", {}),
    ("Softplus", {"beta": 2.0, "threshold": 1.5}),
    ("Softsign", {}),
    ("Hardtanh", {"min_val": -0.3, "max_val": 0.7}),
    ("Hardswish", {}),
    ("Hardsigmoid", {}),
    ("LogSigmoid", {}),
    ("PReLU", {"num_parameters": 3}),
    ("RReLU", {}),
    ("RReLU", {"lower": 0.25, "upper": 0.25}),
    ("RReLU", {"lower": -0.5, "upper": -0.5}),
    ("Threshold", {"threshold": 0.1, "value": 20.0}),
    ("Tanhshrink", {}),
    ("Softshrink", {"lambd": 0.75}),
    ("Hardshrink", {"lambd": 0.75}),
    ("GLU", {"dim": 1}),
]
INPLACE = ("ReLU", "LeakyReLU", "ELU", "ReLU6", "SELU", "CELU", "SiLU", "Mish", "Hardtanh", "Hardswish", "Hardsigmoid",
           "Threshold", "RReLU")  # fmt: skip


def layers(shape, pairs=LAYERS):
    """A case per formula; RReLU in eval or with a single slope; GLU halves an even number of channels."""
    cases = []
    for name, kwargs in pairs:
        sizes = (shape[0], 4, *shape[2:]) if name == "GLU" else shape
        one_slope = name == "RReLU" and kwargs
        # torch has no RReLU of float16 in training on the CPU
        dtypes = {"dtypes": ("float32", "float64", "bfloat16")} if one_slope else {}
        cases.append(case(name, sizes, train=name != "RReLU" or bool(one_slope), **dtypes, **kwargs))
    return cases


class TestActivation(Family):
    parity_cases = (
        *(c for c in parity_cases("activation") if not c.random),
        *layers((5, 3, 7, 19)),
        *layers((1, 3, 1)),
        case("PReLU", (2, 1, 5), 1),
        case("PReLU", (0, 3, 5), 3),
        case("GLU", (3, 6, 5), -2),
        case("GLU", (3, 130), -1),
    )
    views_cases = layers((5, 3, 7, 19))
    derivatives_cases = layers((2, 3, 3))
    without_second_derivative = ("Hardswish", "Hardsigmoid")
    threads_cases = layers((6, 3, 133, 135))


@pytest.mark.parametrize(("name", "kwargs"), LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_specials(name, kwargs, dtype, capability):
    """NaN, infinities, zeros of either sign, and numbers where exp or a square over- or underflows."""
    specials = (
        float("nan"),
        float("inf"),
        -float("inf"),
        -0.0,
        0.0,
        1e-42,
        -1e-42,
        20.0,
        88.8,
        -88.8,
        -104.0,
        1e20,
        -1e20,
        3e38,
        -3e38,
    )
    one = layers((3, 4 if name == "GLU" else 3, 67), [(name, kwargs)])[0]
    x = sprinkle(torch.randn(one.shape, dtype=dtype), specials)
    # Within the shrunk interval torch's vectors give 0 and its scalar tails -0 for a negative x.
    check_specials(one, x, signs=name != "Softshrink")


@pytest.mark.parametrize("point", [-3.0, -1.0, -0.75, -0.3, 0.0, 0.1, 0.7, 0.75, 1.0, 3.0, 6.0])
def test_kinks(point, capability):
    """At the very kink value and gradient follow torch's convention."""
    for one in layers((2, 3, 17)):
        check_specials(one, torch.full(one.shape, point))


@pytest.mark.parametrize("name", INPLACE)
@pytest.mark.parametrize("shape", [(5, 67), (2, 3, 4, 5)])
def test_inplace(name, shape):
    """The output is the input; gradients as without; a leaf that needs a gradient is refused as in torch."""
    kwargs = {"threshold": 0.1, "value": 2.0} if name == "Threshold" else {}
    module = getattr(fastnn, name)(inplace=True, **kwargs).train(name != "RReLU")
    plain = getattr(fastnn, name)(**kwargs).train(name != "RReLU")
    x = torch.randn(shape)
    for arranged in (
        x.clone(),
        x.t().clone().t() if x.dim() == 2 else x.clone(memory_format=torch.channels_last),
    ):
        data, version = arranged.clone(), arranged._version
        y = module(arranged)
        assert y.data_ptr() == arranged.data_ptr() and arranged._version > version
        torch.testing.assert_close(y, plain(data))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (module(a * 1) * 3).sum().backward()
    (plain(b * 1) * 3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        module(x.clone().requires_grad_())
    theirs = getattr(torch.nn, name)(inplace=True, **kwargs)
    check_raises(
        lambda: theirs(torch.zeros(3, 1).expand(3, 4)), lambda: module(torch.zeros(3, 1).expand(3, 4))
    )


def test_inplace_after_saving_is_noticed():
    """The input of a layer that needs it for its gradient was overwritten: torch's own error."""
    x = torch.randn(4, 5, requires_grad=True)
    hidden = x * 1
    y = fastnn.SiLU()(hidden)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inplace_functions():
    for name in ("relu_", "elu_", "celu_", "selu_", "leaky_relu_", "hardtanh_", "threshold_", "rrelu_"):
        arguments = (0.1, 2.0) if name == "threshold_" else ()
        x = torch.randn(40)
        expected = getattr(torch.nn.functional, name)(x.clone(), *arguments)
        assert getattr(F, name)(x, *arguments) is x
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("relu", {}), ("relu6", {}), ("leaky_relu", {"negative_slope": 0.3}), ("elu", {"alpha": 0.4}), ("selu", {}),
        ("celu", {"alpha": 0.4}), ("gelu", {"approximate": "tanh"}), ("gelu", {}), ("silu", {}), ("mish", {}),
        ("softplus", {"beta": 3, "threshold": 4}), ("softsign", {}), ("hardtanh", {"min_val": -0.2, "max_val": 0.5}),
        ("hardswish", {}), ("hardsigmoid", {}), ("logsigmoid", {}), ("threshold", {"threshold": 0.2, "value": -1}),
        ("tanhshrink", {}), ("softshrink", {"lambd": 0.2}), ("hardshrink", {"lambd": 0.2}), ("sigmoid", {}),
        ("tanh", {}), ("glu", {"dim": 0}), ("rrelu", {"lower": 0.1, "upper": 0.2, "training": False}),
        ("prelu", {"weight": torch.tensor([0.3])}),
    ],
    ids=str,
)  # fmt: skip
def test_functional(name, arguments):
    x = torch.randn(4, 6, 5)
    ours, theirs = getattr(F, name), getattr(torch.nn.functional, name)
    torch.testing.assert_close(ours(x, **arguments), theirs(x, **arguments))
    if name not in ("sigmoid", "tanh"):
        torch.testing.assert_close(ours(input=x, **arguments), theirs(input=x, **arguments))


def test_integers_and_booleans():
    """relu of integers exists, most others do not: agree with torch in what is returned or raised."""
    for x in (torch.arange(-3, 4), torch.tensor([True, False]), torch.arange(-3, 4).to(torch.int8)):
        for name in ("relu", "relu6", "hardtanh", "sigmoid", "tanh", "silu", "elu"):
            theirs, ours = getattr(torch.nn.functional, name), getattr(F, name)
            y = check_raises(lambda f=theirs, x=x: f(x), lambda f=ours, x=x: f(x))
            if y is not None:
                torch.testing.assert_close(y, theirs(x))


def test_complex_falls_back():
    x = torch.randn(5, dtype=torch.complex64)
    for name in ("sigmoid", "tanh", "silu"):
        torch.testing.assert_close(getattr(F, name)(x), getattr(torch.nn.functional, name)(x))


BOUNDS = [(1 / 8, 1 / 3), (0.0, 0.5), (-0.4, 0.3), (-0.5, -0.25)]  # the first alone keeps y for its gradient


def drawn(shape=(5, 3, 7, 19), dtype=torch.float64, bounds=BOUNDS[0]):
    """(x, slopes, dy) of a call after manual_seed(3): the slope of element i depends on nothing but i."""
    torch.manual_seed(3)
    slopes = -F.rrelu(torch.full(shape, -1.0, dtype=dtype), *bounds, training=True)
    return torch.randn(shape, dtype=dtype), slopes, torch.randn(shape, dtype=dtype)


def seeded_rrelu(bounds, inplace=False):
    def function(x):
        torch.manual_seed(3)
        return F.rrelu(x.clone() if inplace else x, *bounds, training=True, inplace=inplace)

    return function


def test_rrelu_in_training():
    """Drawn slopes lie between the bounds, differ, and the gradient uses the same ones."""
    for one in (c for c in parity_cases("activation") if c.random and c.train and not c.inplace):
        for dtype in ("float32", "float64", "bfloat16", "float16"):
            module = one.build("fastnn")
            x = one.inputs(dtype)[0].requires_grad_()
            with fastnn.strict():
                y = module(x)
            dy = torch.randn(y.shape).to(y.dtype)
            (dx,) = torch.autograd.grad(y, x, dy)
            assert random_layers.faults(module, x.detach(), y.detach(), dy, dx) == []
            assert not torch.equal(y, module(x))


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_rrelu_slopes(bounds, inplace, capability, strict):
    """y and dx are products with the slopes of the call, whatever was drawn in between and however dy lies."""
    x, slopes, dy = drawn(bounds=bounds)
    x.view(-1)[::11] = 0.0
    factor = torch.where(x > 0, torch.ones_like(x), slopes)
    arranged = {
        "contiguous": dy,
        "strided": torch.stack([dy, dy], -1)[..., 0],
        "channels_last": dy.contiguous(memory_format=torch.channels_last),
        "expanded": dy[:1, :1, :1, :1].expand(dy.shape),
    }
    for gradient in arranged.values():
        leaf = x.clone().requires_grad_()
        y = seeded_rrelu(bounds, inplace)(leaf)
        torch.rand(10)
        assert torch.equal(y, factor * x)
        (dx,) = torch.autograd.grad(y, leaf, gradient)
        assert torch.equal(dx, factor * gradient)


@pytest.mark.parametrize("lower", [-0.25, 0.0, 0.25])
def test_rrelu_special_values(lower, capability):
    """With one slope as torch: 0 has a slope, NaN has not, minus infinity times 0 is NaN in y and 0 in dx."""
    one = case("RReLU", (3, 3, 67), lower, lower, dtypes=("float32", "float64"))
    x = sprinkle(torch.randn(one.shape))
    check_specials(one, x, signs=True)
    theirs, ours = pair(one)
    assert_same(run(one, ours, x), run(one, theirs, x))


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_rrelu_derivatives(bounds, inplace):
    """With the seed set before each call the slopes are constants."""
    x = distinct((2, 3, 5)).requires_grad_()
    function = seeded_rrelu(bounds, inplace)
    with fastnn.strict():
        assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_rrelu_second_derivative(bounds):
    """dx is linear in dy: its derivative is a product with the same slopes, the derivative of x is nothing."""
    x, slopes, dy = drawn(bounds=bounds)
    x.requires_grad_(), dy.requires_grad_()
    y = seeded_rrelu(bounds)(x)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    ddx = torch.randn_like(dx)
    ddy, none = torch.autograd.grad(dx, (dy, x), ddx, allow_unused=True)
    assert torch.equal(ddy, torch.where(x > 0, torch.ones_like(x), slopes) * ddx) and none is None


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_rrelu_inplace(bounds):
    """The output is the input, in any dense layout; what may not be overwritten is refused as in torch."""
    for x in (torch.randn(5, 67), torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)):
        with fastnn.strict():
            y = x.clone()
            assert F.rrelu(y, *bounds, training=True, inplace=True) is y and y._version == 1
        slope = (y / x)[x <= 0]
        assert torch.equal(y[x > 0], x[x > 0]) and y.stride() == x.stride()
        assert (slope >= bounds[0] - 1e-6).all() and (slope <= bounds[1] + 1e-6).all() and slope.var() > 0
    ours, theirs = fastnn.RReLU(*bounds, inplace=True), torch.nn.RReLU(*bounds, inplace=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        ours(torch.randn(5).requires_grad_())
    gaps = torch.randn(4, 6)[:, ::2].clone().t()[:, ::2]
    check_raises(lambda: theirs(gaps.clone()), lambda: ours(gaps.clone()))
    check_raises(lambda: theirs(torch.zeros(3, 1).expand(3, 4)), lambda: ours(torch.zeros(3, 1).expand(3, 4)))
    base = torch.randn(6, 4, requires_grad=True)
    view = (base * 1)[1:3]
    ours(view).sum().backward()
    assert base.grad[1:3].abs().min() > 0 and base.grad[0].abs().max() == 0


def test_rrelu_saves_one_tensor():
    """Seed and offset stand for the slopes; y, which the next layer keeps too, in place of x where it can be."""

    def saved(bounds):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            x = torch.randn(30, requires_grad=True)
            y = F.rrelu(x, *bounds, training=True)
        return [t.data_ptr() for t in kept], x.data_ptr(), y.data_ptr()

    for bounds in BOUNDS:
        kept, x, y = saved(bounds)
        assert kept == [y if bounds[0] > 0 else x]


def test_rrelu_of_few_numbers(strict):
    for shape in ((0,), (0, 3), (2, 0, 4)):
        x = torch.randn(shape, requires_grad=True)
        y = fastnn.RReLU()(x)
        y.sum().backward()
        assert y.shape == x.grad.shape == x.shape
    scalar = torch.tensor(-2.0)
    assert 0.1 < -fastnn.RReLU(0.1, 0.2)(scalar).item() / 2 < 0.2 and scalar.item() == -2


@pytest.mark.parametrize(
    "bounds", [(0.5, 0.1), (float("nan"), 0.1), (0.1, float("inf")), (-1e300, 1e300)], ids=str
)
def test_rrelu_bounds(bounds):
    """Bounds for which there is no kernel give what torch gives."""
    x = torch.randn(5)
    for inplace in (False, True):
        check_raises(
            lambda inplace=inplace: torch.nn.functional.rrelu(x.clone(), *bounds, True, inplace),
            lambda inplace=inplace: F.rrelu(x.clone(), *bounds, True, inplace),
        )


def test_rrelu_is_explained():
    layer = fastnn.RReLU()
    assert fastnn.explain(layer, torch.randn(5)).rows[0].detail == "rrelu"
    assert fastnn.explain(layer.eval(), torch.randn(5)).rows[0].detail == "leaky_relu"
    with (
        fastnn.strict(),
        pytest.raises(RuntimeError, match="rrelu ran torch's own op: no kernel for these bounds"),
    ):
        F.rrelu(torch.ones(5), -1e38, 3e38, training=True)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (3,), ()])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_prelu_weights(shape, layout):
    """One weight or one per channel; the weight itself strided."""
    for count in {1, shape[1] if len(shape) > 1 else 1}:
        one = case("PReLU", shape, count)
        theirs, ours = pair(one)
        with torch.no_grad():
            for layer in (theirs, ours):
                weight = torch.linspace(-0.5, 0.5, count)
                layer.weight.data = torch.stack([weight, weight], -1)[:, 0] if layout == "strided" else weight
        x = torch.randn(shape)
        assert_same(run(one, ours, x), run(one, theirs, x))
