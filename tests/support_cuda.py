"""What the tests of CUDA kernels share: marks, tolerances, a comparison with the CPU in float64."""

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
