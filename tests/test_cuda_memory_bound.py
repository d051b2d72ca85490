"""Dropout, softmax, batch, layer and RMS norm on CUDA: outputs and gradients beside the CPU's in float64."""

import pytest
import torch

import fastnn
from fastnn import _build_info, _cuda

F = fastnn.functional
built = pytest.mark.skipif(
    bool(_build_info.cuda_reason), reason=f"built without CUDA: {_build_info.cuda_reason}"
)
needs_gpu = pytest.mark.skipif(not _cuda.available(), reason=f"no CUDA kernels here: {_cuda.reason}")

DTYPES = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 4e-2, torch.float16: 5e-3}
OPS = ["_dropout", "_dropout_by", "_random_stream", "_softmax", "_softmax_backward", "_layer_norm"]
OPS += ["_layer_norm_backward", "_batch_norm_train", "_batch_norm_eval", "_batch_norm_backward"]


@built
@pytest.mark.parametrize("op", OPS)
def test_the_library_registers_its_kernels(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastnn::{op}", "CUDA")


def compare(function, tensors, dtype):
    """function(*tensors) with our kernels in this dtype and with torch's on the CPU in float64, twice the same."""
    torch.manual_seed(0)
    tolerance = DTYPES[dtype]
    ours = [t.to("cuda", dtype).requires_grad_() for t in tensors]
    theirs = [t.detach().cpu().double().requires_grad_() for t in ours]
    with fastnn.strict():
        y = function(F, *ours)
    y64 = function(torch.nn.functional, *theirs)
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad(y, ours, dy, retain_graph=True)
    gradients64 = torch.autograd.grad(y64, theirs, dy.cpu().double())
    for a, b in zip((y, *gradients), (y64, *gradients64), strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.cpu().double(), b, rtol=tolerance, atol=tolerance * scale)
    for a, b in zip(gradients, torch.autograd.grad(y, ours, dy), strict=True):
        assert torch.equal(a, b)
    summed = torch.autograd.grad(function(F, *ours).sum(), ours)  # a gradient of stride 0
    for a, b in zip(
        summed, torch.autograd.grad(function(torch.nn.functional, *theirs).sum(), theirs), strict=True
    ):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.cpu().double(), b, rtol=tolerance, atol=tolerance * scale)


LENGTHS = [1, 7, 64, 129, 1024, 2041, 4096, 20000]


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_softmax(name, dtype):
    for length in LENGTHS:
        compare(lambda f, x: getattr(f, name)(x, dim=-1), [3 * torch.randn(5, length)], dtype)
    for inner in (2, 33):
        compare(lambda f, x: getattr(f, name)(x, dim=1), [3 * torch.randn(3, 19, inner)], dtype)


@needs_gpu
def test_softmax_of_special_values():
    for length in (4, 40000):
        x = torch.zeros(4, length)
        x[0, 0], x[1, 0], x[2, 0], x[3] = float("inf"), -float("inf"), float("nan"), -float("inf")
        for shape in ((4, length, 1), (4, length, 2)):
            values = x[:, :, None].expand(shape).cuda()
            torch.testing.assert_close(F.softmax(values, 1), torch.softmax(values, 1), equal_nan=True)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_layer_and_rms_norm(dtype, length):
    x, w, b = 2 + torch.randn(37, length), torch.randn(length), torch.randn(length)
    if length > 1:
        compare(lambda f, x, w, b: f.layer_norm(x, (length,), w, b), [x, w, b], dtype)
    compare(lambda f, x, w: f.rms_norm(x, (length,), w, eps=1e-5), [x, w], dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (64, 40), (3, 5, 7), (4, 9, 7, 7), (2, 33, 31, 65)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm(dtype, training, shape, channels_last):
    if channels_last and len(shape) != 4:
        pytest.skip("four dimensions only")
    C = shape[1]

    def function(f, x, w, b):
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean = torch.linspace(-1, 1, C, dtype=kind, device=x.device)
        var = torch.linspace(0.5, 2, C, dtype=kind, device=x.device)
        if w.dtype != x.dtype:
            w, b = w.to(kind), b.to(kind)
        y = f.batch_norm(x, mean.to(w.dtype), var.to(w.dtype), w, b, training=training)
        assert y.stride() == x.stride()
        return y

    compare(function, [3 + torch.randn(shape), torch.randn(C), torch.randn(C)], dtype)


@needs_gpu
def test_batch_norm_moves_the_running_statistics():
    x = 3 + torch.randn(6, 5, 9, 9)
    mine, reference = fastnn.BatchNorm2d(5).cuda(), torch.nn.BatchNorm2d(5)
    mine(x.cuda())
    reference(x)
    torch.testing.assert_close(mine.running_mean.cpu(), reference.running_mean)
    torch.testing.assert_close(mine.running_var.cpu(), reference.running_var)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 49])
def test_dropout_draws_as_the_cpu(dtype, length):
    for decisions in (1, 31, 64, 1000, 4099):
        for shift in (0, 1):
            x = torch.randn(decisions * length + shift, dtype=dtype)
            arguments = (0.3, 1 / 0.7, 0.0, 0.0, length, 12345, 678)
            ours = torch.ops.fastnn._dropout(x.cuda()[shift:], *arguments).cpu()
            assert torch.equal(ours, torch.ops.fastnn._dropout(x[shift:], *arguments))


@needs_gpu
def test_dropout_follows_the_generator_and_draws_anew_in_a_graph():
    x = torch.ones(1 << 16, device="cuda", requires_grad=True)
    torch.manual_seed(3)
    with fastnn.strict():
        first, second = F.dropout(x, 0.4), F.dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(first, F.dropout(x, 0.4)) and not torch.equal(first, second)
    assert abs((first == 0).double().mean().item() - 0.4) < 0.01
    (dx,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(dx, first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = F.dropout(x.detach(), 0.4)
    graph.replay()
    before = y.clone()
    graph.replay()
    assert not torch.equal(before, y)
