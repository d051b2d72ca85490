"""Compilers, exporters and tracers take a fastnn model as they take one of torch.nn."""

import copy
import io

import pytest
import torch
from dropin import close, images, loss_and_gradients, twins

import fastnn


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_aot_eager(fresh_dynamo, dynamic):
    theirs, ours = twins()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (4, 6):
        close(loss_and_gradients(compiled, images(n)), loss_and_gradients(theirs, images(n)))


def test_compile_each_layer(fresh_dynamo):
    """Also under no_grad and in eval, whose branches differ."""
    theirs, ours = twins()
    theirs.eval(), ours.eval()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(images()), theirs(images()))


def test_compile_dropout(fresh_dynamo):
    layer = torch.compile(fastnn.Dropout(0.5), fullgraph=True, backend="aot_eager")
    y = layer(torch.ones(1000))
    assert set(y.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("inplace", [False, True])
def test_compile_rrelu(fresh_dynamo, inplace):
    layer = fastnn.RReLU(0.1, 0.3, inplace=inplace)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.full((1000,), -1.0, requires_grad=True)
    y = compiled(x * 1)
    slopes = -y.detach()
    assert slopes.min() >= 0.1 - 1e-6 and slopes.max() <= 0.3 + 1e-6 and slopes.var() > 0
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], slopes)


def test_compile_inductor(fresh_dynamo):
    """The default backend, on a model that is quick to compile."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ELU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(196, 5),
    ).double()
    ours = copy.deepcopy(theirs)
    fastnn.accelerate(ours)
    compiled = torch.compile(ours, fullgraph=True)
    close(loss_and_gradients(compiled, images()), loss_and_gradients(theirs, images()))


@pytest.mark.parametrize("strict_export", [True, False])
def test_export(fresh_dynamo, strict_export):
    theirs, ours = twins(dropout=True)
    theirs.eval(), ours.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(ours, (images(),), dynamic_shapes=({0: batch},), strict=strict_export)
    for n in (4, 7):
        close(program.module()(images(n)), theirs(images(n)))
    decomposed = program.run_decompositions()
    close(decomposed.module()(images()), theirs(images()))


def test_fx():
    """Layers stay whole in the graph, as torch's do."""
    theirs, ours = twins(dropout=True)
    graphs = [torch.fx.symbolic_trace(m.eval()) for m in (theirs, ours)]
    assert [(n.op, n.target) for n in graphs[1].graph.nodes] == [
        (n.op, n.target) for n in graphs[0].graph.nodes
    ]
    close(graphs[1](images()), theirs(images()))


def test_fx_through_functions():
    """A module that calls our functions is traced to torch's functions."""
    from fastnn import functional as F

    class Net(torch.nn.Module):
        def forward(self, x, w):
            y = F.max_pool2d(F.relu(F.conv2d(x, w, padding=1)), 2)
            return F.softmax(F.linear(y.flatten(1), y.flatten(1)), -1)

    traced = torch.fx.symbolic_trace(Net())
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    close(traced(x, w), Net()(x, w))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript():
    theirs, ours = twins(dropout=True)
    theirs.eval(), ours.eval()
    traced = torch.jit.trace(ours, images())
    close(traced(images(2)), theirs(images(2)))
    scripted = torch.jit.script(ours)
    close(scripted(images(2)), theirs(images(2)))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    close(torch.jit.load(buffer)(images(2)), theirs(images(2)))
