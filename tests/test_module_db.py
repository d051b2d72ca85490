"""torch's own database of modules: our classes give what torch's give on its samples, forward and backward."""

import pytest
import torch
from support import as_list
from torch.testing._internal.common_modules import module_db

import fastnn
from fastnn.testing.compare import GRADIENT_FACTOR

INFOS = [
    info
    for info in module_db
    if getattr(fastnn, info.module_cls.__name__, info.module_cls) is not info.module_cls
]


def test_our_classes_are_in_the_database():
    assert len(INFOS) > 40


def samples(info, dtype, training):
    return info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)


def detached(value, dtype=None):
    """A copy with fresh leaves, so that gradients of the two sides stay apart; floating-point ones in `dtype`."""
    if isinstance(value, torch.Tensor):
        copy = value.detach().clone()
        copy = copy.to(dtype) if dtype and value.is_floating_point() else copy
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, (tuple, list)):
        return type(value)(detached(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: detached(v, dtype) for k, v in value.items()}
    return value


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, (tuple, list)) else []


def evaluate(cls, sample, dtype, training, state=None):
    construct, call = detached(sample.constructor_input.args), detached(sample.forward_input.args, dtype)
    keywords = detached(sample.forward_input.kwargs, dtype)
    torch.manual_seed(0)
    module = cls(*construct, **sample.constructor_input.kwargs).to(dtype).train(training)
    if state is not None:
        module.load_state_dict(state)
    if "Lazy" in cls.__name__:
        with torch.no_grad():
            module(*detached(call), **keywords)
        if state is None:
            torch.manual_seed(0)
    initial = {k: v.detach().clone() for k, v in module.state_dict().items()}
    outputs = as_list(module(*call, **keywords))
    y = outputs[0]
    inputs = [*leaves(call), *leaves(keywords), *module.parameters()]
    grads = torch.autograd.grad(y.sum() if not y.is_complex() else y.abs().sum(), inputs, allow_unused=True)
    return initial, [o.detach() for o in outputs], grads, dict(module.named_buffers())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_samples(info, dtype, training):
    theirs = info.module_cls
    ours = getattr(fastnn, theirs.__name__)
    lazy = theirs.__name__.startswith("Lazy")
    for sample in samples(info, dtype, training):
        state, outputs, grads, buffers = evaluate(theirs, sample, dtype, training)
        _, our_outputs, our_grads, our_buffers = evaluate(
            ours, sample, dtype, training, None if lazy else state
        )
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {}
        torch.testing.assert_close(our_outputs, outputs, equal_nan=True, **tolerance)
        torch.testing.assert_close(our_buffers, buffers, **tolerance)
        for i, (a, b) in enumerate(zip(our_grads, grads, strict=True)):
            assert (a is None) == (b is None)
            if a is None:
                continue
            try:
                torch.testing.assert_close(a, b, equal_nan=True, **tolerance)
            except AssertionError:
                # Long sums in float32 (the gradient of MultiheadAttention's in_proj_weight) leave the two sides further
                # from each other than that: then what counts is how far each is from float64.
                if dtype is not torch.float32:
                    raise
                exact = evaluate(theirs, sample, torch.float64, training, state)[2][i]
                error, torch_error = (a - exact).abs().max(), (b - exact).abs().max()
                assert error <= GRADIENT_FACTOR * torch_error, (
                    f"off by {error:.2g}, torch's by {torch_error:.2g}"
                )


@pytest.mark.parametrize(
    "info", [i for i in INFOS if i.module_error_inputs_func], ids=lambda info: info.module_cls.__name__
)
def test_error_samples(info):
    """The bad inputs that torch lists for its class raise the same type with the same text in ours."""
    ours = getattr(fastnn, info.module_cls.__name__)
    for bad in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
    ):
        sample = bad.module_error_input
        construct, call = sample.constructor_input, sample.forward_input
        with pytest.raises(bad.error_type, match=bad.error_regex):
            ours(*construct.args, **construct.kwargs)(*call.args, **call.kwargs)


CHANNELS_LAST = [i for i in INFOS if getattr(i, "module_memformat_affects_out", False)]


@pytest.mark.parametrize("info", CHANNELS_LAST, ids=lambda info: info.module_cls.__name__)
def test_memory_format(info):
    """Inputs and parameters in channels_last: the outputs are laid out as torch's."""
    for sample in samples(info, torch.float32, training=True):
        x = next((a for a in sample.forward_input.args if isinstance(a, torch.Tensor)), None)
        if x is None or x.dim() not in (4, 5):
            continue
        fmt = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        outputs = []
        for cls in (info.module_cls, getattr(fastnn, info.module_cls.__name__)):
            module = cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            module(x)
            if any(p.dim() == x.dim() for p in module.parameters()):
                module = module.to(memory_format=fmt)
            for arranged in (x, x.contiguous(memory_format=fmt)):
                outputs.append(as_list(module(arranged))[0])
        half = len(outputs) // 2
        assert [y.stride() for y in outputs[half:]] == [y.stride() for y in outputs[:half]]
