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


def product(x, w, b, dy):
    """y, dx, dw, db of the private op, whose CUDA kernels know more dtypes than the CPU's."""
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    y = torch.ops.fastnn._linear(*leaves)
    return y, *torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 40, 24), (5, 7, 3), (70, 33, 50), (40, 64, 72)])
def test_linear_of_halves(shape, dtype):
    N, C, K = shape
    values = [torch.randn(s, dtype=dtype) for s in ((N, C), (K, C), (K,), (N, K))]
    torch_values = [t.clone().requires_grad_() for t in values[:3]]
    y = torch.nn.functional.linear(*torch_values)
    theirs = (y, *torch.autograd.grad(y, torch_values, values[3]))
    exact = product(*(t.double() for t in values))
    for name, ours, torchs, right in zip(
        ("y", "dx", "dw", "db"), product(*values), theirs, exact, strict=True
    ):
        error, torch_error = ((t.double() - right).abs().max() for t in (ours, torchs))
        floor = torch.finfo(dtype).eps * right.abs().max()
        assert error <= max((2 if name == "y" else 3) * torch_error, floor), name


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
