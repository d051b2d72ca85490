"""Embedding and EmbeddingBag: arguments, bags of every kind, derivatives, threads, errors."""

import pytest
import torch
from support import FLOATS, HALVES, check_parity, check_raises

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import parity_cases
from fastnn.testing.compare import FORWARD_FACTOR, GRADIENT_FACTOR

CASES = parity_cases("embedding")
MODES = ("sum", "mean", "max")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case, capability):
    for dtype in FLOATS:
        check_parity(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_halves(case):
    for dtype in HALVES:
        if case.kwargs.get("mode") == "max" and dtype == "float16":
            continue  # torch has no maximum of float16
        check_parity(case, dtype)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_layouts(layout):
    for case in CASES:
        if len(case.shape) == 2 and case.shape[0] > 1:
            check_parity(case, "float32", layout)


def run(library, name, indices, weight, *args, dy=None, **kw):
    """The output and the gradients of the table and, where there are any, the weights of the samples."""
    leaves = [weight.detach().clone().requires_grad_()]
    if kw.get("per_sample_weights") is not None:
        leaves.append(kw["per_sample_weights"].detach().clone().requires_grad_())
        kw = {**kw, "per_sample_weights": leaves[1]}
    y = getattr(library, name)(indices, leaves[0], *args, **kw)
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), leaves[0].detach(), *torch.autograd.grad(y, leaves, dy)]


def bags(entries, count, last=False):
    """Offsets of `count` bags, several of them empty, the first and the last too."""
    inner = torch.randint(entries + 1, (count - 2,)).sort()[0]
    starts = torch.cat([torch.zeros(2, dtype=torch.long), inner])
    starts[count // 2] = starts[count // 2 - 1]
    return torch.cat([starts, torch.tensor([entries, entries])[: 1 + last]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize(("V", "D", "E", "B"), [(17, 5, 9, 6), (300, 131, 900, 70), (4, 64, 700, 5)])
def test_bags(mode, last, dtype, V, D, E, B, capability):
    weight, indices = torch.randn(V, D), torch.randint(V, (E,)).to(dtype)
    offsets = bags(E, B, last).to(dtype)
    arguments = [{}, {"padding_idx": 2}, {"padding_idx": -1}, {"max_norm": 2.0}]
    if mode == "sum":
        arguments += [
            {"per_sample_weights": torch.randn(E)},
            {"per_sample_weights": torch.randn(E), "padding_idx": 1},
        ]
    for kw in arguments:
        kw = {"mode": mode, "include_last_offset": last, **kw}
        exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kw.items()}
        with fastnn.strict():
            ours = run(F, "embedding_bag", indices, weight, offsets, **kw)
        theirs = run(torch.nn.functional, "embedding_bag", indices, weight, offsets, **kw)
        reference = run(torch.nn.functional, "embedding_bag", indices, weight.double(), offsets, **exact)
        for i, (a, b, e) in enumerate(zip(ours, theirs, reference, strict=True)):
            factor = FORWARD_FACTOR if i < 2 else GRADIENT_FACTOR
            floor = 4 * torch.finfo(torch.float32).eps * e.abs().max()
            assert (a - e).abs().max() <= max(factor * (b - e).abs().max(), floor), (kw, i)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_frequency(mode):
    """By definition: torch 2.13 divides by the frequency of another index (pytorch issue 190063)."""
    weight, indices, offsets = torch.randn(6, 5), torch.tensor([1, 1, 3, 0, 1, 3, 5]), torch.tensor([0, 2, 3])
    y, _, dw = run(
        F, "embedding_bag", indices, weight, offsets, mode=mode, scale_grad_by_freq=True, padding_idx=0
    )
    plain_y, _, plain = run(F, "embedding_bag", indices, weight, offsets, mode=mode, padding_idx=0)
    counts = torch.bincount(indices, minlength=6).clamp(min=1)
    torch.testing.assert_close(dw, plain / counts[:, None])
    assert torch.equal(y, plain_y)


@pytest.mark.parametrize("mode", MODES)
def test_specials(mode):
    weight = torch.randn(9, 37)
    weight[0, ::2], weight[1, 3], weight[2, 3] = float("nan"), float("inf"), -float("inf")
    indices, offsets = torch.tensor([4, 0, 0, 5, 1, 2, 1, 6, 1]), torch.tensor([0, 2, 4, 4, 7])
    ours, theirs = (
        run(library, "embedding_bag", indices, weight, offsets, mode=mode)
        for library in (F, torch.nn.functional)
    )
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_gradient_of_many_entries():
    """Rows named 7000 times each: sums of sums keep their digits, in the half types too."""
    indices = torch.randint(3, (20_000,))
    for dtype in (torch.float32, torch.bfloat16):
        weight, dy = torch.randn(3, 40, dtype=dtype), torch.rand(20_000, 40).to(dtype)
        leaf = weight.requires_grad_()
        (dw,) = torch.autograd.grad(F.embedding(indices, leaf), leaf, dy)
        exact = torch.zeros(3, 40, dtype=torch.float64).index_add(0, indices, dy.double())
        assert ((dw - exact).abs() <= 4 * torch.finfo(dtype).eps * exact.abs()).all()


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("weights", [False, True])
def test_derivatives(mode, weights):
    if weights and mode != "sum":
        pytest.skip("weights of samples belong to sums")
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([1, 4, 4, 0, 2, 1])
    samples = torch.randn(6, dtype=torch.float64, requires_grad=True) if weights else None

    def function(weight, samples):
        if mode is None:
            return F.embedding(indices, weight)
        return F.embedding_bag(
            indices, weight, torch.tensor([0, 3, 3]), mode=mode, per_sample_weights=samples
        )

    with fastnn.strict():
        assert torch.autograd.gradcheck(function, (weight, samples))
    assert torch.autograd.gradgradcheck(function, (weight, samples))


@pytest.mark.parametrize("kw", [{}, {"padding_idx": 1}, {"scale_grad_by_freq": True}])
def test_second_derivatives(kw):
    """Of a padding row and of frequencies, which no difference quotient sees."""
    indices, grads = torch.tensor([1, 4, 4, 0, 2, 1]), []
    for library in (F, torch.nn.functional):
        weight = torch.ones(5, 3, requires_grad=True)
        dy = torch.linspace(1, 2, 18).view(6, 3).requires_grad_()
        (dw,) = torch.autograd.grad(library.embedding(indices, weight, **kw), weight, dy, create_graph=True)
        grads.append(torch.autograd.grad(dw.square().sum(), dy)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("V", "D"), [(97, 64), (5000, 300), (20_000, 7)])
def test_threads(V, D, threads, capability):
    weight = torch.randn(V, D)
    indices = (torch.rand(6000).pow(4) * V).long()  # some rows are named often
    offsets = bags(6000, 400)
    calls = [("embedding", (), {}), ("embedding", (), {"scale_grad_by_freq": True})]
    calls += [("embedding_bag", (offsets,), {"mode": mode}) for mode in MODES]
    calls += [("embedding_bag", (offsets,), {"mode": "sum", "per_sample_weights": torch.randn(6000)})]
    for name, args, kw in calls:
        runs = []
        for n in (1, 2, 4):
            with threads(n):
                runs.append(run(F, name, indices, weight, *args, **kw))
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_sparse_is_torchs():
    for layer, args in (("Embedding", ()), ("EmbeddingBag", (torch.tensor([0]),))):
        module = getattr(fastnn, layer)(5, 3, sparse=True)
        module(torch.tensor([1, 2]), *args).sum().backward()
        assert module.weight.grad.is_sparse


def test_weight_may_change_before_backward():
    """Neither side reads the table in backward, so a step in between is no error."""
    for library in (fastnn, torch.nn):
        module = library.Embedding(5, 3)
        y = module(torch.tensor([1, 2]))
        with torch.no_grad():
            module.weight.add_(1)
        y.sum().backward()


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_index_out_of_range(bad):
    weight = torch.randn(5, 3, requires_grad=True)
    indices = torch.tensor([[1, 2], [bad, 0]])
    with pytest.raises(IndexError, match="index out of range in self"):
        F.embedding(indices, weight)
    for mode in MODES:
        with pytest.raises(RuntimeError):
            torch.nn.functional.embedding_bag(indices, weight, mode=mode)
        with pytest.raises(RuntimeError, match=f"but found idx to be {bad}"):
            F.embedding_bag(indices, weight, mode=mode)


@pytest.mark.parametrize(
    ("indices", "args", "kw"),
    [
        (torch.tensor([0.5]), (), {}),
        (torch.tensor([1]), (), {}),
        (torch.tensor([[1]]), (torch.tensor([0]),), {}),
        (torch.tensor([1]), (torch.tensor([[0]]),), {}),
        (torch.tensor([1]), (torch.tensor([1]),), {}),
        (torch.tensor([1]), (torch.tensor([0, 2]),), {}),
        (torch.tensor([1]), (torch.tensor([0]),), {"mode": "median"}),
        (torch.tensor([1]), (torch.tensor([0]),), {"mode": "max", "sparse": True}),
        (torch.tensor([1]), (torch.tensor([0]),), {"per_sample_weights": torch.ones(1)}),
        (torch.tensor([1]), (torch.tensor([0]),), {"per_sample_weights": torch.ones(2), "mode": "sum"}),
        (torch.tensor([1]), (torch.tensor([0]),), {"padding_idx": 7}),
        (
            torch.tensor([1]),
            (torch.tensor([0]),),
            {"per_sample_weights": torch.ones(1).double(), "mode": "sum"},
        ),
        (torch.zeros(2, 0, dtype=torch.long), (), {}),
    ],
)
def test_errors_are_torchs(indices, args, kw):
    weight = torch.randn(5, 3)
    check_raises(
        lambda: torch.nn.functional.embedding_bag(indices, weight, *args, **kw),
        lambda: F.embedding_bag(indices, weight, *args, **kw),
    )


def test_padding_out_of_range():
    for padding in (5, -6):
        with pytest.raises(AssertionError, match="Padding_idx"):
            F.embedding(torch.tensor([1]), torch.randn(5, 3), padding)


def test_from_pretrained():
    table = torch.randn(5, 3)
    module = fastnn.Embedding.from_pretrained(table, padding_idx=1)
    assert type(module) is fastnn.Embedding and not module.weight.requires_grad
    assert torch.equal(module(torch.tensor([4, 0])), table[[4, 0]])
    assert type(fastnn.EmbeddingBag.from_pretrained(table)) is fastnn.EmbeddingBag
