"""Element-wise activations: parity, special values, in place, functional forms, derivatives."""

import pytest
import torch
from support import Family, assert_same, case, check_raises, check_specials, pair, run, sprinkle

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
    ("Threshold", {"threshold": 0.1, "value": 20.0}),
    ("Tanhshrink", {}),
    ("Softshrink", {"lambd": 0.75}),
    ("Hardshrink", {"lambd": 0.75}),
    ("GLU", {"dim": 1}),
]
INPLACE = ("ReLU", "LeakyReLU", "ELU", "ReLU6", "SELU", "CELU", "SiLU", "Mish", "Hardtanh", "Hardswish", "Hardsigmoid",
           "Threshold", "RReLU")  # fmt: skip


def layers(shape, pairs=LAYERS):
    """A case per formula; RReLU in eval, where nothing is drawn; GLU halves an even number of channels."""
    cases = []
    for name, kwargs in pairs:
        sizes = (shape[0], 4, *shape[2:]) if name == "GLU" else shape
        cases.append(case(name, sizes, train=name != "RReLU", **kwargs))
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


def test_rrelu_in_training():
    """Drawn slopes lie between the bounds, differ, and the gradient uses the same ones."""
    for one in (c for c in parity_cases("activation") if c.random and c.train and not c.inplace):
        module = one.build("fastnn")
        x = one.inputs()[0].requires_grad_()
        y = module(x)
        dy = torch.randn(y.shape)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert random_layers.faults(module, x.detach(), y.detach(), dy, dx) == []
        assert not torch.equal(y, module(x))


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
