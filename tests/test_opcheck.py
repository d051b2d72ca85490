"""torch.library.opcheck for every op in torch.ops.fastnn: schema, meta kernel, autograd, compilation."""

import pytest
import torch
from torch.library import opcheck
from torch.testing._internal.optests.generate_tests import DEFAULT_TEST_UTILS

import fastnn

NAMESPACE = "fastnn::"
ALL = sorted(
    n.removeprefix(NAMESPACE) for n in torch._C._dispatch_get_all_op_names() if n.startswith(NAMESPACE)
)


def x(*shape, dtype=torch.float32, grad=True, last=False):
    t = torch.randn(shape, dtype=dtype)
    if last:
        t = t.contiguous(memory_format=torch.channels_last)
    return t.requires_grad_(grad)


def plain(*shape, **kwargs):
    return x(*shape, grad=False, **kwargs)


def windows(rank, kernel, stride=1, padding=0, *, dilation=1, mode=0):
    """The integers in which pooling ops carry their windows: rank, mode, then D, H, W of each."""
    missing = 3 - rank
    groups = ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    return [rank, mode, *(v for value, unit in groups for v in [unit] * missing + [value] * rank)]


def codes(shape):
    return torch.zeros(shape, dtype=torch.uint8)


def chain_sample(size, output_size, ints, p):
    """ints: norm, activation, pooling, count_include_pad, divisor, seed, offset, layout, residual, windows."""
    training, residual = ints[0] == 2, ints[8] == 1
    t, weight, bias = x(*size), x(3), x(3)
    var, mean = torch.var_mean(t.detach(), [0, *range(2, t.dim())], correction=0)
    invstd = (var + 1e-5).rsqrt()
    y = plain(*output_size) if residual else None
    coefficients = torch.stack([mean, weight.detach() * invstd, bias.detach()])
    kept = (y, None, coefficients, mean, invstd if training else var)
    return x(*output_size), t, weight, bias, *kept, ints, [1e-5, 0.0, 0.0, p], [True, True, True, residual]


CONV = ([1, 2], [1, 0], [1, 1], False, [0, 0], 1)
TRANSPOSED = ([2, 2], [1, 1], [1, 1], True, [1, 1], 1)

ATTENTION = (x(2, 4, 3, 4), x(2, 2, 5, 4), x(2, 2, 5, 4))  # queries with twice the heads of keys and values
CLASSES = torch.tensor([4, 0, 2])


def rnn_weights(gates, biases=True, projection=None, directions=1):
    """Of 3 features and 4 units."""
    states = projection or 4
    one = [(4 * gates, 3), (4 * gates, states), *[(4 * gates,)] * (2 * biases)]
    return [x(*size) for size in [*one, *([(projection, 4)] if projection else [])] * directions]


RNN = (x(5, 2, 3), x(1, 2, 4), None, rnn_weights(1), [], 0, False)
PACKED_LSTM = (
    x(7, 3), x(2, 3, 2), x(2, 3, 4), rnn_weights(4, projection=2, directions=2), [3, 3, 1], 2, True,
)  # fmt: skip
WANTED = [True] * 13


def one(value):
    """What a loss is divided by."""
    return torch.tensor(value, dtype=torch.float64)


ENTRIES, BAGS = torch.tensor([1, 4, 4, 0, 2, 1]), torch.tensor([0, 2, 2, 6])
PRIVATE = {
    "_activation": [
        (x(3, 5), 0, 0.0, 0.0),
        (x(3, 5, dtype=torch.float64), 2, 0.7, 0.0),
        (x(2, 3, 4, 5, last=True), 3, 0.0, 0.0),
    ],
    "_activation_backward": [(plain(3, 5), plain(3, 5), 0, 0.0, 0.0), (x(3, 5), x(3, 5), 4, 0.0, 0.0)],
    "_prelu": [(x(2, 3, 4), x(3)), (x(5), x(1))],
    "_prelu_backward": [(x(2, 3, 4), x(2, 3, 4), x(3))],
    "_glu": [(x(2, 4), 1), (x(4, 3, 2), 0)],
    "_glu_backward": [(x(2, 2), x(2, 4), 1)],
    "_softmax": [(x(3, 5), 1, False, False), (x(3, 5, 2), 0, True, False), (x(3, 5), 1, False, True)],
    "_softmax_backward": [
        (x(3, 5), plain(3, 5).softmax(1), 1, False, False),
        (x(3, 5), plain(3, 5).log_softmax(0), 0, True, False),
    ],
    "_cross_entropy": [
        (x(3, 5), CLASSES, None, 1, -100),
        (x(3, 5), CLASSES, torch.rand(5), 0, 2),
        (x(2, 5, 4), torch.tensor([[0, 2, 4, 1], [3, 2, 2, 0]]), None, 2, 2),
        (x(5), torch.tensor(2), None, 0, -100),
    ],
    "_cross_entropy_backward": [
        (
            x(),
            x(3, 5),
            CLASSES,
            torch.rand(5),
            plain(2, 3).abs(),
            one(3.0),
            1,
            -100,
        ),
        (
            plain(3),
            plain(3, 5),
            CLASSES,
            None,
            plain(2, 3).abs(),
            one(1.0),
            0,
            2,
        ),
    ],
    "_cross_entropy_soft": [
        (x(3, 5), CLASSES, None, 1, -100, 0.1),
        (x(3, 5), CLASSES, torch.rand(5), 0, 2, 0.1),
        (x(2, 5, 4), plain(2, 5, 4).abs(), torch.rand(5), 2, -100, 0.1),
        (x(5), plain(5).abs(), None, 0, -100, 0.0),
    ],
    "_cross_entropy_soft_backward": [
        (x(), x(3, 5), CLASSES, torch.rand(5), plain(2, 3).abs(), one(3.0), 1, -100, 0.1),
        (x(3), x(3, 5), plain(3, 5).abs(), None, plain(3, 3).abs(), one(1.0), 0, -100, 0.0),
    ],
    "_nll_loss": [
        (x(3, 5), CLASSES, None, 1, -100),
        (x(3, 5), CLASSES, torch.rand(5), 0, 2),
        (x(5), torch.tensor(2), None, 0, -100),
    ],
    "_nll_loss_backward": [
        (x(), plain(3, 5), CLASSES, torch.rand(5), one(3.0), 1, -100),
        (plain(3), plain(3, 5), CLASSES, None, one(1.0), 0, 2),
    ],
    "_pointwise_loss": [
        (x(3, 5), plain(3, 5), kind, reduction) for kind in (0, 1) for reduction in (0, 1, 2)
    ],
    "_pointwise_loss_backward": [
        (x(), x(3, 5), plain(3, 5), 0, 1),
        (plain(3, 5), plain(3, 5), plain(3, 5), 1, 0),
    ],
    "_weighted_loss": [
        (x(3, 5), plain(3, 5), plain(3, 1), plain(5), 1, 1),
        (x(3, 5), plain(3, 5), plain(3, 5), None, 0, 1),
        (x(3, 5), plain(3, 5), None, plain(5), 1, 0),
    ],
    "_weighted_loss_backward": [
        (plain(3, 5), plain(3, 5), plain(3, 5), None, plain(5), 1, 0),
        (x(), x(3, 5), plain(3, 5), plain(5), plain(5), 1, 1),
        (x(), x(3, 5), plain(3, 5), plain(3, 5), None, 0, 1),
    ],
    "_embedding": [
        (x(5, 3), ENTRIES.view(2, 3), -1, False),
        (x(5, 3), torch.tensor(2, dtype=torch.int32), 2, True),
    ],
    "_embedding_backward": [
        (plain(2, 3, 4), ENTRIES.view(2, 3), 5, 4, False),
        (x(6, 4), ENTRIES, 5, -1, True),
    ],
    "_embedding_bag": [
        (x(5, 3), ENTRIES, BAGS, x(6), 0, 2, False),
        (x(5, 3), ENTRIES, BAGS, None, 1, -1, True),
        (x(5, 3), ENTRIES, BAGS, None, 2, 2, False),
    ],
    "_embedding_bag_backward": [
        (x(3, 4), x(5, 4), ENTRIES, BAGS, x(6), codes((0,)).long(), 5, 0, 2, True, [True, True]),
        (plain(3, 4), None, ENTRIES, BAGS, None, torch.tensor([2, 0, 4]), 5, 1, -1, False, [True, False]),
        (x(3, 4), None, ENTRIES, BAGS, None, codes((3, 4)).long(), 5, 2, -1, False, [True, False]),
    ],
    "_dropout": [(x(40, 5), 0.5, 2.0, 0.0, 0.0, 1, 7, 0), (x(4, 5, 6), 0.5, 2.0, 0.0, 0.0, 6, 7, 0)],
    "_dropout_by": [],  # these three have no CPU kernel: test_cuda_memory_bound.py
    "_rrelu_by": [],
    "_random_stream": [],
    "_attention": [
        (*ATTENTION, None, 0.0, True, 0.5, 0, 0),
        (*ATTENTION, torch.rand(2, 1, 3, 5) > 0.3, 0.3, False, 0.5, 7, 0),
        (x(1, 2, 3, 4), x(1, 2, 5, 4), x(1, 2, 5, 3), plain(3, 5), 0.0, False, 0.5, 0, 0),
        (
            *(t.transpose(2, 3) for t in (x(1, 2, 4, 3), x(1, 2, 4, 3), x(1, 2, 4, 3))),
            None,
            0.0,
            False,
            0.5,
            0,
            0,
        ),
    ],
    "_attention_backward": [
        (
            x(2, 4, 3, 4),
            *ATTENTION,
            mask,
            plain(2, 4, 3, 4),
            plain(2, 4, 3),
            p,
            False,
            0.5,
            7,
            0,
            [True, True, True],
        )
        for mask, p in ((None, 0.0), (torch.rand(3, 5) > 0.3, 0.3))
    ],
    "_attention_packed": [
        (x(2, 3, 12), None, 2, True, 0.0, True, 0.5, 0, 0),
        (x(3, 2, 12), torch.rand(2, 1, 3, 3) > 0.3, 2, False, 0.3, False, 0.5, 7, 0),
    ],
    "_attention_packed_backward": [
        (
            x(2, 3, 4),
            x(2, 3, 12),
            mask,
            plain(2, 3, 4),
            plain(2, 2, 3),
            2,
            True,
            p,
            False,
            0.5,
            7,
            0,
        )
        for mask, p in ((None, 0.0), (torch.rand(3, 3) > 0.3, 0.3))
    ],
    "_relu_dropout": [(x(40, 5), 0.3, 7, 0)],
    "_relu_dropout_backward": [(x(4, 5), plain(4, 5), 0.3), (plain(4, 5), plain(4, 5), 0.3)],
    "_rnn_layer": [
        (*RNN, True),
        (*PACKED_LSTM, True),
        (x(5, 2, 3), None, None, rnn_weights(3, biases=False), [], 3, False, False),
    ],
    "_rnn_layer_backward": [
        (x(5, 2, 4), None, None, *RNN[:4], plain(5, 2, 4).tanh(), plain(0), *RNN[4:], WANTED),
        (
            plain(7, 4),
            plain(2, 3, 2),
            plain(2, 3, 4),
            *(t.detach() for t in PACKED_LSTM[:3]),
            [w.detach() for w in PACKED_LSTM[3]],
            plain(7, 4),
            plain(2, 7, 20).sigmoid(),
            *PACKED_LSTM[4:],
            WANTED,
        ),
    ],
    "_rrelu": [(x(40, 5), 0.1, 0.3, 7, 0), (x(2, 3, 4, 5, last=True), -0.1, 0.3, 7, 9)],
    "_rrelu_backward": [
        (x(40, 5), plain(40, 5), 0.1, 0.3, 7, 0),
        (x(2, 3, 4, 5), x(2, 3, 4, 5, last=True), -0.1, 0.3, 7, 9),
    ],
    "_batch_norm_train": [
        (x(4, 3, 5), x(3), x(3), torch.zeros(3), torch.ones(3), 0.1, 1e-5),
        (x(4, 3, 5, 6, last=True), x(3), x(3), torch.zeros(3), torch.ones(3), 0.1, 1e-5),
        (x(4, 3, 5), None, None, None, None, 0.1, 1e-5),
    ],
    "_batch_norm_eval": [
        (x(4, 3, 5), x(3), x(3), torch.zeros(3), torch.ones(3), 1e-5),
        (x(4, 3, 5), None, None, torch.zeros(3), torch.ones(3), 1e-5),
    ],
    "_batch_norm_backward": [
        (x(4, 3, 5), x(4, 3, 5), x(3), torch.zeros(3), torch.ones(3), training, 1e-5, [True, True, True])
        for training in (True, False)
    ],
    "_chain_backward": [
        chain_sample((4, 3, 4, 4), (4, 3, 2, 2), [2, 0, 2, 1, 0, 7, 8, 0, 0, *windows(2, 2, 2)], 0.5),
        chain_sample((4, 3, 5), (4, 3, 5), [1, 0, 0, 0, 0, 0, 0, 0, 1, *[0] * 14], 0.0),
    ],
    "_layer_norm": [
        (x(4, 3, 5), 1, x(5), x(5), 1e-5, False),
        (x(4, 3, 5), 2, x(3, 5), None, 1e-5, True),
        (x(2, 3, 4, 5, last=True), 2, None, None, 1e-5, True),
        (x(5), 1, None, None, 1e-5, False),
    ],
    "_layer_norm_backward": [
        (x(4, 3, 5), x(4, 3, 5), 1, x(5), plain(4, 3), plain(4, 3), 1e-5, False, [True, True, True]),
        (x(4, 3, 5), x(4, 3, 5), 2, None, plain(0), plain(4), 1e-5, True, [True, False, False]),
    ],
    "_group_norm": [
        (x(4, 6, 5), 2, x(6), x(6), 1e-5),
        (x(2, 6, 4, 5, last=True), 3, x(6), None, 1e-5),
        (x(4, 6, 5), 6, None, None, 1e-5),
    ],
    "_group_norm_backward": [
        (x(4, 6, 5), x(4, 6, 5), 2, x(6), plain(4, 2), plain(4, 2), 1e-5, [True, True, True]),
        (
            plain(2, 6, 4, 5),
            plain(2, 6, 4, 5, last=True),
            3,
            None,
            plain(2, 3),
            plain(2, 3),
            1e-5,
            [True, False, True],
        ),
    ],
    "_instance_norm": [(x(4, 3, 5), x(3), None, torch.zeros(3), torch.ones(3), 0.1, 1e-5)],
    "_conv": [
        (x(2, 3, 6, 7), x(4, 3, 3, 2), x(4), *CONV),
        (x(2, 3, 6, 7, last=True), x(4, 3, 3, 2), None, *CONV),
        (x(2, 3, 6, 7), x(3, 4, 3, 3), x(4), *TRANSPOSED),
    ],
    "_conv_backward": [
        (x(2, 4, 6, 3), x(2, 3, 6, 7), x(4, 3, 3, 2), *CONV, [True, True, True]),
        (plain(2, 4, 12, 14), plain(2, 3, 6, 7), plain(3, 4, 3, 3), *TRANSPOSED, [True, True, False]),
    ],
    "_linear": [(x(3, 5), x(4, 5), x(4)), (x(2, 3, 5), x(4, 5), None), (x(5), x(4, 5), x(4))],
    "_linear_backward": [
        (x(3, 4), x(3, 5), x(4, 5), [True, True, True]),
        (plain(3, 4), None, plain(4, 5), [True, False, False]),
    ],
    "_avg_pool": [(x(2, 3, 6, 7), windows(2, 2, 2), True, 0), (x(2, 3, 9), windows(1, 3, 2, 1), False, 0)],
    "_avg_pool_backward": [(x(2, 3, 3, 3), [2, 3, 6, 7], False, windows(2, 2, 2), True, 0)],
    "_max_pool": [
        (x(2, 3, 6, 7), windows(2, 2, 2), True),
        (x(2, 3, 6, 7, last=True), windows(2, 3, 2, 1), True),
        (plain(2, 3, 9), windows(1, 2, 2), False),
    ],
    "_max_pool_backward": [(x(2, 3, 3, 3), codes((2, 3, 3, 3)), [2, 3, 6, 7], False, windows(2, 2, 2))],
    "_max_pool_indices": [(codes((2, 3, 3, 3)), [2, 3, 6, 7], windows(2, 2, 2))],
}


DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def conv_samples(n, transposed):
    image, weight = x(2, 4, *[7] * n), x(4, 2, *[3] * n)
    return [
        ((image, weight, x(4)), {"stride": [2] * n, "padding": [1] * n, "groups": 2}),
        ((x(2, 3, *[5] * n), x(3, 3, *[3] * n)), {}),
    ]


FRONT = {
    "linear": [((x(3, 5), x(4, 5), x(4)), {})],
    **{f"conv{n}d": conv_samples(n, False) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": conv_samples(n, True) for n in (1, 2, 3)},
    **{
        f"{kind}_pool{n}d": [((x(2, 3, *[7] * n), [2] * n), {})] for kind in ("max", "avg") for n in (1, 2, 3)
    },
    **{f"max_pool{n}d_with_indices": [((x(2, 3, *[7] * n), [2] * n), {})] for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": [((x(2, 3, *[7] * n), [2] * n), {})] for n in (1, 2, 3)},
    **{
        f"adaptive_max_pool{n}d{tail}": [((x(2, 3, *[7] * n), [2] * n), {})]
        for n in (1, 2, 3)
        for tail in ("", "_with_indices")
    },
    "batch_norm": [
        ((x(4, 3, 5), torch.zeros(3), torch.ones(3), x(3), x(3), training, 0.1, 1e-5), {})
        for training in (True, False)
    ],
    "layer_norm": [((x(4, 3, 5), [3, 5], x(3, 5), x(3, 5), 1e-5), {})],
    "rms_norm": [((x(4, 3, 5), [5], x(5), None), {})],
    "group_norm": [((x(4, 6, 5), 2, x(6), x(6), 1e-5), {})],
    "instance_norm": [
        ((x(4, 3, 5), torch.zeros(3), torch.ones(3), x(3), x(3), use_input_stats, 0.1, 1e-5), {})
        for use_input_stats in (True, False)
    ],
    "prelu": [((x(2, 3, 4), x(3)), {})],
    "glu": [((x(2, 4), 1), {})],
    "softmax": [((x(2, 4), 1), {})],
    "log_softmax": [((x(2, 4), 1), {})],
    "softmin": [((x(2, 4), 1), {})],
    "embedding": [((x(5, 3), ENTRIES.view(2, 3), 1, True, False), {})],
    "embedding_bag": [
        ((x(5, 3), ENTRIES, BAGS[:-1], False, 0, x(6), False, 2), {}),
        ((x(5, 3), ENTRIES.view(2, 3), None, False, 1, None, False, -1), {}),
        ((x(5, 3), ENTRIES, BAGS, False, 2, None, True, -1), {}),
    ],
    "mse_loss": [((x(3, 5), plain(3, 5), None, 1), {}), ((x(3, 5), plain(3, 5), torch.rand(3, 5), 1), {})],
    "nll_loss": [((x(3, 5), CLASSES, None, 1, -100), {})],
    "binary_cross_entropy_with_logits": [
        ((x(3, 5), plain(3, 5), None, None, 1), {}),
        ((x(3, 5), plain(3, 5), None, torch.rand(5), 0), {}),
    ],
    "cross_entropy": [
        ((x(3, 5), CLASSES, None, 1, -100, 0.0), {}),
        ((x(3, 5), CLASSES, None, 1, -100, 0.1), {}),
        ((x(3, 5), plain(3, 5).abs(), None, 1, -100, 0.0), {}),
    ],
    "packed_attention": [
        ((x(2, 5, 12), None, 2, True, 0.0, True), {}),
        ((x(5, 2, 12), torch.rand(5, 5) > 0.2, 2, False, 0.0, False), {}),
    ],
    "relu_dropout": [((x(2, 3, 4), 0.5, True), {})],
    "scaled_dot_product_attention": [
        ((x(2, 3, 5, 4), x(2, 3, 6, 4), x(2, 3, 6, 4), None, 0.0, True, None, False), {}),
        ((x(2, 4, 5, 4), x(2, 2, 6, 4), x(2, 2, 6, 4), torch.rand(5, 6) > 0.2, 0.0, False, 0.3, True), {}),
    ],
    **{  # not packed: torch reads the batch sizes, which a fake tensor doesn't have
        name: [
            ((x(5, 2, 3), None, hx, rnn_weights(gates), True, 1, 0.0, False, False, False), {}),
        ]
        for name, gates, hx in (
            ("rnn_tanh", 1, [x(1, 2, 4)]),
            ("rnn_relu", 1, []),
            ("gru", 3, [x(1, 2, 4)]),
            ("lstm", 4, []),
        )
    },
    **{
        f"{name}_cell": [((x(2, 3), hx, *rnn_weights(gates)), {})]
        for name, gates, hx in (
            ("rnn_tanh", 1, x(2, 4)),
            ("rnn_relu", 1, None),
            ("gru", 3, x(2, 4)),
            ("lstm", 4, [x(2, 4), x(2, 4)]),
        )
    },
    "threshold": [((x(2, 4), 0.1, 2.0), {})],
    "rrelu": [((x(2, 3, 4), 0.1, 0.3), {})],
    **{name: [((x(2, 3, 4), 0.5, True), {})] for name in DROPOUTS},
}
RANDOM = (*DROPOUTS, "rrelu", "relu_dropout")


def front_samples(name):
    """By default an activation: one tensor, the rest by its defaults."""
    return FRONT.get(name, [((x(2, 3, 4),), {})])


def overload(name):
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.fastnn, packet), which or "default")


def test_every_private_op_has_samples():
    private = {n for n in ALL if n.startswith("_")}
    assert private == set(PRIVATE), "the list above is not that of the extension"
    for name, op, _, _ in fastnn._C.op_table():
        assert op in private, f"{name} names {op}"


PRIVATE_CASES = [(name, i) for name, samples in PRIVATE.items() for i in range(len(samples))]


@pytest.mark.parametrize(("name", "i"), PRIVATE_CASES, ids=str)
def test_private(name, i):
    checks = tuple(DEFAULT_TEST_UTILS)
    if name == "_conv_backward" and torch.__version__.startswith(("2.11.", "2.12.")):
        # torch's own second derivative of a convolution takes no symbolic sizes there
        checks = tuple(check for check in checks if check != "test_aot_dispatch_dynamic")
    opcheck(overload(name), PRIVATE[name][i], test_utils=checks)


FRONT_NAMES = [n for n in ALL if not n.startswith("_") and not n.split(".")[0].endswith("_")]


@pytest.mark.parametrize("name", FRONT_NAMES)
def test_front(name):
    base = name.split(".")[0]
    # Two runs of a random op differ, so what compares values is left out.
    checks = {"test_utils": ("test_schema", "test_faketensor")} if base in RANDOM else {}
    for args, kwargs in front_samples(base):
        opcheck(overload(name), args, kwargs, **checks)


@pytest.mark.parametrize("name", [n for n in ALL if n.split(".")[0].endswith("_")])
def test_inplace(name):
    base = name.split(".")[0].removesuffix("_")
    (args, kwargs) = front_samples(base)[0]
    first = args[0].detach().clone()
    args = (first, *args[1:])
    opcheck(overload(name), args, kwargs, test_utils=("test_schema",))
    y = overload(name)(*args, **kwargs)
    assert y.data_ptr() == first.data_ptr()


@pytest.mark.parametrize("name", FRONT_NAMES)
def test_tags(name):
    assert torch.Tag.pt2_compliant_tag in overload(name).tags


def test_meta_kernels_agree_with_the_real_ones():
    """Shape, strides and dtype, for every private op and sample."""
    for name, samples in PRIVATE.items():
        for arguments in samples:

            def to(value, device):
                if isinstance(value, list):
                    return [to(v, device) for v in value]
                return value.detach().to(device) if isinstance(value, torch.Tensor) else value

            real = overload(name)(*(to(a, "cpu") for a in arguments))
            meta = overload(name)(*(to(a, "meta") for a in arguments))
            for a, b in zip(flat(real), flat(meta), strict=True):
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype), name


def flat(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for o in outputs if o is not None for tensor in flat(o)]
