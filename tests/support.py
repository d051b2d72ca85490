"""What the parity tests share, beyond `fastnn.testing`: views, threads, special values and derivatives of a case."""

import contextlib
import copy

import pytest
import torch

import fastnn
from fastnn.testing import compare
from fastnn.testing.cases import ALL_LAYOUTS, Case, apply_layout, layouts_of

FLOATS = ("float32", "float64")
HALVES = ("bfloat16", "float16")


def case(
    layer,
    shape,
    *args,
    train=True,
    call=None,
    dtypes=FLOATS + HALVES,
    layouts=ALL_LAYOUTS,
    algorithm="",
    **kwargs,
):
    """A case that the shared lists don't have."""
    return Case(
        "extra",
        layer,
        args,
        kwargs,
        tuple(shape),
        dtypes,
        layouts,
        train,
        algorithm=algorithm,
        call=call or {},
    )


# In place these overwrite what their gradient needs: torch's op, which keeps a copy, may run.
OVERWRITES = ("SiLU", "Mish", "Hardswish", "Hardsigmoid", "Threshold", "GELU")


def has_kernels(case, dtype, layout):
    """Whether strict mode must not complain: composed layers, empty inputs and odd strides may use torch's op."""
    composed = case.layer.startswith(("LPPool", "MaxUnpool")) or (case.inplace and case.layer in OVERWRITES)
    return (
        not composed and 0 not in case.shape and dtype in FLOATS and layout in ("contiguous", "channels_last")
    )


def check_parity(case, dtype="float32", layout="contiguous"):
    """The rule of the project, see fastnn.testing.compare."""
    compare.check(case, dtype, layout, native=has_kernels(case, dtype, layout)).raise_if_wrong()


# --- one run ---------------------------------------------------------------------------------------------------------


def as_list(outputs):
    """A layer's outputs, those of an LSTM in one row."""
    if not isinstance(outputs, (tuple, list)):
        return [outputs]
    return [one for output in outputs for one in as_list(output)]


def run(case, module, x, dy=None):
    """Outputs, then the gradients of x and of the parameters, then buffers; all by name."""
    x = x.detach().requires_grad_(x.is_floating_point())
    outputs = as_list(module(x.clone() if case.inplace else x, **case.call))
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    y = outputs[0]
    parameters = dict(module.named_parameters())
    dy = compare.incoming_gradient(y) if dy is None else dy(y)
    grads = torch.autograd.grad(y, [x, *parameters.values()], dy, allow_unused=True)
    for name, grad in zip(["x", *parameters], grads, strict=True):
        found[f"gradient of {name}"] = grad
    found.update((f"buffer {name}", b.clone()) for name, b in module.named_buffers())
    return found


def pair(case, dtype=torch.float32):
    """(torch's layer, fastnn's layer) with the same parameters."""
    return compare.build_pair(case, dtype)


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        got = ours[name]
        assert (got is None) == (expected is None), f"{name}: only one of the two is None"
        if got is not None:
            torch.testing.assert_close(
                got, expected, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )


# --- views -----------------------------------------------------------------------------------------------------------


def _place(x, shape, index):
    """x as a view of a larger tensor. What is around it must not be seen: NaN shows it."""
    view = x.new_full(shape, float("nan"))[index]
    return view.copy_(x)


def views(x):
    """x at odd places in memory, by name: no stride of 1, misaligned, channels out of more, rows out of longer."""
    n = x.shape[-1]
    found = {
        "offset": _place(x.flatten(), (x.numel() + 1,), slice(1, None)).view(x.shape),
        "every second": _place(x, (*x.shape[:-1], 2 * n + 1), (..., slice(1, None, 2))),
        "rows out of longer": _place(x, (*x.shape[:-1], n + 3), (..., slice(1, n + 1))),
    }
    if x.dim() > 1:
        channels = x.shape[1]
        found["channels out of more"] = _place(
            x, (x.shape[0], channels + 2, *x.shape[2:]), (slice(None), slice(1, channels + 1))
        )
    if x.dim() in (4, 5):
        last = apply_layout(x, "channels_last")
        wide = last.new_full((x.shape[0], *x.shape[2:], x.shape[1] + 3), float("nan"))
        found["channels_last out of more"] = wide[..., : x.shape[1]].movedim(-1, 1).copy_(x)
    return found


def check_views(case, dtype="float32"):
    """The numbers do not depend on where the input lies or how the incoming gradient is strided."""
    kind = getattr(torch, dtype)
    x = case.inputs(dtype)[0]
    module = pair(case, kind)[1]
    expected = run(case, copy.deepcopy(module), x)
    for name, view in views(x).items():
        with_view = run(case, copy.deepcopy(module), view)
        try:
            assert_same(with_view, expected)
        except AssertionError as error:
            raise AssertionError(f"input {name}: {error}") from None
    for name in ("every second", "offset", "channels_last out of more"):

        def strided(y, name=name):
            dy = compare.incoming_gradient(y)
            return views(dy).get(name, dy)

        assert_same(run(case, copy.deepcopy(module), x, strided), expected)
    ones = run(case, copy.deepcopy(module), x, torch.ones_like)
    assert_same(run(case, copy.deepcopy(module), x, lambda y: y.new_ones(()).expand(y.shape)), ones)


def check_threads(case, threads, dtype="float32", layout="contiguous"):
    """Bitwise the same results with one thread, with two and with four."""
    module = case.build("fastnn").to(getattr(torch, dtype))
    x = case.inputs(dtype, layout)[0]
    runs = []
    for n in (1, 2, 4):
        with threads(n):
            torch.manual_seed(0)
            runs.append(run(case, copy.deepcopy(module), x))
    for other in runs[1:]:
        for name, tensor in runs[0].items():
            assert torch.equal(tensor, other[name]), f"{name} depends on the number of threads"


# --- special values --------------------------------------------------------------------------------------------------


def sprinkle(x, specials=(float("nan"), float("inf"), -float("inf"), -0.0, 0.0)):
    """A copy of x with special values spread over it."""
    x = x.clone()
    flat = x.view(-1)
    for i, value in enumerate(specials):
        flat[(i * 7 + 3) % flat.numel() :: 41] = value
    return x


def check_specials(case, x, signs=False):
    """NaN and infinities where torch or exact arithmetic has them, (with signs) torch's sign of zero, the rest close."""
    theirs, ours = pair(case, x.dtype)
    exact = run(case, copy.deepcopy(theirs).double(), x.double())
    got, expected = run(case, ours, x), run(case, theirs, x)
    theirs_y = expected["output 0"]
    for name, value in got.items():
        if value is not None and value.is_floating_point():
            right = torch.isclose(value, exact[name].to(value.dtype), rtol=1e-4, atol=1e-4, equal_nan=True)
            expected[name] = torch.where(right, value, expected[name])
    assert_same(got, expected, rtol=1e-4, atol=1e-4)
    if signs:
        y, expected_y = got["output 0"], theirs_y
        zero = (y == 0) & (expected_y == 0)
        assert torch.equal(torch.signbit(y[zero]), torch.signbit(expected_y[zero])), "sign of a zero output"


def check_raises(theirs, ours, match=None):
    """Both raise, the same type, or neither does; returns what ours returned."""
    try:
        theirs()
    except Exception as error:
        with pytest.raises(type(error), match=match):
            ours()
        return None
    return ours()


# --- derivatives -----------------------------------------------------------------------------------------------------


def strict_if(condition):
    return fastnn.strict() if condition else contextlib.nullcontext()


def as_function(module, call=None, seed=None):
    """(x, *parameters) -> outputs of floating dtype, for gradcheck; buffers are reset before each call."""
    names = [name for name, _ in module.named_parameters()]
    buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}

    def function(x, *parameters):
        if seed is not None:
            torch.manual_seed(seed)
        state = dict(zip(names, parameters, strict=True), **{k: v.clone() for k, v in buffers.items()})
        outputs = as_list(torch.func.functional_call(module, state, (x,), call or {}))
        return tuple(y for y in outputs if y.is_floating_point())

    return function


def check_derivatives(case, x=None, seed=None, second=True):
    """gradcheck and gradgradcheck in float64, over input and parameters; the first on kernels of ours."""
    module = case.build("fastnn").double()
    x = distinct(case.shape) if x is None else x
    inputs = [x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in module.parameters())]
    function = as_function(module, case.call, seed)
    with strict_if(has_kernels(case, "float64", "contiguous")):
        assert torch.autograd.gradcheck(function, inputs)
    if second:
        assert torch.autograd.gradgradcheck(function, inputs)


def distinct(shape, dtype=torch.float64):
    """Numbers further apart than the step of gradcheck, none close to a kink at 0, 1/2, 1, 3 or 6."""
    n = max(1, torch.Size(shape).numel())
    line = (
        torch.linspace(-3.7, 3.7, n, dtype=torch.float64)
        if n > 1
        else torch.tensor([0.7], dtype=torch.float64)
    )
    for kink in (-3, -1, -0.5, 0, 0.5, 1, 3):
        line = torch.where((line - kink).abs() < 1e-3, line + 3e-3, line)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return line[order][: torch.Size(shape).numel()].view(shape).to(dtype).clone()


# --- what every family is tested for -------------------------------------------------------------------------------


class Family:
    """Base of a class TestX; each test takes its cases from the list of its name."""

    parity_cases: tuple = ()
    views_cases: tuple = ()  # a few of each kind
    derivatives_cases: tuple = ()  # tiny
    threads_cases: tuple = ()  # large enough to be split
    without_second_derivative: tuple = ()  # in torch

    def test_parity(self, case, capability):
        for dtype in FLOATS:
            check_parity(case, dtype)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_layouts(self, case, dtype):
        # torch refuses channels_last of three dimensions without a batch
        unbatched = case.layer.startswith("MaxPool3d") and len(case.shape) == 4
        for layout in set(layouts_of(case)) - {"contiguous", "channels_last" if unbatched else ""}:
            check_parity(case, dtype, layout)

    def test_halves(self, case):
        for dtype in set(HALVES) & set(case.dtypes):
            check_parity(case, dtype)

    def test_views(self, case):
        for dtype in FLOATS:
            check_views(case, dtype)

    def test_derivatives(self, case, capability):
        check_derivatives(case, second=case.layer not in self.without_second_derivative)

    def test_threads(self, case, threads, capability):
        for layout in {"contiguous", "channels_last"} & set(layouts_of(case)):
            check_threads(case, threads, layout=layout)
