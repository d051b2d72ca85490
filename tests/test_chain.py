"""Chains of layers in Sequential: the same numbers as the layers one by one, bit for bit."""

import copy

import pytest
import torch
from chain_support import check, pair, step
from torch import nn

import fastnn
from fastnn.modules.chain import _STAGES, Chain, chains

IMAGES = {
    "odd": (3, 7, 19, 17),
    "large planes": (2, 6, 60, 60),
    "short rows": (5, 6, 3, 3),
    "one sample": (1, 5, 12, 12),
    "one pixel": (9, 5, 1, 1),
}
CHAINS = {
    "norm relu max drop": lambda c: (nn.BatchNorm2d(c), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)),
    "norm relu": lambda c: (nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
    "norm gelu avg": lambda c: (nn.BatchNorm2d(c), nn.GELU(), nn.AvgPool2d(3, 2, 1)),
    "norm drop": lambda c: (nn.BatchNorm2d(c), nn.Dropout(0.5)),
    "norm max": lambda c: (nn.BatchNorm2d(c), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "silu max": lambda c: (nn.SiLU(), nn.MaxPool2d((3, 1), (2, 1), (1, 0))),
    "tanh global": lambda c: (nn.Tanh(), nn.AdaptiveAvgPool2d(1)),
    "elu drop": lambda c: (nn.ELU(1.5), nn.Dropout(0.2)),
    "max drop": lambda c: (nn.AdaptiveMaxPool2d((2, 3)), nn.Dropout(0.2)),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("layers", CHAINS.values(), ids=CHAINS)
def test_images(layers, shape, layout):
    x = torch.randn(shape).contiguous(memory_format=layout)
    model, fused = pair(*layers(shape[1]))
    try:
        model(x)
    except RuntimeError:  # a window larger than the picture: torch's error either way
        with pytest.raises(RuntimeError):
            fused(x)
        return
    check(*pair(*layers(shape[1])), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", CHAINS.values(), ids=CHAINS)
def test_dtypes(layers, dtype):
    check(*pair(*layers(7), dtype=dtype), torch.randn(3, 7, 19, 17).to(dtype))


ACTIVATIONS = sorted(
    (
        cls
        for cls, (place, _) in _STAGES.items()
        if place == _STAGES[nn.ReLU][0] and cls.__module__[:5] == "torch"
    ),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", ACTIVATIONS, ids=lambda cls: cls.__name__)
def test_every_activation(cls):
    arguments = (0.1, 20.0) if cls is nn.Threshold else ()
    check(*pair(nn.BatchNorm2d(4), cls(*arguments), nn.MaxPool2d(2)), torch.randn(3, 4, 10, 11))


OTHERS = {
    "features": ((nn.BatchNorm1d(50), nn.ReLU(), nn.Dropout(0.2)), (33, 50)),
    "length": ((nn.BatchNorm1d(5), nn.ReLU(), nn.MaxPool1d(2, dilation=2)), (4, 5, 33)),
    "length, average": (
        (nn.BatchNorm1d(5), nn.ELU(), nn.AvgPool1d(3, count_include_pad=False, padding=1)),
        (4, 5, 33),
    ),
    "volume": ((nn.BatchNorm3d(5), nn.ReLU(), nn.MaxPool3d(2)), (2, 5, 8, 9, 10)),
    "volume, average": (
        (nn.BatchNorm3d(5), nn.ReLU(), nn.AvgPool3d(2, divisor_override=3)),
        (2, 5, 8, 9, 10),
    ),
    "plain norm": ((nn.BatchNorm2d(5, affine=False), nn.ReLU()), (4, 5, 9, 9)),
    "untracked": ((nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU()), (4, 5, 9, 9)),
    "average of all": ((nn.BatchNorm2d(5, momentum=None), nn.ReLU()), (4, 5, 9, 9)),
    "linear": ((nn.Linear(20, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 7), nn.Tanh()), (11, 20)),
    "linear, three dimensions": ((nn.Linear(20, 30), nn.GELU(), nn.Dropout(0.1)), (3, 4, 20)),
    "linear norm": ((nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU()), (11, 20)),
    "conv relu": ((nn.Conv2d(3, 8, 3), nn.ReLU()), (2, 3, 12, 12)),
    "conv gelu": ((nn.Conv2d(3, 8, 3), nn.GELU()), (2, 3, 12, 12)),
    "conv norm relu max": (
        (
            nn.Conv2d(3, 8, 3, padding_mode="circular", padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.MaxPool2d(2),
        ),
        (2, 3, 12, 12),
    ),
    "conv1d": ((nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU()), (2, 3, 30)),
}


@pytest.mark.parametrize("layers, shape", OTHERS.values(), ids=OTHERS)
def test_other_shapes(layers, shape):
    check(*pair(*copy.deepcopy(layers)), torch.randn(shape))


def test_threads():
    """Equal bits for one thread and two."""
    x = torch.randn(4, 16, 40, 40)
    _, fused = pair(nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Dropout(0.3))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(step(copy.deepcopy(fused), x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1], results[1][1]))


STRIDED = {
    "transposed": lambda: torch.randn(3, 6, 9, 12).transpose(2, 3),
    "sliced": lambda: torch.randn(3, 6, 9, 24)[..., ::2],
    "expanded": lambda: torch.randn(3, 1, 9, 12).expand(3, 6, 9, 12),
    "empty": lambda: torch.randn(0, 6, 9, 12),
}


@pytest.mark.parametrize("make", STRIDED.values(), ids=STRIDED)
def test_inputs_without_a_chain(make):
    """Strides that no chain takes: the layers run."""
    x = make()
    check(
        *pair(nn.BatchNorm2d(6), nn.ReLU()),
        x,
        modes=(False,) if x.numel() == 0 else (True, False),
        chain=False,
    )


@pytest.mark.parametrize("train", [True, False])
def test_second_derivatives(train):
    layers = (nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), nn.Dropout(0.3))
    _, fused = pair(*layers, dtype=torch.float64)
    fused.train(train)
    fused(torch.randn(8, 3, 4, 4, dtype=torch.float64))
    fused[0].eval()  # gradcheck calls again and again: the running statistics must stay

    def run(x, weight, bias):
        torch.manual_seed(3)
        return torch.func.functional_call(fused, {"0.weight": weight, "0.bias": bias}, (x,))

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    arguments = (x, fused[0].weight.detach().requires_grad_(), fused[0].bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


def test_second_derivatives_of_batch_statistics():
    model, fused = pair(nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), dtype=torch.float64)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    found = []
    for m in (model, fused):
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(m(z).pow(2).sum(), z, create_graph=True)
        found.append(torch.autograd.grad(g.pow(2).sum(), [z, *m.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_folding():
    """In eval mode without gradients BatchNorm goes into the layer before it; every change is seen."""
    x = torch.randn(2, 3, 12, 12)
    model, fused = pair(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    for m in (model, fused):
        torch.manual_seed(1)
        for _ in range(3):
            m(torch.randn(4, 3, 12, 12) * 3 + 1)
        m.eval()

    def changes():
        yield lambda m: None
        yield lambda m: m[0].weight.mul_(2)
        yield lambda m: m[0].bias.add_(1)
        yield lambda m: m[1].running_var.mul_(3)
        yield lambda m: m[1].running_mean.add_(1)
        yield lambda m: m[1].weight.neg_()
        yield lambda m: m[1].bias.sub_(1)
        yield lambda m: setattr(m[1], "eps", 0.1)
        yield lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight * 0.5))

    with torch.no_grad():
        for change in changes():
            change(model)
            change(fused)
            torch.testing.assert_close(fused(x), model(x), rtol=2e-5, atol=2e-5)
            assert torch.equal(fused(x), fused(x))
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), model(x), rtol=2e-5, atol=2e-5)
    check(model, fused, x)


def test_input_of_an_in_place_layer():
    """A model that begins with an in-place layer changes what it is given: that stays so."""
    fused = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.1)).eval()
    report = fastnn.fuse(fused)
    assert report.fused == {"": ["MaxPool2d + Dropout"]}
    x = torch.randn(2, 3, 4, 4)
    fused(x)
    assert (x >= 0).all()


def test_input_is_left_alone():
    x = torch.randn(2, 3, 8, 8)
    before = x.clone()
    for layers in ((nn.BatchNorm2d(3), nn.ReLU(inplace=True)), (nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))):
        _, fused = pair(*layers)
        with torch.no_grad():
            fused(x)
        step(fused, x)
        assert torch.equal(x, before)


def test_where_chains_are():
    layers = [
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3, 3),
        nn.Dropout(),
        nn.ReLU(),
    ]
    assert chains(layers) == [range(3)]
    layers = [
        nn.Conv2d(3, 3, 1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2, return_indices=True),
        nn.PReLU(),
    ]
    assert chains(layers) == []
    assert chains([nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)]) == [range(1, 3)]
    assert chains([]) == []
    assert repr(Chain([nn.BatchNorm2d(3), nn.ReLU()])) == "BatchNorm2d + ReLU"
