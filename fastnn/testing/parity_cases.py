"""Parity cases: small, odd shapes; every constructor argument of every class with kernels at least once."""

from __future__ import annotations

from typing import Any

from fastnn.testing.cases import ALL_LAYOUTS, FLOATS, Case
from fastnn.testing.networks import packed_sizes
from fastnn.testing.parity_pooling import SPATIAL, pools

_DIMS = (1, 2, 3)


def _linear() -> list[Case]:
    sizes = [(7, 5), (1, 1), (16, 16), (33, 17), (64, 1), (1, 19), (129, 70)]
    cases = [Case("linear", "Linear", size, shape=(6, size[0])) for size in sizes]
    cases += [
        Case("linear", "Linear", (9, 4), shape=shape)
        for shape in [(9,), (3, 5, 9), (2, 3, 4, 9), (0, 9), (1, 9)]
    ]
    cases += [
        Case("linear", "Linear", (9, 4), {"bias": False}, shape=(5, 9)),
        Case("linear", "Linear", (9, 4), {"bias": False}, shape=(9,)),
        Case("linear", "Linear", (300, 40), shape=(130, 300), values="large_mean"),
        Case("linear", "LazyLinear", (4,), shape=(5, 9)),
        Case("linear", "Linear", (0, 3), shape=(2, 0), layouts=("contiguous",)),
        Case("linear", "Linear", (3, 0), shape=(2, 3), layouts=("contiguous",)),
    ]
    return cases


def _conv_arguments(dims: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Constructor arguments of ConvNd for an input of 4 channels."""
    kernel, stride, padding, dilation = (3, 2, 4)[:dims], (2, 1, 3)[:dims], (1, 0, 2)[:dims], (1, 2, 1)[:dims]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((4, 6, 3), {}),
        ((4, 6, 1), {}),
        ((4, 5, 1), {"stride": 2}),
        ((4, 6, 3), {"bias": False}),
        ((4, 6, 3), {"stride": 2}),
        ((4, 6, 3), {"padding": 1}),
        ((4, 6, 3), {"stride": 2, "padding": 1, "bias": False}),
        ((4, 6, 5), {"padding": 3, "stride": 3}),
        ((4, 6, 2), {"dilation": 2}),
        ((4, 6, 3), {"dilation": 2, "padding": 2}),
        ((4, 6, kernel), {"stride": stride, "padding": padding, "dilation": dilation}),
        ((4, 6, 3), {"padding": "same"}),
        ((4, 6, 4), {"padding": "same", "dilation": 1}),
        ((4, 6, 3), {"padding": "valid"}),
        ((4, 6, 3), {"groups": 2, "padding": 1}),
        ((4, 4, 3), {"groups": 4, "padding": 1}),
        ((4, 8, 3), {"groups": 4, "stride": 2, "bias": False}),
    ]
    arguments += [
        ((4, 6, 3), {"padding": 2, "padding_mode": mode}) for mode in ("reflect", "replicate", "circular")
    ]
    return [*arguments, ((4, 6, 3), {"padding": "same", "padding_mode": "reflect"})]


def _transposed_arguments(dims: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    kernel, stride, padding = (3, 2, 4)[:dims], (2, 1, 3)[:dims], (1, 0, 2)[:dims]
    return [
        ((4, 6, 3), {}),
        ((4, 6, 1), {}),
        ((4, 6, 2), {"stride": 2}),
        ((4, 6, 4), {"stride": 2, "padding": 1, "bias": False}),
        ((4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((4, 6, 3), {"stride": 2, "groups": 2}),
        ((4, 4, 3), {"groups": 4, "padding": 1}),
        ((4, 6, 3), {"dilation": 2, "padding": 1}),
        ((4, 6, kernel), {"stride": stride, "padding": padding}),
    ]


def _conv() -> list[Case]:
    cases = []
    for dims in _DIMS:
        spatial = SPATIAL[dims]
        name, transposed = f"Conv{dims}d", f"ConvTranspose{dims}d"
        cases += [Case("conv", name, args, kw, shape=(2, 4, *spatial)) for args, kw in _conv_arguments(dims)]
        cases += [
            Case("conv", transposed, args, kw, shape=(2, 4, *spatial))
            for args, kw in _transposed_arguments(dims)
        ]
        for layer in (name, transposed):
            cases += [
                Case("conv", layer, (3, 5, 3), shape=(3, *spatial)),
                Case("conv", layer, (3, 5, 3), shape=(0, 3, *spatial)),
                Case("conv", layer, (3, 5, 3), shape=(1, 3, *spatial)),
                Case("conv", layer, (17, 19, 3), {"padding": 1}, shape=(2, 17, *spatial)),
                Case("conv", f"Lazy{layer}", (5, 3), {"stride": 2}, shape=(2, 3, *spatial)),
            ]
        size = tuple(2 * s for s in spatial)
        keywords = {"stride": 2, "padding": 1}
        cases.append(
            Case("conv", transposed, (4, 6, 3), keywords, shape=(2, 4, *spatial), call={"output_size": size})
        )
    cases += [
        Case("conv", "Conv2d", (1, 20, 5), shape=(2, 1, 28, 28)),
        Case("conv", "Conv2d", (3, 16, 7), {"stride": 2, "padding": 3}, shape=(2, 3, 33, 31)),
        Case("conv", "Conv2d", (32, 48, 3), {"padding": 1}, shape=(2, 32, 17, 19), algorithm="winograd"),
        Case("conv", "Conv2d", (33, 35, 3), {"padding": 1}, shape=(1, 33, 14, 14), values="large_mean"),
        Case("conv", "Conv2d", (24, 24, 3), {"padding": 1, "groups": 24}, shape=(2, 24, 20, 21)),
        Case("conv", "Conv2d", (4, 6, (9, 11)), shape=(2, 4, 9, 11)),
    ]
    return cases


def _batchnorm() -> list[Case]:
    arguments: list[dict[str, Any]] = [
        {},
        {"eps": 1e-3},
        {"momentum": 0.3},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
    ]
    cases = []
    # A batch that repeats one row has variance 0: nothing is left but rounding errors to compare.
    varied = tuple(layout for layout in ALL_LAYOUTS if layout != "expanded")
    for train in (True, False):
        for dims in _DIMS:
            for kw in arguments:
                cases.append(
                    Case(
                        "batchnorm", f"BatchNorm{dims}d", (5,), kw, shape=(3, 5, *SPATIAL[dims]), train=train
                    )
                )
            for shape in [(1, 1, *SPATIAL[dims]), (4, 17, *SPATIAL[dims])]:
                cases.append(Case("batchnorm", f"BatchNorm{dims}d", (shape[1],), shape=shape, train=train))
        cases += [
            Case("batchnorm", "BatchNorm1d", (7,), shape=(33, 7), train=train, layouts=varied),
            Case("batchnorm", "BatchNorm1d", (300,), shape=(5, 300), train=train, layouts=varied),
            Case("batchnorm", "BatchNorm2d", (6,), shape=(8, 6, 17, 19), values="large_mean", train=train),
            Case("batchnorm", "LazyBatchNorm2d", (), shape=(2, 6, 5, 7), train=train),
        ]
    return [*cases, Case("batchnorm", "BatchNorm2d", (5,), shape=(0, 5, 4, 3), train=False)]


def _normalization() -> list[Case]:
    # layer, arguments, shape; sizes on both sides of a register and of the pieces that rows are cut into
    layers: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
        ("LayerNorm", (7,), {}, (5, 7)),
        ("LayerNorm", (64,), {}, (8, 64)),
        ("LayerNorm", (300,), {}, (33, 300)),
        ("LayerNorm", (5000,), {}, (3, 5000)),
        ("LayerNorm", ((6, 7),), {}, (2, 5, 6, 7)),
        ("LayerNorm", ((5, 60, 70),), {}, (2, 5, 60, 70)),
        ("LayerNorm", (11,), {"eps": 1e-2}, (2, 3, 11)),
        ("LayerNorm", (11,), {"bias": False}, (2, 3, 11)),
        ("LayerNorm", (11,), {"elementwise_affine": False}, (2, 3, 11)),
        ("LayerNorm", (9,), {}, (9,)),
        ("LayerNorm", (9,), {}, (0, 9)),
        ("RMSNorm", (7,), {}, (5, 7)),
        ("RMSNorm", (300,), {}, (33, 300)),
        ("RMSNorm", (5000,), {}, (3, 5000)),
        ("RMSNorm", ((6, 7),), {}, (2, 5, 6, 7)),
        ("RMSNorm", (11,), {"eps": 1e-2}, (2, 3, 11)),
        ("RMSNorm", (11,), {"elementwise_affine": False}, (2, 3, 11)),
        ("RMSNorm", (9,), {}, (9,)),
        ("RMSNorm", (9,), {}, (0, 9)),
        ("GroupNorm", (2, 6), {}, (5, 6)),
        ("GroupNorm", (3, 6), {}, (2, 6, 3)),
        ("GroupNorm", (3, 6), {"eps": 1e-2}, (2, 6, 13)),
        ("GroupNorm", (1, 6), {}, (2, 6, 9, 11)),
        ("GroupNorm", (2, 6), {}, (2, 6, 9, 11)),
        ("GroupNorm", (6, 6), {}, (2, 6, 9, 11)),
        ("GroupNorm", (2, 6), {"affine": False}, (2, 6, 9, 11)),
        ("GroupNorm", (2, 6), {"bias": False}, (2, 6, 9, 11)),
        ("GroupNorm", (4, 68), {}, (3, 68, 17, 19)),
        ("GroupNorm", (3, 3), {}, (1, 3, 61, 67)),
        ("GroupNorm", (1, 2), {}, (1, 2, 61, 67)),
        ("GroupNorm", (2, 4), {}, (2, 4, 5, 6, 7)),
        ("GroupNorm", (2, 4), {}, (0, 4, 5, 6)),
    ]
    cases = [Case("normalization", layer, args, kw, shape=shape) for layer, args, kw, shape in layers]
    cases += [
        Case("normalization", "LayerNorm", (130,), shape=(17, 130), values="large_mean"),
        Case("normalization", "GroupNorm", (2, 6), shape=(3, 6, 17, 19), values="large_mean"),
    ]
    arguments: list[dict[str, Any]] = [
        {},
        {"affine": True},
        {"affine": True, "bias": False},
        {"eps": 1e-2, "affine": True},
        {"track_running_stats": True},
        {"affine": True, "track_running_stats": True, "momentum": 0.3},
        {"track_running_stats": True, "momentum": None},
    ]
    for dims in _DIMS:
        spatial, name = SPATIAL[dims], f"InstanceNorm{dims}d"
        for kw in arguments:
            for train in (True, False) if "track_running_stats" in kw else (True,):
                cases.append(Case("normalization", name, (5,), kw, shape=(3, 5, *spatial), train=train))
        cases += [
            Case("normalization", name, (5,), {"affine": True}, shape=(5, *spatial)),
            Case("normalization", name, (5,), {"affine": True}, shape=(0, 5, *spatial)),
            Case("normalization", f"Lazy{name}", (), {"affine": True}, shape=(2, 5, *spatial)),
        ]
    return [*cases, Case("normalization", "InstanceNorm2d", (3,), shape=(1, 3, 61, 67))]


# Thresholds are exact in bfloat16, so that every dtype cuts at the same place.
# layer, arguments, forward equals torch bit for bit, has inplace
_ACTIVATIONS: list[tuple[str, dict[str, Any], bool, bool]] = [
    ("ReLU", {}, True, True),
    ("ReLU6", {}, True, True),
    ("LeakyReLU", {}, False, True),
    ("LeakyReLU", {"negative_slope": 0.2}, False, True),
    ("ELU", {}, False, True),
    ("ELU", {"alpha": 0.5}, False, True),
    ("SELU", {}, False, True),
    ("CELU", {}, False, True),
    ("CELU", {"alpha": 2.0}, False, True),
    ("GELU", {}, False, False),
    ("GELU", {"approximate": "tanh"}, False, False),
    ("Sigmoid", {}, False, False),
    ("Tanh", {}, False, False),
    ("SiLU", {}, False, True),
    ("Mish", {}, False, True),
    ("Softplus", {}, False, False),
    ("Softplus", {"beta": 2.0, "threshold": 1.5}, False, False),
    ("Softsign", {}, False, False),
    ("Hardtanh", {}, True, True),
    ("Hardtanh", {"min_val": -0.25, "max_val": 0.75}, True, True),
    ("Hardswish", {}, False, True),
    ("Hardsigmoid", {}, False, True),
    ("LogSigmoid", {}, False, False),
    ("Threshold", {"threshold": 0.125, "value": 20.0}, True, True),
    ("Tanhshrink", {}, False, False),
    ("Softshrink", {}, False, False),
    ("Softshrink", {"lambd": 0.75}, False, False),
    ("Hardshrink", {}, True, False),
    ("Hardshrink", {"lambd": 0.75}, True, False),
]


def _activation() -> list[Case]:
    cases = []
    for layer, kw, exact, inplace in _ACTIVATIONS:
        for shape in [(3, 5, 7, 9), (4099,), (2, 3, 4, 5, 6)]:
            cases.append(Case("activation", layer, (), kw, shape=shape, exact=exact))
        for shape in [(), (0, 4), (1,)]:
            cases.append(Case("activation", layer, (), kw, shape=shape, exact=exact, layouts=("contiguous",)))
        plain = ("contiguous",)
        # Whole registers: torch's scalar tails treat a NaN otherwise than its vectors do.
        cases.append(
            Case("activation", layer, (), kw, shape=(8, 32), exact=exact, values="special", layouts=plain)
        )
        if inplace:
            cases.append(Case("activation", layer, (), {**kw, "inplace": True}, shape=(5, 67), exact=exact))
    for shape, count in [
        ((4, 6), 1),
        ((4, 6), 6),
        ((4, 6, 7), 6),
        ((2, 6, 5, 7), 1),
        ((2, 6, 5, 7), 6),
        ((9,), 1),
        ((), 1),
    ]:
        layouts = ALL_LAYOUTS if shape else ("contiguous",)
        cases.append(Case("activation", "PReLU", (count,), {"init": 0.1}, shape=shape, layouts=layouts))
    for dim, shape in [(-1, (4, 6)), (1, (3, 8, 5)), (0, (6, 3)), (1, (2, 4, 5, 6)), (-1, (10,))]:
        cases.append(Case("activation", "GLU", (dim,), shape=shape))
    for train in (True, False):
        for kw in ({}, {"lower": 0.05, "upper": 0.4}, {"inplace": True}):
            cases.append(Case("activation", "RReLU", (), kw, shape=(5, 7, 60), random=train, train=train))
    return cases


def _softmax() -> list[Case]:
    cases = []
    for layer in ("Softmax", "LogSoftmax", "Softmin"):
        for dim, shape in [
            (-1, (5, 9)), (0, (5, 9)), (1, (3, 17, 4)), (1, (2, 5, 7, 3)), (2, (2, 5, 7, 3)), (-1, (3, 1)),
            (0, (7,)), (-1, (4, 1030)), (1, (0, 5)), (-1, (2, 3, 4, 5, 6)),
        ]:  # fmt: skip
            cases.append(Case("softmax", layer, (dim,), shape=shape))
        cases.append(Case("softmax", layer, (-1,), shape=(6, 40), values="large_mean"))
    return [
        *cases,
        Case("softmax", "Softmax2d", (), shape=(2, 5, 6, 7)),
        Case("softmax", "Softmax2d", (), shape=(5, 6, 7)),
    ]


def _loss() -> list[Case]:
    arguments: list[dict[str, Any]] = [
        {}, {"reduction": "sum"}, {"reduction": "none"}, {"ignore_index": 2}, {"ignore_index": 2, "reduction": "none"},
    ]  # fmt: skip
    shapes: list[tuple[int, ...]] = [
        (7,),
        (5, 9),
        (33, 10),
        (1, 1),
        (3, 2600),
        (2, 7, 13),
        (3, 5, 9, 11),
        (2, 3, 1, 70),
    ]
    cases = []
    for shape in shapes:
        classes = shape[min(1, len(shape) - 1)]
        for kw in arguments:
            for layer in ("CrossEntropyLoss", "NLLLoss"):
                cases.append(Case("loss", layer, (), kw, shape=shape, classes=classes))
            smooth = {**kw, "label_smoothing": 0.2}
            cases.append(Case("loss", "CrossEntropyLoss", (), smooth, shape=shape, classes=classes))
        for kw in ({}, {"reduction": "none", "label_smoothing": 0.2}, {"reduction": "sum"}):
            cases.append(Case("loss", "CrossEntropyLoss", (), kw, shape=shape, paired=True))
    for layer in ("MSELoss", "BCEWithLogitsLoss"):
        for reduction in ("mean", "sum", "none"):
            for shape in [(), (7,), (33, 70), (2, 3, 5, 7), (5000,)]:
                cases.append(Case("loss", layer, (), {"reduction": reduction}, shape=shape, paired=True))
    return [
        *cases,
        *(
            Case("loss", "CrossEntropyLoss", (), kw, shape=(6, 40), classes=40, values="large_mean")
            for kw in ({}, {"label_smoothing": 0.1})
        ),
        Case("loss", "CrossEntropyLoss", (), shape=(6, 40), paired=True, values="large_mean"),
    ]


def _embedding() -> list[Case]:
    rows: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("Embedding", (17, 5), {}),
        ("Embedding", (40, 64), {"padding_idx": 3}),
        ("Embedding", (40, 200), {"scale_grad_by_freq": True, "padding_idx": -1}),
        ("Embedding", (30, 33), {"max_norm": 1.5}),
        ("Embedding", (30, 33), {"max_norm": 5.0, "norm_type": 1.0}),
        ("Embedding", (3, 131), {}),
        *(
            ("EmbeddingBag", (40, width), {"mode": m})
            for width in (1, 70, 256)
            for m in ("sum", "mean", "max")
        ),
        *(("EmbeddingBag", (17, 20), {"mode": m, "padding_idx": 2}) for m in ("sum", "mean", "max")),
        ("EmbeddingBag", (17, 20), {"max_norm": 2.0}),
        ("EmbeddingBag", (1, 20), {"mode": "max"}),
    ]
    cases = []
    for layer, args, kw in rows:
        for shape in [(9, 7), (1, 1), (3, 300)] + [(5,), (), (2, 3, 4), (0,)] * (layer == "Embedding"):
            cases.append(Case("embedding", layer, args, kw, shape=shape, indices=args[0]))
    return cases


def _dropout() -> list[Case]:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "Dropout": [(4099,), (40, 70), (5, 6, 7, 8), (0, 4)],
        "Dropout1d": [(30, 40, 7), (40, 7)],
        "Dropout2d": [(30, 40, 5, 3), (40, 5, 3)],
        "Dropout3d": [(30, 40, 2, 3, 2), (40, 2, 3, 2)],
        "AlphaDropout": [(4099,), (40, 70)],
        "FeatureAlphaDropout": [(30, 40, 5), (30, 40, 5, 3)],
    }
    cases = []
    for layer, sizes in shapes.items():
        for shape in sizes:
            for p in (0.3, 0.0, 1.0):
                cases.append(Case("dropout", layer, (p,), shape=shape, random=True))
            cases.append(Case("dropout", layer, (0.3,), shape=shape, exact=True, train=False))
        cases.append(Case("dropout", layer, (), {"p": 0.6, "inplace": True}, shape=sizes[0], random=True))
    return cases


def _attention() -> list[Case]:
    def case(
        layer: str, args: tuple[Any, ...], shape: tuple[int, ...], train: bool = True, **kw: Any
    ) -> Case:
        return Case("attention", layer, args, kw, shape=shape, dtypes=FLOATS, train=train)

    cases = [
        case("scaled_dot_product", (heads,), (N, L, 3 * heads * E))
        for heads, N, L, E in [(2, 3, 5, 3), (1, 1, 1, 1), (3, 2, 33, 16), (2, 1, 150, 9), (1, 2, 300, 5)]
    ]
    cases += [
        case("scaled_dot_product", (2,), (2, 19, 42), is_causal=True),
        case("scaled_dot_product", (1,), (1, 270, 18), is_causal=True),
        case("scaled_dot_product", (2,), (2, 7, 30), scale=0.3),
    ]
    arguments: list[dict[str, Any]] = [
        {}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"weights": True}, {"causal": True},
    ]  # fmt: skip
    for kw in arguments:
        cases.append(case("self_attention", (12, 4), (5, 3, 12), **kw))
        cases.append(case("self_attention", (12, 4), (3, 5, 12), batch_first=True, **kw))
    cases.append(case("self_attention", (12, 3), (5, 12)))
    for kw in ({}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}, {"layer_norm_eps": 0.1}):
        for train in (True, False):
            cases.append(case("TransformerEncoderLayer", (12, 4, 20, 0.0), (5, 3, 12), train, **kw))
            cases.append(
                case("TransformerEncoderLayer", (12, 4, 20, 0.0), (3, 5, 12), train, batch_first=True, **kw)
            )
    return cases


def _rnn() -> list[Case]:
    def case(shape: tuple[int, ...], layer: str, *args: Any, **kw: Any) -> Case:
        kw = {"states": True, **kw} if not layer.endswith("Cell") else kw
        return Case("rnn", "recurrent", (layer, *args), kw, shape=shape, dtypes=FLOATS)

    kinds: list[tuple[str, dict[str, Any]]] = [
        ("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 4}),
    ]  # fmt: skip
    arguments: list[dict[str, Any]] = [
        {}, {"bias": False}, {"batch_first": True}, {"num_layers": 2}, {"bidirectional": True},
        {"num_layers": 3, "bidirectional": True, "batch_first": True, "bias": False},
    ]  # fmt: skip
    packed = sum(packed_sizes(5, 9))
    cases = []
    for layer, kind in kinds:
        cases += [case((5, 3, 6), layer, 6, 7, **kind, **kw) for kw in arguments]
        cases += [case((5, 6), layer, 6, 7, **kind), case((1, 1, 3), layer, 3, 5, **kind)]
        cases += [
            case((packed, 6), layer, 6, 7, packed=(5, 9), **kind, bidirectional=b) for b in (False, True)
        ]
        # Whole registers and more than one share of rows and units; several chunks of steps.
        cases += [case((4, 33, 40), layer, 40, 64, **kind), case((300, 4, 5), layer, 5, 17, **kind)]
    relu = {"nonlinearity": "relu"}
    for layer, kw in [("RNNCell", {}), ("RNNCell", relu), ("GRUCell", {}), ("LSTMCell", {})]:
        cases += [
            case((3, 6), layer, 6, 7, **kw), case((6,), layer, 6, 7, **kw), case((9, 33), layer, 33, 20, bias=False, **kw)
        ]  # fmt: skip
    return cases


PARITY: list[Case] = [
    *_linear(),
    *_conv(),
    *(case for dims in _DIMS for case in pools(dims)),
    *_batchnorm(),
    *_normalization(),
    *_activation(),
    *_softmax(),
    *_loss(),
    *_embedding(),
    *_dropout(),
    *_attention(),
    *_rnn(),
]
