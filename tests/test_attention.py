"""Attention and the Transformer's layers: masks, causal, grouped queries, dropout, layouts, state, fallbacks."""

import copy
import math

import pytest
import torch
from support import Family, case, check_threads

import fastnn
from fastnn import _C
from fastnn import functional as F
from fastnn.testing.cases import parity_cases

INF = float("inf")
REFERENCE = torch.nn.functional.scaled_dot_product_attention


class TestAttention(Family):
    parity_cases = tuple(parity_cases("attention"))
    layouts_cases = parity_cases[:4]
    halves_cases = parity_cases[:2]
    views_cases = (case("scaled_dot_product", (2, 5, 24), 2, dtypes=("float32", "float64")),)
    derivatives_cases = (
        case("scaled_dot_product", (2, 3, 12), 2),
        case("scaled_dot_product", (1, 4, 12), 2, is_causal=True),
        case("self_attention", (3, 2, 4), 4, 2),
    )
    threads_cases = (
        case("scaled_dot_product", (1, 700, 96), 1),
        case("scaled_dot_product", (3, 300, 96), 2, is_causal=True),
        case("TransformerEncoderLayer", (7, 150, 32), 32, 4, 64, 0.1, batch_first=True),
    )


def operands(N=2, H=4, HK=4, L=5, S=7, E=6, EV=6, dtype=torch.float64):
    sizes = (N, H, L, E), (N, HK, S, E), (N, HK, S, EV)
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def check_against_torch(tensors, mask=None, dtype=torch.float64, **kw):
    """Output and gradients equal torch's, on kernels of ours; torch's composed op stands for any head size."""
    with fastnn.strict():
        y = F.scaled_dot_product_attention(*tensors, mask, **kw)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    exact_mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    expected = REFERENCE(*exact, exact_mask, **kw)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 3e-5}
    dy = torch.randn_like(expected)
    results = [y, *torch.autograd.grad(y, tensors, dy.to(dtype))]
    for ours, theirs in zip(results, [expected, *torch.autograd.grad(expected, exact, dy)], strict=True):
        torch.testing.assert_close(ours.double(), theirs, **tolerance)


MASKS = {
    "bool": lambda N, H, L, S: torch.rand(N, H, L, S) > 0.4,
    "one row sees nothing": lambda N, H, L, S: (torch.arange(L) != L // 2)[:, None].expand(L, S),
    "padding": lambda N, H, L, S: (torch.arange(S) < S - 2)[None, None, None].expand(N, 1, 1, S),
    "per head": lambda N, H, L, S: torch.rand(H, 1, S) > 0.2,
    "column": lambda N, H, L, S: torch.rand(L, 1) > 0.2,
    "transposed": lambda N, H, L, S: (torch.rand(S, L) > 0.4).t(),
    "added": lambda N, H, L, S: torch.randn(L, S),
    "minus infinity": lambda N, H, L, S: torch.zeros(L, S).masked_fill(torch.rand(L, S) > 0.6, -INF),
    "one number": lambda N, H, L, S: torch.randn(1, 1),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("L", "S"), [(5, 7), (140, 300), (30, 600)])
def test_masks(kind, dtype, L, S, capability):
    mask = MASKS[kind](2, 3, L, S)
    mask = mask.to(dtype) if mask.is_floating_point() else mask
    check_against_torch(operands(2, 3, 3, L, S, dtype=dtype), mask, dtype)


@pytest.mark.parametrize(("L", "S"), [(5, 5), (300, 300), (5, 400), (400, 5), (1, 9), (129, 257), (640, 600)])
def test_causal(L, S, capability):
    check_against_torch(operands(1, 2, 2, L, S), is_causal=True)


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 1, 1, 1), (2, 3, 3, 9, 4, 5, 11), (1, 2, 2, 130, 259, 33, 17)]
)
def test_sizes(sizes, capability):
    check_against_torch(operands(*sizes))
    check_against_torch(operands(*sizes, dtype=torch.float32), dtype=torch.float32, scale=0.2)


@pytest.mark.parametrize("HK", [1, 2, 3, 6])
def test_grouped_queries(HK, capability):
    check_against_torch(operands(2, 6, HK, 9, 300), enable_gqa=True, is_causal=True)


def test_fewer_dimensions():
    for leading in ((), (3,)):
        tensors = [torch.randn(*leading, n, 6, requires_grad=True, dtype=torch.float64) for n in (4, 5, 5)]
        check_against_torch(tensors)
        check_against_torch(tensors, torch.rand(4, 5) > 0.3)


def test_output_lies_as_the_queries():
    """Heads that are views of a projection join again without a copy, and nothing is copied on the way in."""
    x = torch.randn(3, 10, 3, 2, 8)
    q, k, v = x.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    assert y.transpose(1, 2).is_contiguous()
    assert F.scaled_dot_product_attention(*(t.contiguous() for t in (q, k, v))).is_contiguous()


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_gradient_has_the_same_mask(causal, capability):
    """With values of one-hot rows the output is the dropped probabilities; the gradients follow from them."""
    L, S, p = 37, 45, 0.3
    q, k, _ = operands(2, 3, 3, L, S)
    v = torch.eye(S, dtype=torch.float64).expand(2, 3, S, S).clone().requires_grad_()
    torch.manual_seed(5)
    dropped = F.scaled_dot_product_attention(q, k, v, None, p, causal)
    full = REFERENCE(q, k, v, None, 0.0, causal)
    factors = torch.where(full > 0, dropped / full, 1.0).detach()
    assert set(factors.unique().round(decimals=9).tolist()) <= {0.0, 1.0, round(1 / (1 - p), 9)}
    dy = torch.randn_like(dropped)
    expected = torch.autograd.grad(full * factors, (q, k), dy)
    got = torch.autograd.grad(dropped, (q, k, v), dy)
    torch.testing.assert_close(got[:2], expected)
    torch.testing.assert_close(got[2], dropped.detach().mT @ dy)


def test_dropout_statistics(capability):
    S, p = 512, 0.2
    q = torch.zeros(2, 3, 200, 4)
    y = F.scaled_dot_product_attention(q, torch.randn(2, 3, S, 4), torch.eye(S).expand(2, 3, S, S), None, p)
    share = (y == 0).float()
    assert abs(share.mean() - p) < 5 * math.sqrt(p * (1 - p) / y.numel())
    assert (share.mean((0, 1, 2)) - p).abs().max() < 6 * math.sqrt(p * (1 - p) / 1200)  # each key
    assert (share.mean(-1) - p).abs().max() < 6 * math.sqrt(p * (1 - p) / S)  # each query
    assert not torch.equal(y[0, 0], y[0, 1]) and not torch.equal(y[0, 0], y[1, 0])


def test_dropout_follows_the_seed(threads, capability):
    tensors = operands(2, 3, 3, 150, 270, dtype=torch.float32)
    runs = []
    for n in (1, 2, 4):
        with threads(n):
            torch.manual_seed(1)
            y = F.scaled_dot_product_attention(*tensors, None, 0.4)
            runs.append([y, *torch.autograd.grad(y.sin().sum(), tensors)])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    assert not torch.equal(runs[0][0], F.scaled_dot_product_attention(*tensors, None, 0.4))


@pytest.mark.parametrize(
    "kw", [{}, {"is_causal": True}, {"dropout_p": 0.3}, {"enable_gqa": True}, {"mask": True}]
)
def test_derivatives(kw):
    kw = dict(kw)
    mask = (
        torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
        if kw.pop("mask", 0)
        else None
    )

    def function(*tensors):
        torch.manual_seed(0)
        with fastnn.strict():
            return F.scaled_dot_product_attention(*tensors, mask, **kw)

    tensors = operands(1, 2, 1 if "enable_gqa" in kw else 2, 3, 4, 3, 2)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_one_head_is_split_over_threads(threads):
    """Few heads: keys and queries in two passes, with the bits of the one pass."""
    check_threads(case("scaled_dot_product", (1, 900, 24), 1), threads)


def test_no_square_matrix_in_memory():
    tensors = [torch.randn(1, 1, 6000, 8, requires_grad=True) for _ in range(3)]
    with torch.profiler.profile(profile_memory=True) as profile:
        F.scaled_dot_product_attention(*tensors).sum().backward()
    assert max(e.cpu_memory_usage for e in profile.events()) < 6000 * 6000 * 4 / 20


FALLBACKS = {
    "a mask beside is_causal": lambda q, k, v: ((q, k, v, torch.ones(5, 7), 0.0, True), {}),
    "the gradient of a mask": lambda q, k, v: ((q, k, v, torch.randn(5, 7).requires_grad_()), {}),
    "an empty input": lambda q, k, v: ((q, k[:, :, :0], v[:, :, :0]), {}),
    "a batch that is broadcast": lambda q, k, v: ((q, k[:1], v[:1]), {}),
    "the numbers of heads": lambda q, k, v: ((q, k[:, :1], v[:, :1]), {}),
    "nothing is kept, or p is not a probability": lambda q, k, v: ((q, k, v, None, 1.0), {}),
    "no kernel for this dtype": lambda q, k, v: ((q.bfloat16(), k.bfloat16(), v.bfloat16()), {}),
    "the shape of the mask": lambda q, k, v: ((q, k, v, torch.ones(5, 6)), {}),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("masked", ["", "bool", "added", "causal"])
def test_packed_projections(batch_first, p, masked, capability):
    """The same bits, masks of dropout included, as separate tensors give; the gradient is one tensor."""
    N, L, H, E = 3, 37, 2, 20
    x = torch.randn(*((N, L) if batch_first else (L, N)), 3 * H * E, requires_grad=True)
    mask = {"bool": torch.rand(L, L) > 0.3, "added": torch.randn(N, 1, 1, L)}.get(masked)

    def separate(x):
        order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)
        q, k, v = (t.unflatten(-1, (H, E)).permute(order) for t in x.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, mask, p, masked == "causal")
        return y.permute(*((0, 2, 1, 3) if batch_first else (2, 0, 1, 3))).flatten(2)

    results = []
    for function in (lambda x: _C.packed_attention(x, mask, H, batch_first, p, masked == "causal"), separate):
        torch.manual_seed(1)
        with fastnn.strict():
            y = function(x)
        results.append((y, torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).view(y.shape))[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_packed_derivatives():
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    for batch_first in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, b=batch_first: _C.packed_attention(x, None, 2, b, 0.0, True), x
        )
        assert torch.autograd.gradgradcheck(
            lambda x, b=batch_first: _C.packed_attention(x, None, 2, b, 0.0, True), x
        )


def test_packed_fallbacks():
    for x, heads in ((torch.randn(2, 3, 12).bfloat16(), 2), (torch.randn(2, 0, 12), 2)):
        y = _C.packed_attention(x, None, heads, True, 0.0, False)
        assert y.shape == (*x.shape[:2], 4)
    with pytest.raises(RuntimeError):
        _C.packed_attention(torch.randn(2, 3, 12), None, 5, True, 0.0, False)


@pytest.mark.parametrize("reason", FALLBACKS)
def test_fallbacks(reason):
    """torch's result, or torch's error."""
    args, kw = FALLBACKS[reason](*operands(dtype=torch.float32))
    try:
        expected = REFERENCE(*args, **kw)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as raised:
            F.scaled_dot_product_attention(*args, **kw)
        assert str(raised.value) == str(error)
        return
    torch.testing.assert_close(F.scaled_dot_product_attention(*args, **kw), expected)
    with pytest.raises(RuntimeError, match=reason), fastnn.strict():
        F.scaled_dot_product_attention(*args, **kw)


def test_transforms():
    q, k, v = operands(3, 2, 2, EV=5)  # torch has no tangent where all sizes are equal
    rows = torch.func.vmap(F.scaled_dot_product_attention)(q, k, v)
    torch.testing.assert_close(rows, REFERENCE(q, k, v))
    _, tangent = torch.func.jvp(
        lambda q: F.scaled_dot_product_attention(q, k, v), (q,), (torch.randn_like(q),)
    )
    assert tangent.shape == (3, 2, 5, 5)


# --- layers ----------------------------------------------------------------------------------------------------------


def twins(name, *args, **kw):
    theirs, ours = getattr(torch.nn, name)(*args, **kw), getattr(fastnn, name)(*args, **kw)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kw", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 5, "vdim": 7}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("masks", ["none", "bool", "added", "per head", "causal", "padding", "both"])
@pytest.mark.parametrize("batched", [True, False])
def test_multihead_attention(batch_first, kw, masks, batched):
    theirs, ours = twins("MultiheadAttention", 12, 4, batch_first=batch_first, **kw)
    N, L, S = 3 if batched else 1, 6, 6 if masks == "causal" else 9

    def tensor(length, size):
        x = torch.randn((N, length, size) if batch_first else (length, N, size))
        return (x if batched else x.squeeze(0 if batch_first else 1)).requires_grad_()

    attn_mask = {
        "bool": torch.rand(L, S) > 0.7,
        "both": torch.rand(L, S) > 0.7,
        "added": torch.randn(L, S),
        "per head": torch.rand(N * 4, L, S) > 0.7,
        "causal": torch.ones(L, S, dtype=torch.bool).triu(1),
    }.get(masks)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask[..., 0] = False
    padding = torch.arange(S).expand(N, S) >= S - 2 if masks in ("padding", "both") else None
    inputs = [tensor(L, 12), tensor(S, kw.get("kdim", 12)), tensor(S, kw.get("vdim", 12))]
    for need_weights, average in ((False, True), (True, True), (True, False)):
        call = {
            "attn_mask": attn_mask,
            "key_padding_mask": padding if padding is None or batched else padding[0],
            "need_weights": need_weights,
            "average_attn_weights": average,
            "is_causal": masks == "causal",
        }
        results = []
        for layer in (ours, theirs):
            y, weights = layer(*inputs, **call)
            gradients = torch.autograd.grad(y.sin().sum(), [*inputs, *layer.parameters()])
            results.append([y, *([] if weights is None else [weights]), *gradients])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kw", [{}, {"batch_first": True}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False},
                                {"activation": torch.nn.SiLU(), "batch_first": True}], ids=str)  # fmt: skip
def test_transformer(train, grad, kw):
    theirs, ours = (m.train(train) for m in twins("Transformer", 16, 4, 2, 2, 32, 0.0, **kw))
    src, tgt = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    if "batch_first" not in kw:
        src, tgt = src.transpose(0, 1), tgt.transpose(0, 1)
    padding = torch.arange(7).expand(3, 7) >= torch.tensor([[7], [4], [6]])
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5)
    calls = (
        {},
        {"src_key_padding_mask": padding, "memory_key_padding_mask": padding},
        {"tgt_mask": causal, "tgt_is_causal": True},
    )
    with torch.set_grad_enabled(grad):
        for call in calls:
            torch.testing.assert_close(ours(src, tgt, **call), theirs(src, tgt, **call), rtol=1e-4, atol=1e-5)
        encoded = [m.encoder(src, src_key_padding_mask=padding) for m in (ours, theirs)]
        torch.testing.assert_close(*encoded, rtol=1e-4, atol=1e-5)


def test_every_child_is_ours():
    model = fastnn.Transformer(16, 4, 1, 1, 32)
    foreign = {type(m).__name__ for m in model.modules() if not type(m).__module__.startswith("fastnn.")}
    assert foreign == {"ModuleList", "NonDynamicallyQuantizableLinear"}
    given = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(16, 4, 32), 1, torch.nn.LayerNorm(16)
    )
    kept = fastnn.Transformer(16, 4, 1, 1, 32, custom_encoder=given).encoder
    assert kept is given and type(given.norm) is torch.nn.LayerNorm


@pytest.mark.parametrize("train", [True, False])
def test_layer_runs_natively(train):
    layer = fastnn.TransformerEncoderLayer(16, 4, 32, batch_first=True).train(train)
    x = torch.randn(2, 5, 16)
    with fastnn.strict(), torch.set_grad_enabled(train):
        layer(x)
        layer(x, src_key_padding_mask=torch.zeros(2, 5, dtype=torch.bool))


def test_accelerate_and_revert():
    model = torch.nn.Transformer(16, 4, 1, 1, 32, 0.0, batch_first=True)
    src, tgt = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    expected = model(src, tgt)
    report = fastnn.accelerate(model)
    assert not report.kept and type(model.encoder.layers[0]) is fastnn.TransformerEncoderLayer
    with fastnn.strict():
        torch.testing.assert_close(model(src, tgt), expected, rtol=1e-4, atol=1e-5)
    assert "scaled_dot_product_attention" in str(fastnn.explain(model, src, tgt))
    fastnn.revert(model)
    assert type(model.encoder.layers[0].self_attn) is torch.nn.MultiheadAttention
    torch.testing.assert_close(model(src, tgt), expected)


def test_copies_and_tracing():
    layer = fastnn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
    x = torch.randn(2, 5, 16)
    expected = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    torch.testing.assert_close(torch.jit.script(layer)(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.fx.symbolic_trace(torch.nn.Sequential(layer)).graph.find_nodes(op="call_module", target="0")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


def test_nested_and_errors():
    layer = fastnn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True).eval()
    nested = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)])
    with torch.no_grad():
        assert layer(nested).is_nested
    theirs, ours = twins("MultiheadAttention", 12, 4)
    x = torch.randn(5, 2, 12)
    for call in (
        {"is_causal": True},
        {"attn_mask": torch.zeros(4, 5)},
        {"key_padding_mask": torch.zeros(2, 4)},
    ):
        with pytest.raises((RuntimeError, AssertionError)) as expected:
            theirs(x, x, x, **call)
        with pytest.raises(type(expected.value)) as raised:
            ours(x, x, x, **call)
        assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("layer", ["TransformerEncoderLayer", "TransformerDecoderLayer"])
@pytest.mark.parametrize("train", [True, False])
def test_feed_forward_as_one(layer, train):
    """relu and dropout in one pass, or relu over what the layer before gave: the bits of the parts one by one."""
    module = getattr(fastnn, layer)(12, 2, 40, 0.3, batch_first=True).train(train)
    inputs = [torch.randn(3, 5, 12, requires_grad=True) for _ in range(1 + layer.endswith("DecoderLayer"))]
    results, seen = [], []
    for watched in (False, True):
        handles = []
        if watched:  # then the parts run, and what they gave stays as it was
            handles = [
                module.linear1.register_forward_hook(lambda *a: seen.append(a[2])),
                module.dropout.register_forward_pre_hook(lambda *a: seen.append(a[1][0])),
            ]
        torch.manual_seed(0)
        y = module(*inputs)
        wanted = [inputs[0], *module.parameters()]
        results.append([y, *torch.autograd.grad(y, wanted, torch.linspace(-1, 1, y.numel()).view(y.shape))])
        for handle in handles:
            handle.remove()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert len(seen) == 2 and torch.equal(seen[0].relu(), seen[1]) and bool((seen[0] < 0).any())
