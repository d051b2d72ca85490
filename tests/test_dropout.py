"""Dropouts: the promises about the mask, eval, p = 0 and 1, in place, gradients. Seeds: test_random.py."""

import pytest
import torch
from support import check_raises

import fastnn
from fastnn import _C
from fastnn import functional as F
from fastnn.testing import compare
from fastnn.testing.cases import layouts_of, parity_cases

NAMES = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
SHAPES = dict(
    zip(NAMES, [(40, 50), (6, 40, 9), (6, 40, 5, 3), (6, 40, 2, 3, 2), (40, 50), (6, 40, 5, 3)], strict=True)
)


def test_parity(case, capability):
    """The shared list: the promises of fastnn.testing.random_layers, exact equality where nothing is drawn."""
    for dtype in case.dtypes:
        for layout in layouts_of(case):
            compare.check(case, dtype, layout).raise_if_wrong()


test_parity.cases = parity_cases("dropout")


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_native(name, strict):
    for p in (0.0, 0.5, 1.0):
        x = torch.randn(SHAPES[name], requires_grad=True)
        getattr(fastnn, name)(p)(x).sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_eval_changes_nothing(name):
    x = torch.randn(SHAPES[name], requires_grad=True)
    state = torch.get_rng_state()
    y = getattr(fastnn, name)(0.5).eval()(x)
    assert torch.equal(y, x)
    assert torch.equal(torch.get_rng_state(), state), "eval must not draw numbers"
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_functional_ends(name, training):
    """p = 0 keeps all, p = 1 drops all, exactly as torch."""
    shape = SHAPES[NAMES[FUNCTIONS.index(name)]]
    x = torch.randn(shape)
    for p in (0.0, 1.0):
        ours = getattr(F, name)(x, p, training)
        torch.testing.assert_close(ours, getattr(torch.nn.functional, name)(x, p, training))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_keywords(name):
    shape = SHAPES[NAMES[FUNCTIONS.index(name)]]
    x = torch.randn(shape)
    assert getattr(F, name)(input=x, p=0.3, training=True, inplace=False).shape == x.shape
    y = x.clone()
    out = getattr(F, name)(y, p=0.3, training=True, inplace=True)
    assert out.data_ptr() == y.data_ptr() and torch.equal(out, y) and not torch.equal(y, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_bad_probability(name, p):
    with pytest.raises(ValueError, match="probability has to be between 0 and 1"):
        getattr(fastnn, name)(p)
    function = FUNCTIONS[NAMES.index(name)]
    x = torch.randn(SHAPES[name])
    ours, theirs = getattr(F, function), getattr(torch.nn.functional, function)
    check_raises(lambda: theirs(x, p, True), lambda: ours(x, p, True), match="between 0 and 1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_scale(dtype):
    """Survivors are x / (1 - p), rounded once."""
    x = torch.randn(3001).to(dtype)
    y = F.dropout(x, 0.4, True)
    kept = y != 0
    expected = (x.double() / 0.6)[kept]
    assert ((y.double()[kept] - expected).abs() <= 2 * torch.finfo(dtype).eps * expected.abs()).all()


def test_special_values():
    """A kept NaN or infinity stays; a dropped one becomes what torch makes of it: NaN times 0."""
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, -0.0] * 400)
    y = fastnn.Dropout(0.5)(x)
    finite = torch.isfinite(x)
    assert torch.isfinite(y[finite]).all()
    assert set(y[x == 1].tolist()) == {0.0, 2.0}
    odd = y[~finite]
    assert (
        ((odd == 0) | torch.isnan(odd) | torch.isinf(odd)).all()
        and torch.isinf(odd).any()
        and torch.isnan(odd).any()
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_uses_the_mask_of_the_forward(name):
    """Also when other random numbers were drawn in between, and for a strided or broadcast gradient."""
    module = getattr(fastnn, name)(0.5)
    for layout in ("contiguous", "strided", "expanded"):
        x = torch.rand(SHAPES[name], dtype=torch.float64) + 1
        x.requires_grad_()
        y = module(x)
        torch.randn(10)
        dy = torch.rand(y.shape, dtype=torch.float64) + 1
        if layout == "strided":
            dy = torch.stack([dy, dy], -1)[..., 0]
        elif layout == "expanded":
            dy = dy.flatten()[0].expand(y.shape)
        (dx,) = torch.autograd.grad(y, x, dy)
        dropped = (y == y.min()) if "Alpha" in name else (y == 0)
        assert dropped.any() and not dropped.all()
        assert torch.equal(dx == 0, dropped)
        factor = (dx / dy)[~dropped]
        torch.testing.assert_close(factor, factor[:1].expand_as(factor))


@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name):
    """With the seed set before each call the mask is a constant."""
    module = getattr(fastnn, name)(0.5)
    x = torch.randn((SHAPES[name][0], 3, *SHAPES[name][2:]), dtype=torch.float64)[:2].requires_grad_()

    def function(t):
        torch.manual_seed(3)
        return module(t)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize(
    ("name", "shape"), [("Dropout1d", (5,)), ("Dropout2d", (5, 6)), ("Dropout3d", (4, 5))]
)
def test_wrong_number_of_dimensions(name, shape):
    """torch warns or raises, whichever; so do we."""
    import warnings

    def outcome(library):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                getattr(library, name)(0.5)(torch.randn(shape))
            except Exception as error:
                return type(error)
        return [w.category for w in seen]

    assert outcome(fastnn) == outcome(torch.nn)


def test_inplace_on_a_leaf_is_refused():
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        fastnn.Dropout(0.5, inplace=True)(torch.randn(5, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4099,), (40, 70), (3, 1, 5)])
def test_relu_and_dropout_as_one(dtype, shape, capability, threads):
    """The bits of relu, then dropout, forward and backward, for any number of threads."""
    x, dy = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    x.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    runs = []
    for n in (0, 1, 2, 4):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        with threads(max(n, 1)), fastnn.strict():
            y = _C.relu_dropout(leaf, 0.3, True) if n else F.dropout(F.relu(leaf), 0.3)
            runs.append((y.detach(), torch.autograd.grad(y, leaf, dy)[0]))
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=0, atol=0, equal_nan=True)


def test_relu_and_dropout_beyond_the_kernel():
    x = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    for p, train in ((0.0, True), (1.0, True), (0.4, False)):
        expected = torch.nn.functional.dropout(x.relu(), p, train)
        assert torch.equal(_C.relu_dropout(x, p, train), expected)

    def function(x):
        torch.manual_seed(5)
        return _C.relu_dropout(x, 0.4, True)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)
