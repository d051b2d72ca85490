"""What the tests of chains share: the layers one by one, fused, and the comparison of the two."""

import copy

import torch
from torch import nn

import fastnn


def pair(*layers, dtype=torch.float32):
    """The layers in two Sequentials with equal parameters: fastnn's one by one, and fused."""
    model = nn.Sequential(*layers).to(dtype)
    for layer in model:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    fastnn.accelerate(model, allow_empty=True)
    fused = copy.deepcopy(model)
    assert fastnn.fuse(fused).fused
    return model, fused


def step(model, x, seed=7):
    """Output, all gradients, and whether a chain ran."""
    x = x.detach().requires_grad_()
    torch.manual_seed(seed)
    fastnn._C.start_recording()
    try:
        y = model(x)
    finally:
        ran = any(op == "chain" for op, _, _ in fastnn._C.take_records())
        fastnn._C.stop_recording()
    dy = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(y.dtype)
    return y, torch.autograd.grad(y, [x, *model.parameters()], dy, allow_unused=True), ran


def check(model, fused, x, modes=(True, False), chain=True):
    """Outputs, strides, gradients and buffers are equal; a chain ran where one should."""
    for train in modes:
        model.train(train)
        fused.train(train)
        y, gradients, _ = step(model, x)
        z, fused_gradients, ran = step(fused, x)
        assert ran == chain
        assert torch.equal(y, z) and y.stride() == z.stride()
        for a, b in zip(gradients, fused_gradients, strict=True):
            assert a is b is None or torch.equal(a, b)
        for a, b in zip(model.buffers(), fused.buffers(), strict=True):
            assert torch.equal(a, b)
