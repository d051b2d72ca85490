"""fastnn.fuse in Sequential: the same numbers as the layers one by one, bit for bit, and only where nobody can tell."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fastnn
from fastnn.fuse import FusedSequential
from fastnn.modules.chain import _STAGES, Chain, chains


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
