"""fastnn.fuse in the forward of a user's own modules: found where one path is all there is, left alone elsewhere."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from chain_support import check, step
from torch import nn

import fastnn
import fastnn.functional as FF
from fastnn.fuse_forward import FusedForward


class Block(nn.Module):
    """ResNet's."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.down is not None:
            identity = self.down(x)
        out += identity
        return self.relu(out)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block1, self.block2 = Block(8, 8), Block(8, 16, 2)
        self.fc, self.drop = nn.Linear(16, 10), nn.Dropout(0.2)

    def forward(self, x):
        x = FF.max_pool2d(FF.relu(self.bn(self.conv(x))), 2)
        x = self.block2(self.block1(x)).mean((2, 3))
        return FF.log_softmax(FF.dropout(torch.relu(self.fc(x)), 0.3, self.training), dim=1)


class Layers(nn.Module):
    """What the small modules below are made of."""

    def __init__(self):
        super().__init__()
        self.bn, self.relu, self.pool, self.other = (
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(3),
        )
        self.scale, self.mode, self.names = 2.0, "a", []


def pair(cls, *args):
    model = cls(*args)
    fastnn.accelerate(model)
    fused = copy.deepcopy(model)
    report = fastnn.fuse(fused)
    return model, fused, report


X = torch.randn(2, 3, 8, 8)


def test_residual_network():
    model, fused, report = pair(Net)
    assert report.fused == {
        "": ["Conv2d + BatchNorm2d + ReLU + MaxPool2d", "Linear + ReLU + Dropout"],
        "block1": ["Conv2d + BatchNorm2d + ReLU", "Conv2d + BatchNorm2d + Sum + ReLU"],
        "block2": ["Conv2d + BatchNorm2d + ReLU", "Conv2d + BatchNorm2d + Sum + ReLU"],
        "block2.down": ["Conv2d + BatchNorm2d"],
    }
    x = torch.randn(4, 3, 20, 20)
    check(model, fused, x)
    check(model, fused, x.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_copies():
    model, fused, _ = pair(Net)
    fused(torch.randn(2, 3, 20, 20))
    model.load_state_dict(fused.state_dict())
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert isinstance(other, FusedForward) and isinstance(other, Net)
        check(copy.deepcopy(model), other, torch.randn(4, 3, 20, 20))


def test_undone():
    for undo in (fastnn.unfuse, fastnn.revert):
        _, fused, _ = pair(Net)
        undo(fused)
        assert type(fused) is Net and type(fused.block1) is Block and type(fused.block2.down) is nn.Sequential
        assert all("_plan" not in vars(m) for m in fused.modules())


class Sums:
    """Forwards with a sum, and the chains found."""

    class Plain(Layers):
        def forward(self, x):
            return self.relu(self.bn(x) + x)

    class Reversed(Layers):
        def forward(self, x):
            return torch.add(x, self.bn(x)).relu()

    class Branches(Layers):
        def forward(self, x):
            return FF.sigmoid(self.bn(x).add(self.other(x)))

    class NoActivation(Layers):
        def forward(self, x):
            return self.pool(self.bn(x) + x)

    class Broadcast(Layers):
        def forward(self, x):
            return self.relu(self.bn(x) + x[:, :1])

    class SavesInput(Layers):
        def forward(self, x):
            return FF.gelu(self.bn(x) + x)

    class Doubled(Layers):
        def forward(self, x):
            y = self.bn(x)
            return self.relu(y + y)


@pytest.mark.parametrize(
    "cls", [c for c in vars(Sums).values() if isinstance(c, type)], ids=lambda c: c.__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums(cls, dtype):
    model, fused, _ = pair(cls)
    model.to(dtype), fused.to(dtype)
    expected = cls in (Sums.Plain, Sums.Reversed, Sums.Branches)
    for train in (True, False):
        for m in (model, fused):
            m.train(train)
        y, gradients, _ = step(model, X.to(dtype))
        z, fused_gradients, ran = step(fused, X.to(dtype))
        assert ran == expected or not expected
        assert torch.equal(y, z)
        for a, b in zip(gradients, fused_gradients, strict=True):
            assert a is b is None or torch.equal(a, b)


def test_sum_behind_an_overwritten_input():
    """A chain with a sum starts as late as its sum: not where something is overwritten in between."""

    class Overwrites(Layers):
        def forward(self, x):
            x = x * 1
            y = self.bn(x)
            x.mul_(2)
            return self.relu(y + x)

    model, fused, _ = pair(Overwrites)
    with torch.no_grad():
        assert torch.equal(fused(X), model(X))


def test_sum_behind_the_same_layer():
    """A layer that is called twice counts its batches in the order of the calls."""

    class Twice(Layers):
        def forward(self, x):
            y = self.bn(x)
            z = self.bn(x * 3 + 1)
            return self.relu(y + z)

    check(*pair(Twice)[:2], X, chain=True)


def test_sum_second_derivatives():
    model, fused, _ = pair(Sums.Plain)
    model.double(), fused.double()
    x = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    found = []
    for m in (model, fused):
        m.relu = nn.Tanh()
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(m(z).pow(2).sum(), z, create_graph=True)
        found.append(torch.autograd.grad(g.pow(2).sum(), [z, *m.bn.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class Unfit:
    """Forwards that a trace would freeze or break, and what the report says."""

    class Types(Layers):
        """isinstance"""

        def forward(self, x):
            if isinstance(x, list):
                x = x[0]
            return self.relu(self.bn(x))

    class Shapes(Layers):
        """control flow"""

        def forward(self, x):
            if x.shape[0] > 3:
                x = x[:3]
            return self.relu(self.bn(x))

    class Random(Layers):
        """uses rand"""

        def forward(self, x):
            if torch.rand(1) > 0.5:
                x = x * 2
            return self.relu(self.bn(x))

    class Modes(Layers):
        """uses is_grad_enabled"""

        def forward(self, x):
            return self.relu(self.bn(x)) if torch.is_grad_enabled() else x

    class Remembers(Layers):
        """changes what outlives the call"""

        def forward(self, x):
            self.last = self.relu(self.bn(x))
            return self.last

    class Collects(Layers):
        """reads self.names, list"""

        def forward(self, x):
            self.names.append("x")
            return self.relu(self.bn(x))

    class Without(Layers):
        """uses no_grad"""

        def forward(self, x):
            with torch.no_grad():
                return self.relu(self.bn(x))

    class Variable(Layers):
        """variable number"""

        def forward(self, *x):
            return self.relu(self.bn(x[0]))

    class Decorated(Layers):
        """decorated"""

        @torch.no_grad()
        def forward(self, x):
            return self.relu(self.bn(x))

    class Child(Layers):
        """uses print"""

        def __init__(self):
            super().__init__()
            self.child = Unfit.Helper()

        def forward(self, x):
            return self.child.work(self.relu(self.bn(x)))

    class Helper(Layers):
        """uses print"""

        def forward(self, x):
            return self.work(x)

        def work(self, x):
            print("at work")
            return self.relu(self.bn(x))


@pytest.mark.parametrize(
    "cls", [c for c in vars(Unfit).values() if isinstance(c, type)], ids=lambda c: c.__name__
)
def test_unfit(cls):
    _, fused, report = pair(cls)
    assert "" not in report.fused
    assert cls.__doc__ in report.kept[""]
    assert cls.__doc__ in str(report)
    assert type(fused) is cls


class Guarded(Layers):
    def forward(self, x, mask=None):
        x = self.relu(self.bn(x)) * self.scale + self.other.eps
        if self.mode == "b":
            x = x + 1
        if self.training:
            x = x - 1
        return x if mask is None else x * mask


def test_what_a_trace_took_for_granted():
    """Attributes that are plain values, optional arguments and the mode are asked at each call."""
    model, fused, report = pair(Guarded)
    assert report.fused == {"": ["BatchNorm2d + ReLU"]}
    check(model, fused, X)
    for name, value in (("scale", 3.0), ("mode", "b")):
        for m in (model, fused):
            setattr(m, name, value)
        assert torch.equal(fused(X), model(X))
    for m in (model, fused):  # of a layer, too
        m.other.eps = 2.0
    assert torch.equal(fused(X), model(X))
    model, fused, _ = pair(Guarded)
    assert torch.equal(fused(X, X), model(X, X))
    assert torch.equal(fused(X, mask=X), model(X, mask=X))
    assert torch.equal(fused(x=X), model(x=X))


def test_exchanged_layers():
    model, fused, _ = pair(Guarded)
    for m in (model, fused):
        m.relu = fastnn.ELU()
    check(model, fused, X)
    for m in (model, fused):
        m.relu = nn.PReLU()
    assert torch.equal(fused(X), model(X))


def test_hooks():
    model, fused, _ = pair(Guarded)
    seen = []
    handle = fused.relu.register_forward_hook(lambda m, args, y: seen.append(y))
    assert torch.equal(fused(X), model(X))
    assert len(seen) == 1
    handle.remove()
    assert step(fused, X)[2]


def test_functions():
    """Functions of torch.nn.functional, torch and Tensor are layers of a chain, too."""

    class Functions(Layers):
        def forward(self, x):
            x = F.avg_pool2d(F.elu(self.bn(x), 0.7), 2, stride=1)
            x = F.max_pool2d(F.leaky_relu(self.other(x), 0.2), 3, 2, padding=1, ceil_mode=True)
            return F.adaptive_avg_pool2d(x.tanh(), 2)

    model, fused, report = pair(Functions)
    assert report.fused[""] == [
        "BatchNorm2d + ELU + AvgPool2d",
        "BatchNorm2d + LeakyReLU + MaxPool2d",
        "Tanh + AdaptiveAvgPool2d",
    ]
    for train in (True, False):
        for m in (model, fused):
            m.train(train)
        torch.testing.assert_close(fused(X), model(X))


def test_compilers():
    model, fused, _ = pair(Block, 3, 5)
    for m in (model, fused):
        m.eval()
    with torch.no_grad():
        expected = model(X)
        for compiled in (
            torch.compile(fused, fullgraph=True, backend="eager"),
            torch.fx.symbolic_trace(fused),
            torch.jit.trace(fused, X),
            torch.export.export(fused, (X,)).module(),
        ):
            torch.testing.assert_close(compiled(X), expected)
    assert inspect.signature(fused.forward) == inspect.signature(model.forward)
    torch.testing.assert_close(torch.vmap(fused)(X[None]), torch.vmap(model)(X[None]))
    torch.testing.assert_close(torch.jit.script(fused)(X), expected)
