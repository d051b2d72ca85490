"""fastnn.fuse: nobody can tell but by the clock. Hooks, exchanged layers, copies, compilers, errors."""

import copy
import io
import pickle

import pytest
import torch
from chain_support import check, pair, step
from torch import nn

import fastnn
from fastnn.fuse import FusedSequential

HOOKS = {
    "forward": lambda m, hook: m.register_forward_hook(lambda *a: hook()),
    "pre": lambda m, hook: m.register_forward_pre_hook(lambda *a: hook()),
    "backward": lambda m, hook: m.register_full_backward_hook(lambda *a: hook()),
    "backward pre": lambda m, hook: m.register_full_backward_pre_hook(lambda *a: hook()),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hooks(layer, register):
    """A hook on any layer of a chain sees that layer, whenever it is registered; without it the chain is back."""
    x = torch.randn(2, 3, 8, 8)
    model, fused = pair(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2))
    calls = []
    handle = register(fused[layer], lambda: calls.append(1))
    check(model, fused, x, chain=False)
    assert len(calls) == 2
    handle.remove()
    check(model, fused, x)


def test_global_hook():
    x = torch.randn(2, 3, 8, 8)
    _, fused = pair(nn.BatchNorm2d(3), nn.ReLU())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *a: seen.append(type(m).__name__))
    try:
        fused(x)
    finally:
        handle.remove()
    assert seen == ["BatchNorm2d", "ReLU", "FusedSequential"]


def test_changes_after_fuse():
    """Attributes are read at each call; layers may be exchanged, added and taken out."""
    x = torch.randn(2, 3, 12, 12)
    model, fused = pair(nn.BatchNorm2d(3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Dropout(0.5))

    def both(change):
        for m in (model, fused):
            change(m)
        check(model, fused, x)

    both(lambda m: setattr(m[1], "negative_slope", 0.3))
    both(lambda m: setattr(m[2], "stride", 3))
    both(lambda m: setattr(m[3], "p", 0.1))
    both(lambda m: setattr(m[0], "eps", 0.1))
    both(lambda m: m.__setitem__(1, fastnn.ELU()))
    both(lambda m: m.append(fastnn.BatchNorm2d(3)).append(fastnn.ReLU()))
    both(lambda m: m.__delitem__(1))


def test_dropout_of_everything():
    check(*pair(nn.BatchNorm2d(3), nn.Dropout(1.0)), torch.randn(2, 3, 4, 4), modes=(True,), chain=False)
    check(*pair(nn.BatchNorm2d(3), nn.Dropout(0.0)), torch.randn(2, 3, 4, 4))


def test_parts_of_a_fused_model():
    x = torch.randn(2, 3, 8, 8)
    model, fused = pair(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2))
    assert torch.equal(fused[1](x), x.relu())
    assert torch.equal(fused[:2](x), model[:2](x))
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in model.named_modules()]
    assert list(fused.state_dict()) == list(model.state_dict())
    fused.load_state_dict(model.state_dict())
    model.load_state_dict(fused.state_dict())


def test_copies():
    x = torch.randn(2, 3, 8, 8)
    model, fused = pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    fused(x)
    model(x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is FusedSequential
        check(copy.deepcopy(model), other, x)


def test_undone():
    for undo in (fastnn.unfuse, fastnn.revert):
        model, fused = pair(nn.BatchNorm2d(3), nn.ReLU())
        undo(fused)
        assert type(fused) is nn.Sequential and "_plan" not in vars(fused)
    assert fastnn.unfuse(model) == 0


def test_torch_layers():
    """torch's own layers are fused as well, and accelerate may come later."""
    x = torch.randn(2, 3, 8, 8)
    theirs = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2))
    fused = copy.deepcopy(theirs)
    fastnn.fuse(fused)
    y, gradients, ran = step(fused, x)
    z, expected, _ = step(theirs, x)
    assert ran
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
    fastnn.accelerate(fused)
    assert isinstance(fused[0], fastnn.BatchNorm2d) and step(fused, x)[2]


def test_report():
    class Own(nn.Sequential):
        pass

    model = nn.Sequential(
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), Own(nn.BatchNorm2d(3), nn.ReLU()), nn.ReLU()
    )
    report = fastnn.fuse(model)
    assert report.fused["0"] == ["BatchNorm2d + ReLU"]
    assert "BatchNorm2d + ReLU" in str(report)
    with pytest.raises(TypeError, match="not int"):
        fastnn.fuse(3)


def test_errors():
    """The layers' own errors, and running statistics as before."""
    model, fused = pair(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(4))
    for x in (
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 3, 2, 2),
        torch.randn(3, 8, 8),
        torch.ones(2, 3, 8, 8).int(),
    ):
        raised = []
        for m in (model, fused):
            before = copy.deepcopy(m[0].state_dict())
            with pytest.raises((ValueError, RuntimeError)) as error:
                m(x)
            raised.append((type(error.value), str(error.value)))
            same = all(map(torch.equal, before.values(), m[0].state_dict().values()))
            assert same or "pool" in str(error.value).lower() or "output size" in str(error.value).lower()
        assert raised[0] == raised[1]


def test_modes():
    x = torch.randn(2, 3, 8, 8)
    model, fused = pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with torch.autocast("cpu", torch.bfloat16):
        check(model, fused, x, chain=False)
    fastnn._C.set_enabled(False)
    try:
        check(model, fused, x, chain=False)
    finally:
        fastnn._C.set_enabled(True)
    meta = copy.deepcopy(fused).to("meta")
    assert meta(x.to("meta")).shape == (2, 4, 6, 6)


def test_transforms():
    x = torch.randn(5, 2, 3, 8, 8)
    model, fused = pair(nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2))
    for m in (model, fused):
        m.eval()
    torch.testing.assert_close(torch.vmap(fused)(x), torch.vmap(model)(x))
    torch.testing.assert_close(
        torch.func.grad(lambda z: fused(z).sum())(x[0]), torch.func.grad(lambda z: model(z).sum())(x[0])
    )
    torch.testing.assert_close(
        torch.func.jvp(fused, (x[0],), (x[1],)), torch.func.jvp(model, (x[0],), (x[1],))
    )


def test_compilers():
    x = torch.randn(2, 3, 8, 8)
    model, fused = pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    for m in (model, fused):
        m.eval()
    with torch.no_grad():
        expected = model(x)
        for compiled in (
            torch.compile(fused, fullgraph=True, backend="eager"),
            torch.fx.symbolic_trace(fused),
            torch.jit.script(fused),
            torch.jit.trace(fused, x),
            torch.export.export(fused, (x,)).module(),
        ):
            torch.testing.assert_close(compiled(x), expected)


def test_profiler():
    _, fused = pair(nn.BatchNorm2d(3), nn.ReLU())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(fused, torch.randn(2, 3, 8, 8))
    names = {event.name for event in profile.events()}
    assert {"fastnn::_chain", "fastnn::_chain_backward", "ChainBackward"} <= names


def test_explain():
    _, fused = pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    seen = fastnn.explain(fused, torch.randn(2, 3, 8, 8))
    assert seen.native == ["", "0", "1", "2", "4"]
    assert "chain" in str(seen) and "in a chain of (model)" in str(seen)
    assert step(fused, torch.randn(2, 3, 8, 8))[2]


def test_checkpoint():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    _, fused = pair(nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5))
    fused[0].eval()
    found = []
    for run in (fused, lambda z: torch.utils.checkpoint.checkpoint(fused, z, use_reentrant=False)):
        torch.manual_seed(2)
        y = run(x)
        found.append((y, *torch.autograd.grad(y.sum(), x)))
    assert all(map(torch.equal, *found))


def test_training():
    """30 steps, dropout included: the same losses."""
    torch.manual_seed(0)
    x, t = torch.randn(32, 1, 12, 12), torch.randint(0, 4, (32,))
    layers = (
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten()),
        *(nn.Linear(150, 20), nn.ELU(), nn.Dropout(0.2), nn.Linear(20, 4)),
    )
    curves = []
    for model in pair(*layers):
        torch.manual_seed(5)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0] / 2
