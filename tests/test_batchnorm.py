"""BatchNorm: train and eval, every argument, running statistics, precision, special values, derivatives."""

import copy

import pytest
import torch
from support import FLOATS, Family, assert_same, case, check_derivatives, check_specials, pair, run, sprinkle

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import apply_layout, parity_cases

SHAPES = {"BatchNorm1d": (4, 3, 5), "BatchNorm2d": (4, 3, 5, 6), "BatchNorm3d": (4, 3, 2, 5, 3)}


class TestBatchNorm(Family):
    parity_cases = (
        *parity_cases("batchnorm"),
        case("BatchNorm1d", (2, 3), 3),
        case("BatchNorm1d", (1, 3, 2), 3, dtypes=FLOATS),
        case("BatchNorm2d", (2, 3, 1, 1), 3),
        case("BatchNorm2d", (1, 35, 7, 9), 35, momentum=0.0),
        case("BatchNorm2d", (1, 35, 7, 9), 35, momentum=1.0),
        case("BatchNorm2d", (8, 129, 3, 3), 129),
        *(
            case(name, shape, 3, bias=False, train=train)
            for name, shape in SHAPES.items()
            for train in (True, False)
        ),
        case("BatchNorm2d", (8, 3, 56, 57), 3),
        case("BatchNorm1d", (257, 67), 67, layouts=("contiguous", "offset", "sliced", "transposed")),
        case("BatchNorm2d", (4, 3, 5, 6), 3, affine=False, track_running_stats=False, train=False),
    )
    views_cases = (
        case(name, shape, 3, train=train) for name, shape in SHAPES.items() for train in (True, False)
    )
    derivatives_cases = (
        case("BatchNorm1d", (4, 2), 2),
        case("BatchNorm1d", (3, 2, 2), 2, train=False),
        case("BatchNorm2d", (2, 2, 2, 3), 2),
        case("BatchNorm2d", (2, 2, 2, 2), 2, affine=False),
        case("BatchNorm2d", (2, 2, 2, 2), 2, track_running_stats=False, train=False),
        case("BatchNorm3d", (2, 1, 2, 1, 2), 1),
    )
    threads_cases = (
        case("BatchNorm2d", (9, 37, 31, 33), 37),
        case("BatchNorm2d", (64, 3, 40, 40), 3),
        case("BatchNorm1d", (5000, 33), 33),
        case("BatchNorm2d", (9, 37, 31, 33), 37, train=False),
    )


# --- running statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("name", SHAPES)
def test_statistics_over_many_steps(name, momentum):
    """Ten batches in training, then eval; num_batches_tracked counts and the averages follow torch's."""
    theirs, ours = pair(case(name, SHAPES[name], 3, momentum=momentum))
    for _ in range(10):
        x = torch.randn(SHAPES[name]) * 2 + 1
        theirs(x), ours(x)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 10
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_eval_leaves_statistics_alone(strict):
    layer = fastnn.BatchNorm2d(3).eval()
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_statistics_are_updated_in_place():
    """Views and other holders of the buffer see the update."""
    layer = fastnn.BatchNorm2d(3)
    mean, view = layer.running_mean, layer.running_mean[1:]
    layer(torch.randn(2, 3, 4, 4))
    assert layer.running_mean is mean and view.abs().min() > 0


def test_reset_running_stats():
    layer = fastnn.BatchNorm1d(3)
    layer(torch.randn(5, 3))
    layer.reset_running_stats()
    assert layer.num_batches_tracked == 0 and torch.equal(layer.running_var, torch.ones(3))


def test_switching_between_modes():
    theirs, ours = pair(case("BatchNorm2d", (4, 3, 5, 6), 3))
    x = torch.randn(4, 3, 5, 6)
    for training in (True, False, True, False):
        theirs.train(training), ours.train(training)
        torch.testing.assert_close(ours(x), theirs(x))


# --- functional ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_functional(training, weight, bias):
    """Weight without bias, bias without weight; statistics or none."""
    x = torch.randn(4, 3, 5)
    for with_statistics in (True, False):
        if not with_statistics and not training:
            continue
        arguments = {
            "weight": torch.rand(3) if weight else None,
            "bias": torch.randn(3) if bias else None,
            "training": training,
            "momentum": 0.3,
            "eps": 1e-2,
        }
        mean, var = (torch.randn(3), torch.rand(3) + 0.5) if with_statistics else (None, None)
        their_mean, their_var = copy.deepcopy((mean, var))
        y = F.batch_norm(x, mean, var, **arguments)
        expected = torch.nn.functional.batch_norm(x, their_mean, their_var, **arguments)
        torch.testing.assert_close(y, expected)
        if with_statistics:
            torch.testing.assert_close((mean, var), (their_mean, their_var))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_small_input_with_float32_parameters(dtype, layout, train):
    """The mix that autocast makes: input of a small type, parameters and statistics in float32."""
    theirs, ours = pair(case("BatchNorm2d", (4, 3, 5, 6), 3, train=train))
    x = apply_layout(torch.randn(4, 3, 5, 6).to(dtype), layout)
    y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype and y.stride() == expected.stride()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("mixed", ["weight", "running_mean"])
def test_mixed_layouts_of_parameters(mixed):
    """A parameter or a statistic that is a strided view."""
    theirs, ours = pair(case("BatchNorm2d", (4, 3, 5, 6), 3))
    with torch.no_grad():
        for layer in (theirs, ours):
            tensor = getattr(layer, mixed)
            tensor.data = torch.stack([tensor, tensor], -1)[:, 0]
    x = torch.randn(4, 3, 5, 6)
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


# --- precision and special values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "spread"), [(1e3, 1.0), (1e4, 0.1), (-1e-3, 1e-4), (0.0, 1e3)])
def test_precision(mean, spread, layout, capability):
    """A mean much larger than the spread: the variance must not be a difference of large numbers."""
    check_precision(torch.randn(6, 5, 17, 19) * spread + mean, spread, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_precision_of_an_odd_beginning(layout, capability):
    """The first numbers, from which the kernels guess the mean, lie far from all others."""
    x = torch.randn(2, 5, 50, 41)
    x.flatten(2)[:, :, :16] += 1e4
    check_precision(x, x.std(), layout)


def check_precision(x, spread, layout):
    x = apply_layout(x, layout)
    theirs, ours = pair(case("BatchNorm2d", tuple(x.shape), 5))
    exact = copy.deepcopy(theirs).double()
    expected, got, reference = theirs(x), ours(x), exact(x.double())

    def check(a, b, c, scale):
        floor = 4 * torch.finfo(torch.float32).eps * max(c.abs().max(), scale)
        assert (a - c).abs().max() <= max(2 * (b - c).abs().max(), floor)

    check(got, expected, reference, 1)
    check(ours.running_mean, theirs.running_mean, exact.running_mean, 0.1 * spread)  # values cancel in a mean
    check(ours.running_var, theirs.running_var, exact.running_var, 0.1 * spread**2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_constant_channels(layout, capability):
    """Variance 0: the output is the bias, the gradient finite."""
    theirs, ours = pair(case("BatchNorm2d", (4, 3, 5, 6), 3))
    x = apply_layout(torch.full((4, 3, 5, 6), 0.1), layout)
    one = case("BatchNorm2d", (4, 3, 5, 6), 3)
    got, expected = run(one, ours, x), run(one, theirs, x)
    torch.testing.assert_close(got["output 0"], expected["output 0"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got["buffer running_var"], expected["buffer running_var"])
    assert torch.isfinite(got["gradient of x"]).all()


@pytest.mark.parametrize("train", [True, False])
def test_specials(train, capability):
    """A NaN or an infinity spoils its channel in training and itself in eval, as in torch."""
    for name, shape in SHAPES.items():
        for value in (float("nan"), float("inf")):
            x = torch.randn(shape)
            x[1, 1] = value
            check_specials(case(name, shape, 3, train=train), x)
    check_specials(case("BatchNorm2d", (4, 3, 5, 6), 3, train=False), sprinkle(torch.randn(4, 3, 5, 6)))


def test_zero_variance_statistics_in_eval():
    theirs, ours = pair(case("BatchNorm1d", (4, 3), 3, train=False))
    for layer in (theirs, ours):
        layer.running_var.zero_()
    x = torch.randn(4, 3)
    torch.testing.assert_close(ours(x), theirs(x))


# --- gradients asked for, empties, lazies ----------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_only_the_gradients_asked_for(wanted, train):
    theirs, ours = pair(case("BatchNorm2d", (4, 3, 5, 6), 3, train=train))
    x, found = torch.randn(4, 3, 5, 6), []
    for layer in (theirs, ours):
        layer.requires_grad_(False)
        leaf = x.clone()
        target = leaf if wanted == "x" else getattr(layer, wanted)
        target.requires_grad_()
        (layer(leaf) ** 3).sum().backward()
        found.append(target.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_frozen_layer_in_a_network():
    """Eval-mode statistics while the layers around train."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU())
    ours = copy.deepcopy(theirs)
    fastnn.accelerate(ours)
    x = torch.randn(2, 2, 6, 6)
    for model in (theirs, ours):
        model[1].eval()
        model(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [f"LazyBatchNorm{n}d" for n in (1, 2, 3)])
def test_lazy(name):
    layer = getattr(fastnn, name)()
    layer(torch.randn(SHAPES[name.removeprefix("Lazy")]))
    assert type(layer) is getattr(fastnn, name.removeprefix("Lazy")) and layer.num_features == 3


def test_derivatives_by_statistics_of_the_batch():
    """The gradient flows through mean and variance too: more than one channel, weights other than 1."""
    layer = case("BatchNorm2d", (3, 2, 2, 2), 2)
    check_derivatives(layer, x=torch.randn(3, 2, 2, 2, dtype=torch.float64))


def test_equals_itself_after_a_round_of_pickling():
    import pickle

    layer = fastnn.BatchNorm2d(3)
    layer(torch.randn(2, 3, 4, 4))
    twin = pickle.loads(pickle.dumps(layer))
    assert type(twin) is fastnn.BatchNorm2d
    assert_same(dict(twin.state_dict()), dict(layer.state_dict()), rtol=0, atol=0)
