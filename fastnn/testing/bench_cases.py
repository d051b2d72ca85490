"""Bench cases: realistic sizes. Sizes are those at which torch's own cost was measured when fastnn was planned."""

from __future__ import annotations

from typing import Any

from fastnn.testing.cases import Case
from fastnn.testing.networks import packed_sizes

_FLOAT = ("float32",)
_PLANES = (
    20,
    48,
    60,
    60,
)  # 13.8 MB in float32: larger than a private cache, smaller than the memory's page faults


def _case(
    family: str,
    layer: str,
    shape: tuple[int, ...],
    *args: Any,
    train: bool = True,
    quick: bool = False,
    algorithm: str = "",
    random: bool = False,
    classes: int = 0,
    paired: bool = False,
    indices: int = 0,
    **kw: Any,
) -> Case:
    random |= layer.endswith("ropout") or layer in ("Dropout1d", "Dropout2d", "Dropout3d", "RReLU")
    return Case(
        family, layer, args, kw, shape=shape, dtypes=_FLOAT, train=train, random=random, algorithm=algorithm,
        classes=classes, paired=paired, indices=indices, quick=quick,
    )  # fmt: skip


def _linear() -> list[Case]:
    # rows, inputs, outputs
    sizes = [
        (1, 900, 300), (8, 512, 1000), (48, 640, 400), (200, 784, 512), (256, 512, 512), (64, 100, 100),
        (1024, 1024, 1024), (1500, 2000, 1700), (2048, 2048, 2048),
    ]  # fmt: skip
    quick = {(8, 512, 1000), (256, 512, 512), (1024, 1024, 1024)}
    return [_case("linear", "Linear", (m, k), k, n, quick=(m, k, n) in quick) for m, k, n in sizes]


def _conv() -> list[Case]:
    return [
        _case("conv", "Conv2d", (10, 96, 48, 48), 96, 96, 3, padding=1, quick=True, algorithm="winograd"),
        _case("conv", "Conv2d", (16, 64, 56, 56), 64, 64, 3, padding=1, algorithm="winograd"),
        _case("conv", "Conv2d", (16, 128, 28, 28), 128, 128, 3, padding=1, algorithm="winograd"),
        _case("conv", "Conv2d", (16, 256, 14, 14), 256, 256, 3, padding=1, algorithm="winograd"),
        _case("conv", "Conv2d", (9, 51, 37, 41), 51, 45, 3, padding=1, algorithm="winograd"),
        _case("conv", "Conv2d", (8, 64, 56, 56), 64, 128, 3, stride=2, padding=1),
        _case("conv", "Conv2d", (8, 48, 40, 40), 48, 48, 3, padding=2, dilation=2, algorithm="winograd"),
        _case("conv", "Conv2d", (8, 3, 160, 160), 3, 48, 7, stride=2, padding=3),
        _case("conv", "Conv2d", (100, 1, 28, 28), 1, 20, 5, quick=True),
        _case("conv", "Conv2d", (100, 20, 12, 12), 20, 64, 5),
        _case("conv", "Conv2d", (16, 64, 56, 56), 64, 256, 1),
        _case("conv", "Conv2d", (16, 96, 52, 52), 96, 96, 3, padding=1, groups=96, quick=True),
        _case("conv", "Conv2d", (16, 96, 52, 52), 96, 96, 3, stride=2, padding=1, groups=96),
        _case("conv", "Conv2d", (16, 64, 28, 28), 64, 64, 3, padding=1, groups=8),
        _case("conv", "Conv2d", (2, 4, 12, 12), 4, 8, 3, quick=True),
        _case("conv", "Conv1d", (16, 64, 400), 64, 128, 5, padding=2),
        _case("conv", "Conv3d", (4, 16, 16, 28, 28), 16, 32, 3, padding=1, algorithm="winograd"),
        _case("conv", "ConvTranspose2d", (8, 64, 28, 28), 64, 32, 4, stride=2, padding=1),
    ]


def _pooling() -> list[Case]:
    return [
        _case("pooling", "MaxPool2d", _PLANES, 2, quick=True),
        _case("pooling", "MaxPool2d", _PLANES, 3, stride=2, padding=1),
        _case("pooling", "MaxPool2d", (8, 32, 40, 40), 7, stride=1, padding=3),
        _case("pooling", "AvgPool2d", _PLANES, 2, quick=True),
        _case("pooling", "AvgPool2d", _PLANES, 3, stride=2, padding=1),
        _case("pooling", "AdaptiveAvgPool2d", (32, 512, 7, 7), 1),
        _case("pooling", "AdaptiveAvgPool2d", _PLANES, 7),
        _case("pooling", "AdaptiveMaxPool2d", _PLANES, 7),
        _case("pooling", "MaxPool1d", (64, 64, 1000), 2),
        _case("pooling", "MaxPool3d", (4, 16, 16, 56, 56), 2),
    ]


def _batchnorm() -> list[Case]:
    return [
        _case("batchnorm", "BatchNorm2d", _PLANES, 48, quick=True),
        _case("batchnorm", "BatchNorm2d", _PLANES, 48, train=False),
        _case("batchnorm", "BatchNorm2d", (2, 8, 12, 12), 8),
        _case("batchnorm", "BatchNorm1d", (512, 1024), 1024),
        _case("batchnorm", "BatchNorm3d", (4, 32, 16, 28, 28), 32),
    ]


def _normalization() -> list[Case]:
    return [
        _case("normalization", "LayerNorm", (4096, 768), 768, quick=True),
        _case("normalization", "LayerNorm", (8, 64), 64),
        _case("normalization", "LayerNorm", (32, 197, 192), 192),
        _case("normalization", "LayerNorm", (20, 48, 60, 60), (48, 60, 60)),
        _case("normalization", "RMSNorm", (4096, 768), 768),
        _case("normalization", "GroupNorm", _PLANES, 8, 48, quick=True),
        _case("normalization", "GroupNorm", (16, 256, 14, 14), 32, 256),
        _case("normalization", "GroupNorm", (2, 8, 12, 12), 4, 8),
        _case("normalization", "InstanceNorm2d", _PLANES, 48),
        _case("normalization", "InstanceNorm2d", _PLANES, 48, affine=True, track_running_stats=True),
        _case("normalization", "InstanceNorm2d", _PLANES, 48, track_running_stats=True, train=False),
        _case("normalization", "InstanceNorm1d", (64, 64, 1000), 64),
    ]


def _activation() -> list[Case]:
    names = [
        "ReLU", "LeakyReLU", "ELU", "Sigmoid", "Tanh", "ReLU6", "SELU", "CELU", "GELU", "SiLU", "Mish", "Softplus",
        "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "LogSigmoid", "PReLU", "RReLU",
        "Tanhshrink", "Softshrink", "Hardshrink",
    ]  # fmt: skip
    cases = [_case("activation", name, _PLANES, quick=name in ("ReLU", "ELU", "Tanh")) for name in names]
    cases += [
        _case("activation", "Threshold", _PLANES, 0.1, 20.0),
        _case("activation", "GELU", _PLANES, approximate="tanh"),
        _case("activation", "GLU", _PLANES, 1),
        _case("activation", "ReLU", (64, 100)),
        _case("activation", "ReLU", (128, 100, 1000)),
    ]
    return cases


def _softmax() -> list[Case]:
    return [
        _case("softmax", "Softmax", (3000, 900), -1, quick=True),
        _case("softmax", "LogSoftmax", (3000, 900), -1),
        _case("softmax", "Softmax", (8, 21, 64, 64), 1),
    ]


def _loss() -> list[Case]:
    return [
        _case("loss", "CrossEntropyLoss", (4096, 10000), classes=10000, quick=True),
        _case("loss", "CrossEntropyLoss", (128, 10), classes=10),
        _case("loss", "CrossEntropyLoss", (16, 21, 64, 64), classes=21),
        _case("loss", "CrossEntropyLoss", (4096, 1000), classes=1000, label_smoothing=0.1),
        _case("loss", "CrossEntropyLoss", (4096, 1000), paired=True),
        _case("loss", "NLLLoss", (4096, 1000), classes=1000),
        # Not 4-d: torch's own gradient refuses channels_last.
        _case("loss", "NLLLoss", (16, 21, 4096), classes=21),
        _case("loss", "MSELoss", (64, 100), paired=True),
        _case("loss", "MSELoss", _PLANES, paired=True),
        _case("loss", "BCEWithLogitsLoss", _PLANES, paired=True),
    ]


def _embedding() -> list[Case]:
    return [
        _case("embedding", "Embedding", (64, 200), 30000, 256, indices=30000, quick=True),
        _case("embedding", "Embedding", (32, 100), 97, 64, indices=97),
        _case("embedding", "Embedding", (8, 512), 5000, 768, indices=5000, padding_idx=0),
        _case("embedding", "EmbeddingBag", (512, 50), 50000, 64, indices=50000),
        _case("embedding", "EmbeddingBag", (512, 50), 50000, 64, indices=50000, mode="sum"),
        _case("embedding", "EmbeddingBag", (512, 50), 5000, 64, indices=5000, mode="max"),
    ]


def _dropout() -> list[Case]:
    return [
        _case("dropout", "Dropout", _PLANES, 0.3, quick=True),
        _case("dropout", "Dropout2d", _PLANES, 0.3),
        _case("dropout", "AlphaDropout", _PLANES, 0.3),
    ]


def _attention() -> list[Case]:
    encoder, size = (192, 6, 768), (12, 100, 192)
    return [
        _case("attention", "scaled_dot_product", (12, 100, 576), 6),
        _case("attention", "scaled_dot_product", (2, 512, 2304), 12),
        _case("attention", "scaled_dot_product", (2, 512, 2304), 12, is_causal=True),
        _case("attention", "scaled_dot_product", (1, 2048, 768), 4),
        _case("attention", "scaled_dot_product", (64, 16, 768), 8),
        _case("attention", "self_attention", size, 192, 6, batch_first=True, quick=True),
        _case("attention", "self_attention", (64, 50, 128), 128, 4, batch_first=True, causal=True),
        _case("attention", "self_attention", (4, 256, 512), 512, 8, batch_first=True, weights=True),
        _case("attention", "TransformerEncoderLayer", size, *encoder, 0.0, batch_first=True, quick=True),
        _case("attention", "TransformerEncoderLayer", size, *encoder, 0.1, batch_first=True, train=False),
        _case("attention", "TransformerEncoderLayer", size, *encoder, 0.1, batch_first=True, random=True),
    ]


def _rnn() -> list[Case]:
    # layer, input features, hidden units, sequences, steps
    sizes: list[tuple[str, int, int, int, int, dict[str, Any]]] = [
        ("RNN", 64, 96, 20, 60, {}),
        ("RNN", 128, 256, 32, 50, {}),
        ("RNN", 512, 512, 1, 50, {}),
        ("RNN", 64, 128, 64, 100, {"bidirectional": True}),
        ("RNN", 96, 64, 8, 200, {"num_layers": 2, "nonlinearity": "relu"}),
        ("GRU", 64, 96, 20, 60, {}),
        ("GRU", 400, 400, 24, 40, {}),
        ("GRU", 256, 256, 1, 100, {}),
        ("GRU", 64, 128, 64, 100, {"bidirectional": True}),
        ("GRU", 128, 128, 16, 50, {"num_layers": 2}),
        ("LSTM", 200, 200, 12, 80, {}),
        ("LSTM", 64, 64, 8, 10, {}),
        ("LSTM", 256, 256, 1, 100, {}),
        ("LSTM", 512, 512, 64, 20, {}),
        ("LSTM", 64, 128, 64, 100, {"bidirectional": True}),
        ("LSTM", 128, 128, 16, 50, {"num_layers": 2}),
        ("LSTM", 128, 256, 32, 50, {"proj_size": 64}),
    ]
    quick = {("RNN", 96), ("GRU", 400), ("LSTM", 200)}
    cases = [
        _case("rnn", "recurrent", (T, N, C), layer, C, H, quick=(layer, H) in quick, **kw)
        for layer, C, H, N, T, kw in sizes
    ]
    for layer, C, H, N, T in [("RNN", 64, 96, 20, 60), ("GRU", 64, 96, 20, 60), ("LSTM", 200, 200, 12, 80)]:
        cases.append(_case("rnn", "recurrent", (sum(packed_sizes(N, T)), C), layer, C, H, packed=(N, T)))
    return cases


def _network() -> list[Case]:
    return [
        _case("network", "mlp", (128, 784)),
        _case("network", "lenet", (100, 1, 28, 28), quick=True),
        _case("network", "bn_relu_pool", _PLANES),
        _case("network", "vgg", (16, 3, 32, 32)),
        _case("network", "resnet18", (4, 3, 224, 224)),
        _case("network", "mobilenet", (4, 3, 224, 224)),
    ]


def _fused() -> list[Case]:
    return [
        _case("fused", "bn_relu_pool", _PLANES, quick=True),
        _case("fused", "bn_relu", _PLANES),
        _case("fused", "bn_gelu_avg", _PLANES),
        _case("fused", "bn_relu_pool", (2, 48, 12, 12)),
        _case("fused", "lenet", (100, 1, 28, 28)),
        _case("fused", "vgg", (16, 3, 32, 32)),
        _case("fused", "vgg", (16, 3, 32, 32), train=False),
        _case("fused", "resnet18", (4, 3, 224, 224)),
        _case("fused", "resnet18", (4, 3, 224, 224), train=False),
        _case("fused", "mobilenet", (4, 3, 224, 224)),
        _case("fused", "mobilenet", (4, 3, 224, 224), train=False),
    ]


BENCH: list[Case] = [
    *_linear(), *_conv(), *_pooling(), *_batchnorm(), *_normalization(), *_activation(), *_softmax(), *_loss(),
    *_embedding(), *_dropout(), *_attention(), *_rnn(), *_network(), *_fused(),
]  # fmt: skip

# For `bench --memory`: a network more, whose output is drawn, so that no reference can tell whether they are right.
MEMORY: list[Case] = [
    *BENCH,
    _case("network", "bn_relu_pool_dropout", _PLANES, quick=True),
    _case("fused", "bn_relu_pool_dropout", _PLANES, quick=True),
]
