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
