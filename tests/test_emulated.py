"""The emulated CUDA kernels are what runs under `make test-emulated`, and what no test of a family calls on the CPU."""

from pathlib import Path

import pytest
import torch
from conftest import EMULATED

from fastnn import functional as F

pytestmark = pytest.mark.skipif(not EMULATED, reason="make test-emulated")


def launches(function):
    """(what function() returns, how many CUDA kernels it started)."""
    before = torch.ops.fastnn_emulated.launches()
    result = function()
    return result, torch.ops.fastnn_emulated.launches() - before


CALLS = {
    "activation": F.gelu,
    "dropout": lambda x: F.dropout(x, 0.5),
    "softmax": lambda x: F.softmax(x, -1),
    "batchnorm": lambda x: F.batch_norm(x, None, None, training=True),
    "pooling": lambda x: F.max_pool1d(x, 2),
    "loss": lambda x: F.mse_loss(x, torch.zeros(6, 5)),
    "conv": lambda x: F.conv1d(x[None], torch.randn(4, 6, 2)),
    "linear": lambda x: F.linear(x, torch.randn(4, 5)),
    "normalization": lambda x: F.layer_norm(x, (x.shape[-1],)),
}


def test_every_family_is_called():
    folder = Path(__file__).parent.parent / "csrc" / "ops" / "cuda"
    assert {path.stem.split("_")[0] for path in folder.glob("*.cpp")} == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_calls_start_cuda_kernels(name, strict):
    """Forward and backward; a small activation, too, that would go round the dispatcher."""
    x = torch.randn(6, 5, requires_grad=True)
    y, forward = launches(lambda: CALLS[name](x))
    _, backward = launches(lambda: y.backward(torch.randn(y.shape)))
    assert forward > 0 and backward > 0


def check_private(op, values, arguments, call, dy):
    """The private op, whose CUDA kernels know more dtypes than the CPU's, beside torch's call in the same dtype."""

    def run(function, tensors, dy):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = function(*leaves)
        return y, *torch.autograd.grad(y, leaves, dy)

    def private(*tensors):
        return op(*tensors, *arguments)

    ours, theirs = run(private, values, dy), run(call, values, dy)
    exact = run(call, [t.double() for t in values], dy.double())
    for name, a, b, right in zip(("y", "dx", "dw", "db"), ours, theirs, exact, strict=True):
        error, torch_error = ((t.double() - right).abs().max() for t in (a, b))
        floor = torch.finfo(dy.dtype).eps * right.abs().max()
        assert error <= max((2 if name == "y" else 3) * torch_error, floor), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 40, 24), (5, 7, 3), (70, 33, 50), (40, 64, 72)])
def test_linear_of_halves(shape, dtype):
    N, C, K = shape
    x, w, b, dy = (torch.randn(s, dtype=dtype) for s in ((N, C), (K, C), (K,), (N, K)))
    check_private(torch.ops.fastnn._linear, (x, w, b), (), torch.nn.functional.linear, dy)


CONVOLUTIONS = [
    ((2, 16, 9, 8), (24, 16, 3, 3), 1, 1, 1),
    ((2, 3, 11, 12), (8, 3, 5, 5), 2, 2, 1),
    ((1, 16, 7, 9), (16, 8, 3, 3), 1, 0, 2),
    ((2, 16, 8, 9), (16, 1, 3, 3), 2, 1, 16),
    ((2, 6, 8, 9), (12, 1, 5, 4), 1, 2, 6),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_of_halves(case, last, dtype):
    x_shape, w_shape, stride, padding, groups = case
    x, w, b = (torch.randn(s, dtype=dtype) for s in (x_shape, w_shape, w_shape[:1]))
    if last:
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))

    def call(x, w, b):
        return torch.nn.functional.conv2d(x, w, b, stride, padding, 1, groups)

    pairs = [stride, stride], [padding, padding], [1, 1]
    dy = torch.randn_like(call(x, w, b))
    check_private(torch.ops.fastnn._conv, (x, w, b), (*pairs, False, [0, 0], groups), call, dy)


@pytest.mark.parametrize("last", [False, True])
def test_tf32(last):
    """Errors are those of ten bits where torch's switches say so, and nowhere else."""
    x, w = torch.randn(2, 16, 9, 8), torch.randn(24, 16, 3, 3)
    rows, matrix = torch.randn(40, 64), torch.randn(24, 64)
    if last:
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    exact = torch.nn.functional.conv2d(x.double(), w.double()), rows.double() @ matrix.double().T
    errors = {}
    for on in (False, True):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
        ours = F.conv2d(x, w), F.linear(rows, matrix)
        errors[on] = [float((a - b).abs().max()) for a, b in zip(ours, exact, strict=True)]
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    assert all(error < 3e-5 for error in errors[False])
    assert all(1e-4 < error < 3e-2 for error in errors[True])


@pytest.mark.parametrize("length", [1, 9])
def test_dropout_by_a_stream_in_memory(length):
    """The form for CUDA graphs draws what the one with numbers as arguments draws."""
    x = torch.randn(6 * 9)
    torch.manual_seed(3)
    stream = torch.ops.fastnn._random_stream(x)
    seed, offset = stream.tolist()
    by = torch.ops.fastnn._dropout_by(x, stream, 0.3, 1.5, 0.0, 0.0, length)
    assert torch.equal(by, torch.ops.fastnn._dropout(x, 0.3, 1.5, 0.0, 0.0, length, seed, offset))
    assert not torch.equal(stream, torch.ops.fastnn._random_stream(x))
