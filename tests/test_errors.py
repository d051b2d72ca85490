"""Bad input: torch's type of exception, torch's words or better ones that name the argument; nothing half written."""

import copy
import warnings

import pytest
import torch

import fastnn
from fastnn import _C

T = torch.randn
META = {"device": "meta"}

# what, call of a library nn: every one raises in torch
BAD = {
    # shapes
    "linear: features": lambda nn: nn.Linear(5, 3)(T(2, 4)),
    "linear: scalar": lambda nn: nn.Linear(5, 3)(T(())),
    "linear: bias": lambda nn: nn.functional.linear(T(2, 5), T(3, 5), T(4)),
    "linear: weight of three dimensions": lambda nn: nn.functional.linear(T(2, 5), T(3, 5, 1)),
    "conv: channels": lambda nn: nn.Conv2d(3, 4, 3)(T(1, 2, 8, 8)),
    "conv: dimensions": lambda nn: nn.Conv2d(3, 4, 3)(T(3, 8)),
    "conv: too many dimensions": lambda nn: nn.Conv2d(3, 4, 3)(T(1, 3, 8, 8, 8)),
    "conv: kernel larger than input": lambda nn: nn.Conv2d(3, 4, 5)(T(1, 3, 4, 4)),
    "conv: kernel larger than padded input": lambda nn: nn.Conv1d(3, 4, 7, padding=1)(T(1, 3, 4)),
    "conv: dilated kernel larger than input": lambda nn: nn.Conv2d(3, 4, 3, dilation=4)(T(1, 3, 8, 8)),
    "conv: empty space": lambda nn: nn.Conv2d(3, 4, 3)(T(1, 3, 0, 8)),
    "conv: groups": lambda nn: nn.Conv2d(3, 4, 3, groups=2),
    "conv: groups of outputs": lambda nn: nn.Conv2d(4, 3, 3, groups=2),
    "conv: zero groups": lambda nn: nn.Conv2d(4, 4, 3, groups=0),
    "conv: padding mode": lambda nn: nn.Conv2d(3, 4, 3, padding_mode="mirror"),
    "conv: padding word": lambda nn: nn.Conv2d(3, 4, 3, padding="full"),
    "conv: strided same": lambda nn: nn.Conv2d(3, 4, 3, padding="same", stride=2),
    "conv: bias": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), T(5)),
    "conv: weight dimensions": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3)),
    "conv: negative padding": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), padding=-1),
    "conv: zero stride": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), stride=0),
    "conv: negative stride": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), stride=-1),
    "conv: zero dilation": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), dilation=0),
    "conv: stride of three": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), stride=(1, 1, 1)),
    "conv: functional groups": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), groups=2),
    "conv: weight of no channels": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 0, 3, 3)),
    "transposed: channels": lambda nn: nn.ConvTranspose2d(3, 4, 3)(T(1, 2, 8, 8)),
    "transposed: output padding": lambda nn: nn.ConvTranspose2d(3, 4, 3, output_padding=1)(T(1, 3, 4, 4)),
    "transposed: output size": lambda nn: nn.ConvTranspose2d(3, 4, 3, stride=2)(
        T(1, 3, 4, 4), output_size=(20, 20)
    ),
    "transposed: output size of three": lambda nn: nn.ConvTranspose2d(3, 4, 3)(
        T(1, 3, 4, 4), output_size=(6, 6, 6)
    ),
    "transposed: padding": lambda nn: nn.ConvTranspose1d(3, 4, 2, padding=8)(T(1, 3, 4)),
    "max pool: dimensions": lambda nn: nn.MaxPool2d(2)(T(4, 4)),
    "max pool: padding": lambda nn: nn.MaxPool2d(2, padding=2)(T(1, 1, 8, 8)),
    "max pool: negative padding": lambda nn: nn.MaxPool2d(2, padding=-1)(T(1, 1, 8, 8)),
    "max pool: window larger than input": lambda nn: nn.MaxPool2d(9)(T(1, 1, 8, 8)),
    "max pool: zero stride": lambda nn: nn.functional.max_pool2d(T(1, 1, 8, 8), 2, stride=0),
    "max pool: zero window": lambda nn: nn.MaxPool2d(0)(T(1, 1, 8, 8)),
    "max pool: zero dilation": lambda nn: nn.MaxPool2d(2, dilation=0)(T(1, 1, 8, 8)),
    "max pool: empty space": lambda nn: nn.MaxPool2d(2)(T(1, 1, 0, 8)),
    "max pool: empty channels": lambda nn: nn.MaxPool2d(2)(T(1, 0, 8, 8)),
    "max pool: window of three": lambda nn: nn.MaxPool2d((2, 2, 2))(T(1, 1, 8, 8)),
    "max pool 1d: window": lambda nn: nn.MaxPool1d(9)(T(1, 1, 8)),
    "max pool 3d: dimensions": lambda nn: nn.MaxPool3d(2)(T(1, 4, 4)),
    "average pool: dimensions": lambda nn: nn.AvgPool2d(2)(T(4, 4)),
    "average pool: padding": lambda nn: nn.AvgPool2d(2, padding=2)(T(1, 1, 8, 8)),
    "average pool: negative padding": lambda nn: nn.AvgPool2d(2, padding=-1)(T(1, 1, 8, 8)),
    "average pool: window larger than input": lambda nn: nn.AvgPool2d(9)(T(1, 1, 8, 8)),
    "average pool: divisor": lambda nn: nn.AvgPool2d(2, divisor_override=0)(T(1, 1, 8, 8)),
    "average pool: zero window": lambda nn: nn.AvgPool2d(0)(T(1, 1, 8, 8)),
    "average pool: empty space": lambda nn: nn.AvgPool2d(2)(T(1, 1, 0, 8)),
    "adaptive: dimensions": lambda nn: nn.AdaptiveAvgPool2d(2)(T(4, 4)),
    "adaptive: negative size": lambda nn: nn.AdaptiveAvgPool2d(-1)(T(1, 1, 4, 4)),
    "adaptive: empty space": lambda nn: nn.AdaptiveMaxPool2d(2)(T(1, 1, 0, 4)),
    "adaptive: size of three": lambda nn: nn.AdaptiveMaxPool2d((2, 2, 2))(T(1, 1, 4, 4)),
    "unpool: index": lambda nn: nn.MaxUnpool2d(2)(T(1, 1, 2, 2), torch.full((1, 1, 2, 2), 99)),
    "unpool: shape of indices": lambda nn: nn.MaxUnpool2d(2)(
        T(1, 1, 2, 2), torch.zeros(1, 1, 2, 3, dtype=torch.long)
    ),
    "batch norm: channels": lambda nn: nn.BatchNorm2d(3)(T(2, 4, 5, 5)),
    "batch norm: channels in eval": lambda nn: nn.BatchNorm2d(3).eval()(T(2, 4, 5, 5)),
    "batch norm: dimensions": lambda nn: nn.BatchNorm2d(3)(T(2, 3)),
    "batch norm 1d: dimensions": lambda nn: nn.BatchNorm1d(3)(T(2, 3, 4, 4)),
    "batch norm 3d: dimensions": lambda nn: nn.BatchNorm3d(3)(T(2, 3, 4, 4)),
    "batch norm: one value": lambda nn: nn.BatchNorm1d(3)(T(1, 3)),
    "batch norm: one pixel": lambda nn: nn.BatchNorm2d(3)(T(1, 3, 1, 1)),
    "batch norm: weight": lambda nn: nn.functional.batch_norm(
        T(2, 3, 4), None, None, weight=T(4), training=True
    ),
    "batch norm: no statistics": lambda nn: nn.functional.batch_norm(T(2, 3, 4), None, None, training=False),
    "batch norm: mean alone": lambda nn: nn.functional.batch_norm(
        T(2, 3, 4), torch.zeros(3), None, training=False
    ),
    "layer norm: shape": lambda nn: nn.LayerNorm(5)(T(2, 4)),
    "layer norm: dimensions": lambda nn: nn.LayerNorm((3, 4))(T(4)),
    "layer norm: weight": lambda nn: nn.functional.layer_norm(T(2, 4), (4,), T(3)),
    "layer norm: bias": lambda nn: nn.functional.layer_norm(T(2, 4), (4,), T(4), T(1, 4)),
    "layer norm: no shape": lambda nn: nn.functional.layer_norm(T(2, 4), ()),
    "rms norm: shape": lambda nn: nn.RMSNorm(5)(T(2, 4)),
    "rms norm: weight": lambda nn: nn.functional.rms_norm(T(2, 4), (4,), T(3)),
    "group norm: channels": lambda nn: nn.GroupNorm(2, 4)(T(2, 6, 5)),
    "group norm: groups": lambda nn: nn.GroupNorm(4, 6),
    "group norm: groups of the input": lambda nn: nn.functional.group_norm(T(2, 6, 5), 4),
    "group norm: no groups": lambda nn: nn.functional.group_norm(T(2, 6, 5), 0),
    "group norm: negative groups": lambda nn: nn.functional.group_norm(T(2, 6, 5), -2),
    "group norm: dimensions": lambda nn: nn.functional.group_norm(T(6), 2),
    "group norm: one value": lambda nn: nn.GroupNorm(6, 6)(T(1, 6)),
    "instance norm: channels": lambda nn: nn.InstanceNorm2d(3, affine=True)(T(2, 4, 5, 5)),
    "instance norm: dimensions": lambda nn: nn.InstanceNorm2d(3)(T(2, 3)),
    "instance norm: one pixel": lambda nn: nn.InstanceNorm2d(3)(T(2, 3, 1, 1)),
    "instance norm: statistics": lambda nn: nn.functional.instance_norm(T(2, 3, 4), T(4), T(4)),
    "instance norm: mean alone": lambda nn: nn.functional.instance_norm(
        T(2, 3, 4), torch.zeros(3), None, use_input_stats=False
    ),
    "prelu: weights": lambda nn: nn.PReLU(3)(T(2, 4)),
    "prelu: weight of two dimensions": lambda nn: nn.functional.prelu(T(2, 3), T(1, 3)),
    "glu: odd": lambda nn: nn.GLU()(T(2, 3)),
    "glu: dimension": lambda nn: nn.GLU(5)(T(2, 4)),
    "softmax: dimension": lambda nn: nn.Softmax(3)(T(2, 4)),
    "log softmax: dimension": lambda nn: nn.LogSoftmax(-4)(T(2, 4)),
    "gelu: approximation": lambda nn: nn.GELU(approximate="cubic")(T(2, 4)),
    "rrelu: bounds": lambda nn: nn.functional.rrelu(T(2, 4), 0.5, 0.1, training=True),
    "hardtanh: bounds": lambda nn: nn.Hardtanh(1.0, -1.0),
    "softshrink: negative": lambda nn: nn.Softshrink(-1.0)(T(2, 4)),
    "dropout: probability": lambda nn: nn.functional.dropout(T(2, 4), 1.5),
    # dtypes
    "linear: mixed dtypes": lambda nn: nn.Linear(5, 3)(T(2, 5).double()),
    "linear: integers": lambda nn: nn.Linear(5, 3)(torch.ones(2, 5, dtype=torch.long)),
    "conv: mixed dtypes": lambda nn: nn.Conv2d(3, 4, 3)(T(1, 3, 8, 8).double()),
    "conv: mixed with half": lambda nn: nn.Conv2d(3, 4, 3)(T(1, 3, 8, 8).bfloat16()),
    "conv: integers": lambda nn: nn.Conv2d(3, 4, 3)(torch.ones(1, 3, 8, 8, dtype=torch.long)),
    "conv: bias of another dtype": lambda nn: nn.functional.conv2d(
        T(1, 3, 8, 8), T(4, 3, 3, 3), T(4).double()
    ),
    "batch norm: integers": lambda nn: nn.BatchNorm1d(3)(torch.ones(2, 3, dtype=torch.long)),
    "batch norm: mixed dtypes": lambda nn: nn.BatchNorm1d(3)(T(4, 3).double()),
    "layer norm: integers": lambda nn: nn.LayerNorm(3)(torch.ones(2, 3, dtype=torch.long)),
    "layer norm: mixed dtypes": lambda nn: nn.LayerNorm(3)(T(4, 3).double()),
    "group norm: mixed dtypes": lambda nn: nn.GroupNorm(1, 3)(T(4, 3).double()),
    "softmax: integers": lambda nn: nn.Softmax(0)(torch.ones(3, dtype=torch.long)),
    "elu: integers": lambda nn: nn.ELU()(torch.ones(3, dtype=torch.long)),
    "adaptive: integers": lambda nn: nn.AdaptiveAvgPool2d(2)(torch.ones(1, 1, 4, 4, dtype=torch.long)),
    # devices
    "linear: weight on meta": lambda nn: nn.Linear(5, 3, **META)(T(2, 5)),
    "batch norm: input on meta": lambda nn: nn.functional.batch_norm(
        T(2, 3), torch.zeros(3, **META), torch.ones(3, **META)
    ),
    "prelu: weight on meta": lambda nn: nn.PReLU(**META)(T(2, 5)),
    # not tensors
    "linear: list": lambda nn: nn.Linear(2, 3)([1.0, 2.0]),
    "linear: None": lambda nn: nn.Linear(2, 3)(None),
    "linear: weight": lambda nn: nn.functional.linear(T(2, 5), "weight"),
    "conv: None": lambda nn: nn.Conv2d(3, 4, 3)(None),
    "conv: stride word": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), stride="two"),
    "conv: stride fraction": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), stride=1.5),
    "max pool: number": lambda nn: nn.MaxPool2d(2)(3.0),
    "max pool: no window": lambda nn: nn.functional.max_pool2d(T(1, 1, 8, 8), None),
    "average pool: None": lambda nn: nn.AvgPool2d(2)(None),
    "batch norm: list": lambda nn: nn.BatchNorm1d(2)([[1.0, 2.0]]),
    "layer norm: None": lambda nn: nn.LayerNorm(2)(None),
    "layer norm: shape word": lambda nn: nn.functional.layer_norm(T(2, 4), "four"),
    "relu: None": lambda nn: nn.ReLU()(None),
    "gelu: number": lambda nn: nn.GELU()(1.0),
    "sigmoid: text": lambda nn: nn.Sigmoid()("x"),
    "elu: alpha": lambda nn: nn.ELU(alpha="one")(T(2)),
    "dropout: None": lambda nn: nn.Dropout(0.5)(None),
    "dropout: probability word": lambda nn: nn.functional.dropout(T(2), "half"),
    "too many arguments": lambda nn: nn.ReLU()(T(2), T(2)),
    "unknown argument": lambda nn: nn.functional.conv2d(T(1, 3, 8, 8), T(4, 3, 3, 3), pad=1),
}


def caught(call, nn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(nn)
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("what", BAD)
def test_same_exception(what):
    theirs, ours = caught(BAD[what], torch.nn), caught(BAD[what], fastnn)
    assert theirs is not None, "torch takes it: not a case for this list"
    assert type(ours) is type(theirs), f"{ours!r} instead of {theirs!r}"
    assert says_as_much(str(ours), str(theirs)), f"{ours} instead of {theirs}"


def says_as_much(ours, theirs):
    """torch's own sentence; or, where pybind11 or our module speaks, one that still names what is wrong."""
    first = theirs.splitlines()[0]
    return first in ours or any(
        word in ours for word in ("input", "weight", "incompatible", "argument", "supported")
    )


# Which of them torch refuses only in training or only with a gradient: nothing may crash in between.
@pytest.mark.parametrize("what", BAD)
def test_strict_mode_does_not_hide_the_error(what):
    """Inside strict the reason given is still torch's error, not the fallback."""
    with fastnn.strict():
        ours = caught(BAD[what], fastnn)
    assert type(ours) is type(caught(BAD[what], torch.nn))
    assert "fastnn.strict" not in str(ours)


def bad_batches():
    yield "channels", T(4, 5, 3, 3)
    yield "dimensions", T(4, 3)
    yield "integers", torch.ones(4, 3, 3, 3, dtype=torch.long)
    yield "one value", T(1, 3, 1, 1)
    yield "double", T(4, 3, 3, 3).double()


@pytest.mark.parametrize(("what", "x"), bad_batches(), ids=lambda v: v if isinstance(v, str) else "")
def test_running_statistics_stay(what, x):
    """A batch norm that refuses a batch has changed neither mean nor variance."""
    layer = fastnn.BatchNorm2d(3)
    layer(T(4, 3, 3, 3))
    before = copy.deepcopy(layer.state_dict())
    error = caught(lambda nn: layer(x), fastnn)
    assert error is not None
    for name in ("running_mean", "running_var"):
        assert torch.equal(layer.state_dict()[name], before[name]), name


@pytest.mark.parametrize("broken", ["running_var", "weight", "bias"])
def test_running_statistics_stay_when_another_is_wrong(broken):
    """The sizes of all are checked before the first is written."""
    tensors = {
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "weight": torch.ones(3),
        "bias": torch.ones(3),
    }
    tensors[broken] = torch.ones(2)
    mean = tensors["running_mean"]
    error = caught(lambda nn: nn.functional.batch_norm(T(4, 3, 5), training=True, **tensors), fastnn)
    assert error is not None and torch.equal(mean, torch.zeros(3))


def test_gradient_of_the_wrong_shape():
    for layer, x in (
        (fastnn.Linear(5, 3), T(2, 5)),
        (fastnn.Conv2d(3, 4, 3), T(1, 3, 8, 8)),
        (fastnn.MaxPool2d(2), T(1, 3, 8, 8).requires_grad_()),
    ):
        y = layer(x)
        with pytest.raises(RuntimeError, match=r"[Mm]ismatch|shape"):
            torch.autograd.grad(y, [x] if x.requires_grad else list(layer.parameters()), torch.ones(7))


def test_private_ops_check_their_arguments():
    """Called directly with sizes that do not fit they raise; they never read or write outside."""
    ops = torch.ops.fastnn
    calls = [
        lambda: ops._activation_backward(T(3), T(4), 0, 0.0, 0.0),
        lambda: ops._conv(T(1, 3, 8, 8), T(4, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        lambda: ops._conv(T(1, 3, 8, 8), T(4, 3, 9, 9), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        lambda: ops._layer_norm(T(2, 3), 1, T(2), None, 1e-5, False),
        lambda: ops._layer_norm(T(2, 3), 3, None, None, 1e-5, False),
        lambda: ops._layer_norm_backward(T(2, 3), T(2, 3), 1, None, T(3), T(2), 1e-5, False, [True] * 3),
        lambda: ops._group_norm(T(2, 6, 3), 4, None, None, 1e-5),
        lambda: ops._group_norm(T(2, 6, 3), 2, T(5), None, 1e-5),
        lambda: ops._group_norm_backward(T(2, 6, 3), T(2, 6, 3), 2, None, T(4), T(3), 1e-5, [True] * 3),
        lambda: ops._instance_norm(T(2, 6, 3), None, None, T(6), T(5), 0.1, 1e-5),
        lambda: ops._conv(T(1, 3, 8, 8), T(4, 3, 3, 3), T(3), [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    ]
    for call in calls:
        with pytest.raises(RuntimeError):
            call()


def test_arguments_of_bound_ops():
    """The functions of _C name the argument and what it got."""
    x = T(2, 3)
    for call, words in [
        (lambda: _C.relu([1.0]), r"relu\(\): argument 'input' must be Tensor, not list"),
        (lambda: _C.elu(x, "one"), r"elu\(\): argument 'alpha' must be float, not str"),
        (lambda: _C.softmax(x, 0.5), r"softmax\(\): argument 'dim' must be int, not float"),
        (lambda: _C.linear(x, x, 1), r"linear\(\): argument 'bias' must be Tensor or None, not int"),
        (lambda: _C.relu(x, x), r"relu\(\) takes 1 arguments, not 2"),
    ]:
        with pytest.raises(TypeError, match=words):
            call()
