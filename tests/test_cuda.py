"""The CUDA kernels: without a device, what is said about them; with one, the results beside the CPU's in float64."""

import pytest
import torch

import fastnn
from fastnn import _build_info, _cuda

needs_gpu = pytest.mark.skipif(not _cuda.available(), reason=f"no CUDA kernels here: {_cuda.reason}")

DTYPES = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SIZES = [0, 1, 3, 7, 8, 9, 255, 1024, 4099, 1 << 20]
FUNCTIONS = ["relu", "leaky_relu", "elu", "sigmoid", "tanh", "gelu", "silu", "mish", "softplus", "hardtanh"]


def test_a_missing_library_or_device_has_a_reason():
    assert _cuda.available() == (_cuda.reason == "")
    if torch.version.cuda is None:
        assert "without CUDA" in _cuda.reason
    elif _build_info.cuda_reason:
        assert _build_info.cuda_reason in _cuda.reason


@pytest.mark.skipif(bool(_build_info.cuda_reason), reason=f"built without CUDA: {_build_info.cuda_reason}")
@pytest.mark.parametrize("op", ["_activation", "_activation_backward"])
def test_the_library_registers_its_kernels(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastnn::{op}", "CUDA")


def check(name, x, dy, tolerance):
    """x, dy on the device: output and gradient against torch on the CPU in float64."""
    x64 = x.detach().cpu().double().requires_grad_()
    y64 = getattr(torch.nn.functional, name)(x64)
    y64.backward(dy.cpu().double())
    x = x.detach().requires_grad_()
    with fastnn.strict():
        y = getattr(fastnn.functional, name)(x)
        y.backward(dy)
    torch.testing.assert_close(y.cpu().double(), y64, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.cpu().double(), x64.grad, rtol=tolerance, atol=tolerance)


def pair(shape, dtype):
    torch.manual_seed(0)
    return 3 * torch.randn(shape, device="cuda", dtype=dtype), torch.randn(shape, device="cuda", dtype=dtype)


@needs_gpu
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(name, dtype):
    for n in SIZES:
        check(name, *pair((n,), dtype), DTYPES[dtype])


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1, 3, 5])
def test_misaligned_views(dtype, shift):
    """x alone, dy alone and both off the 16-byte border: packs after a head, or no packs."""
    x, dy = pair((4096 + shift,), dtype)
    for a, b in ((x[shift:], dy[shift:]), (x[shift:], dy[:-shift]), (x[:-shift], dy[shift:])):
        check("relu", a, b, DTYPES[dtype])


@needs_gpu
def test_layouts():
    x, dy = pair((4, 6, 5, 7), torch.float32)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    check("gelu", channels_last, dy, 1e-6)
    assert fastnn.functional.gelu(channels_last).stride() == channels_last.stride()
    check("gelu", x.transpose(1, 3), dy.transpose(1, 3), 1e-6)
    check("gelu", x[:, ::2], dy[:, ::2], 1e-6)
    check("gelu", x, dy.new_ones(()).expand_as(x), 1e-6)  # sum().backward()


@needs_gpu
def test_special_values():
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    for name in FUNCTIONS:
        ours = getattr(fastnn.functional, name)(values.cuda()).cpu()
        theirs = getattr(torch.nn.functional, name)(values)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@needs_gpu
def test_runs_on_the_current_stream_and_in_a_graph():
    x = torch.randn(1 << 16, device="cuda")
    fastnn.functional.relu(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fastnn.functional.relu(x)
    x.normal_()
    graph.replay()
    torch.testing.assert_close(y, torch.relu(x), rtol=0, atol=0)
