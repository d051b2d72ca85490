"""Linear and convolution on CUDA: outputs and gradients beside the CPU's in float64."""

import os
import subprocess
import sys

import pytest
import torch
from support_cuda import DTYPES, built, compare, needs_gpu

import fastnn

OPS = ["_linear", "_linear_backward", "_conv", "_conv_backward"]


@built
@pytest.mark.parametrize("op", OPS)
def test_the_library_registers_its_kernels(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastnn::{op}", "CUDA")


@pytest.fixture(autouse=True)
def products():
    before = fastnn.backends.cuda.products
    fastnn.backends.cuda.products = True
    yield
    fastnn.backends.cuda.products = before


def test_the_switch_is_off_at_first():
    code = "import fastnn; print(fastnn.backends.cuda.products)"
    for value, wanted in ((None, "False"), ("1", "True"), ("0", "False")):
        environment = {k: v for k, v in os.environ.items() if k != "FASTNN_CUDA_PRODUCTS"}
        if value is not None:
            environment["FASTNN_CUDA_PRODUCTS"] = value
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == wanted


@needs_gpu
def test_without_the_switch_torch_runs():
    fastnn.backends.cuda.products = False
    with pytest.raises(RuntimeError, match="products is off"), fastnn.strict():
        fastnn.functional.linear(torch.randn(2, 3, device="cuda"), torch.randn(4, 3, device="cuda"))


@pytest.fixture
def ieee():
    """Float32 as IEEE has it: by default torch's convolutions round to tf32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


SHAPES = [(1, 64, 48), (5, 33, 7), (8, 1024, 1000), (129, 200, 66), (1100, 512, 1024), (37, 9000, 10)]


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(shape, dtype):
    N, C, K = shape
    tensors = [torch.randn(N, C), torch.randn(K, C) / C**0.5, torch.randn(K)]
    compare(lambda f, x, w, b: f.linear(x, w, b), tensors, dtype)


CONVOLUTIONS = [
    ((2, 3, 20, 21), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((3, 64, 28, 28), (96, 64, 3, 3), {"padding": 1}),
    ((2, 32, 15, 13), (48, 32, 1, 1), {}),
    ((2, 24, 17, 9), (36, 8, 3, 3), {"stride": 2, "padding": 1, "groups": 3}),
    ((4, 40, 19, 23), (40, 1, 3, 3), {"padding": 1, "groups": 40}),
    ((4, 16, 19, 23), (32, 1, 5, 5), {"stride": 2, "dilation": 2, "padding": 4, "groups": 16}),
]


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case, last, dtype, ieee):
    x_shape, w_shape, arguments = case
    x, w = torch.randn(x_shape), torch.randn(w_shape) / (w_shape[1] * w_shape[2] * w_shape[3]) ** 0.5
    if last:
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    compare(lambda f, x, w, b: f.conv2d(x, w, b, **arguments), [x, w, torch.randn(w_shape[0])], dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_ranks_and_transposed(dtype, ieee):
    compare(
        lambda f, x, w: f.conv1d(x, w, padding=2), [torch.randn(3, 8, 50), torch.randn(12, 8, 5) / 6], dtype
    )
    compare(
        lambda f, x, w: f.conv3d(x, w), [torch.randn(2, 4, 6, 7, 8), torch.randn(6, 4, 3, 3, 3) / 10], dtype
    )
    tensors = [torch.randn(2, 16, 9, 11), torch.randn(16, 8, 3, 3) / 7]
    compare(lambda f, x, w: f.conv_transpose2d(x, w, stride=2, padding=1), tensors, dtype)


@needs_gpu
def test_tf32_where_torch_has_it():
    """With torch's switch on, errors are those of ten bits, and of no less."""
    x, w = torch.randn(256, 512, device="cuda"), torch.randn(384, 512, device="cuda")
    exact = x.double() @ w.double().T
    error = {}
    for on in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = on
        error[on] = (torch.ops.fastnn._linear(x, w, None) - exact).abs().max().item()
    torch.backends.cuda.matmul.allow_tf32 = False
    assert error[False] < 1e-3 < error[True] < 0.5
