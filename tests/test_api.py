"""fastnn is torch.nn: names, signatures, repr, state, pickles, hooks, lazy layers, init and utils."""

import copy
import importlib
import inspect
import io
import pickle
import subprocess
import sys

import pytest
import torch

import fastnn
from fastnn import functional

NATIVE = {  # class -> constructor arguments, shape of an input
    "Linear": ((5, 3), (2, 5)),
    **{f"Conv{n}d": ((4, 6, 3), (2, 4, *[5] * n)) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": ((4, 6, 3), (2, 4, *[5] * n)) for n in (1, 2, 3)},
    **{f"{kind}Pool{n}d": ((2,), (2, 4, *[6] * n)) for kind in ("Max", "Avg") for n in (1, 2, 3)},
    **{f"Adaptive{kind}Pool{n}d": ((2,), (2, 4, *[6] * n)) for kind in ("Max", "Avg") for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": ((4,), (2, 4, *[5] * n)) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": ((4,), (2, 4, *[5] * n)) for n in (1, 2, 3)},
    **dict.fromkeys(("LayerNorm", "RMSNorm"), ((5,), (3, 5))),
    "GroupNorm": ((2, 4), (2, 4, 5)),
    **dict.fromkeys(
        [
            "ReLU",
            "LeakyReLU",
            "ELU",
            "Sigmoid",
            "Tanh",
            "ReLU6",
            "SELU",
            "CELU",
            "GELU",
            "SiLU",
            "Mish",
            "Softplus",
            "Softsign",
            "Hardtanh",
            "Hardswish",
            "Hardsigmoid",
            "LogSigmoid",
            "PReLU",
            "RReLU",
            "Tanhshrink",
            "Softshrink",
            "Hardshrink",
        ],
        ((), (3, 7)),
    ),
    "Threshold": ((0.1, 2.0), (3, 7)),
    "GLU": ((), (3, 8)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Softmin"), ((1,), (3, 7))),
    "Softmax2d": ((), (2, 3, 4, 4)),
    **{f"Dropout{n}": ((), (4, 8, *[3] * (int(n[0]) if n else 1))) for n in ("", "1d", "2d", "3d")},
    "AlphaDropout": ((), (4, 8)),
    "FeatureAlphaDropout": ((), (4, 8, 3)),
    "TransformerEncoderLayer": ((12, 4, 20, 0.0), (5, 3, 12)),
    **dict.fromkeys(("RNNCell", "GRUCell"), ((4, 5), (3, 4))),
}
# Ours, with more than one input or output, indices, or a layer as argument: tests/test_attention.py, test_embedding.py,
# test_loss.py, test_rnn.py.
COMPOSED = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "Embedding",
    "EmbeddingBag",
    "GRU",
    "LSTM",
    "LSTMCell",
    "MSELoss",
    "MultiheadAttention",
    "NLLLoss",
    "RNN",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
]
OPTIONAL = [f"{kind}{n}d" for kind in ("LPPool", "MaxUnpool") for n in (1, 2, 3)]  # may be torch's own
ALL_CLASSES = [n for n, v in vars(torch.nn).items() if inspect.isclass(v) and issubclass(v, torch.nn.Module)]


def build(name, library=fastnn, **kwargs):
    arguments, shape = NATIVE[name]
    return getattr(library, name)(*arguments, **kwargs), torch.randn(shape)


def public(module):
    return [name for name in dir(module) if not name.startswith("_")]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fastnn, torch.nn),
        (functional, torch.nn.functional),
        (fastnn.init, torch.nn.init),
        (fastnn.utils, torch.nn.utils),
    ],
    ids=lambda m: m.__name__,
)
def test_every_public_name(ours, theirs):
    missing = [name for name in public(theirs) if not hasattr(ours, name)]
    assert not missing


def test_star_import():
    """`from fastnn import *` gives what `from torch.nn import *` gives."""
    ours, theirs = {}, {}
    exec("from fastnn import *", ours)
    exec("from torch.nn import *", theirs)
    assert not set(theirs) - set(ours)
    exec("from fastnn.functional import *", ours)
    exec("from torch.nn.functional import *", theirs)
    assert not set(theirs) - set(ours)


@pytest.mark.parametrize("name", ["functional", "init", "utils", "utils.rnn", "utils.parametrizations", "utils.prune",
                                  "modules", "modules.conv", "parallel", "parameter", "attention"])  # fmt: skip
def test_submodules_can_be_imported(name):
    assert importlib.import_module(f"fastnn.{name}")


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_class(name):
    """Ours is a subclass with the same name and signature, or torch's own object."""
    ours, theirs = getattr(fastnn, name), getattr(torch.nn, name)
    assert issubclass(ours, theirs) and ours.__name__ == theirs.__name__
    if name in NATIVE or name in COMPOSED:
        assert ours is not theirs
    elif name not in OPTIONAL and not name.startswith("Lazy"):
        assert ours is theirs
    same_signature(ours.__init__, theirs.__init__)
    same_signature(ours, theirs)
    assert ours.forward.__doc__ is None or isinstance(ours.forward.__doc__, str)


def same_signature(ours, theirs):
    """Names, kinds and defaults of the parameters; not the annotations."""
    try:
        expected = inspect.signature(theirs)
    except ValueError:
        return  # a builtin that does not tell

    if [p.name for p in expected.parameters.values()] == ["args", "kwargs"]:
        return  # torch's own dispatch on return_indices, which does not tell either

    def plain(signature):
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    assert plain(inspect.signature(ours)) == plain(expected)


FUNCTIONS = [n for n in public(torch.nn.functional) if inspect.isroutine(getattr(torch.nn.functional, n))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_signature(name):
    same_signature(getattr(functional, name), getattr(torch.nn.functional, name))


@pytest.mark.parametrize("name", NATIVE)
def test_forward_signature(name):
    same_signature(getattr(fastnn, name).forward, getattr(torch.nn, name).forward)


@pytest.mark.parametrize("name", NATIVE)
def test_repr_and_constants(name):
    ours, theirs = build(name)[0], build(name, torch.nn)[0]
    assert repr(ours) == repr(theirs) and ours.extra_repr() == theirs.extra_repr()
    assert ours.__doc__ == theirs.__doc__
    assert getattr(ours, "__constants__", None) == getattr(theirs, "__constants__", None)


@pytest.mark.parametrize("name", NATIVE)
def test_attributes(name):
    """No attribute more or less than torch's (but for the mark that keeps fx from looking inside)."""
    ours, theirs = build(name)[0], build(name, torch.nn)[0]
    assert set(vars(ours)) - {"__module__"} == set(vars(theirs))


@pytest.mark.parametrize("name", NATIVE)
def test_state_dict_both_ways(name):
    ours, theirs = build(name)[0].eval(), build(name, torch.nn)[0].eval()
    x = torch.randn(NATIVE[name][1])
    for a, b in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for p in a.parameters():
                p.uniform_(-1, 1)
        b.load_state_dict(a.state_dict(), strict=True)
        assert list(a.state_dict()) == list(b.state_dict())
        assert a.state_dict()._metadata == b.state_dict()._metadata
        torch.testing.assert_close(a(x), b(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NATIVE)
def test_pickle_and_deepcopy(name):
    layer, x = build(name)
    layer.eval()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    twins = [pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), torch.load(buffer, weights_only=False)]
    for twin in twins:
        assert type(twin) is type(layer) is getattr(fastnn, name)
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


def test_weights_only_load_of_a_state_dict(tmp_path):
    layer = fastnn.Conv2d(3, 4, 3)
    torch.save(layer.state_dict(), tmp_path / "weights.pt")
    twin = torch.nn.Conv2d(3, 4, 3)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(twin.weight, layer.weight)


@pytest.mark.parametrize("name", NATIVE)
def test_factory_arguments(name):
    """device= and dtype= where torch has them."""
    if "dtype" not in inspect.signature(getattr(torch.nn, name).__init__).parameters:
        assert "dtype" not in inspect.signature(getattr(fastnn, name).__init__).parameters
        return
    layer, _ = build(name, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())


def test_same_initial_weights():
    for name in NATIVE:
        torch.manual_seed(7)
        ours = build(name)[0]
        torch.manual_seed(7)
        theirs = build(name, torch.nn)[0]
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "name", [n for n in NATIVE if not n.startswith(("RReLU", "Dropout", "Alpha", "FeatureAlpha"))]
)
def test_hooks(name):
    """Forward, pre-forward and full backward hooks see the values that torch's layer shows them."""
    ours, theirs = build(name)[0], build(name, torch.nn)[0]
    theirs.load_state_dict(ours.state_dict())
    x, logs = torch.randn(NATIVE[name][1]), []
    for layer in (ours, theirs):
        log = []
        layer.register_forward_pre_hook(lambda m, args, log=log: log.append(args[0].detach().clone()))
        layer.register_forward_hook(lambda m, args, out, log=log: log.append(out.detach().clone()))
        layer.register_full_backward_pre_hook(lambda m, dy, log=log: log.append(dy[0].clone()))
        layer.register_full_backward_hook(
            lambda m, dx, dy, log=log: log.extend([dx[0].clone(), dy[0].clone()])
        )
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        logs.append([*log, leaf.grad])
    assert len(logs[0]) == 6
    torch.testing.assert_close(logs[0], logs[1], rtol=1e-4, atol=1e-4)


def test_hooks_may_replace():
    layer = fastnn.ReLU()
    layer.register_forward_pre_hook(lambda m, args: (args[0] + 10,))
    layer.register_forward_hook(lambda m, args, y: y * 2)
    assert torch.equal(layer(torch.zeros(2)), torch.full((2,), 20.0))


def test_named_parameters():
    def build(nn):
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Flatten(), nn.Linear(8, 2))

    def names(model):
        return [(n, p.shape) for n, p in model.named_parameters()] + [n for n, _ in model.named_buffers()]

    assert names(build(fastnn)) == names(build(torch.nn))


# torch's lazy instance norm can't be called after a load_state_dict.
LAZY = [
    n
    for n in ALL_CLASSES
    if n.startswith("Lazy") and n.removeprefix("Lazy") in NATIVE and "InstanceNorm" not in n
]


@pytest.mark.parametrize("name", LAZY)
def test_lazy(name):
    """Materialises into our class, from a call or from a state_dict."""
    plain = name.removeprefix("Lazy")
    (first, *rest), shape = NATIVE[plain]
    layer = getattr(fastnn, name)(*rest)
    assert layer.has_uninitialized_params() or not list(layer.parameters())
    source = getattr(torch.nn, plain)(first, *rest)
    other = getattr(fastnn, name)(*rest)
    layer(torch.randn(shape))
    assert type(layer) is getattr(fastnn, plain)
    other.load_state_dict(source.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(other.eval()(x), source.eval()(x), rtol=1e-4, atol=1e-5)
    assert type(other) is getattr(fastnn, plain)


def test_init_functions():
    torch.manual_seed(0)
    ours = fastnn.init.kaiming_uniform_(fastnn.Linear(4, 3).weight)
    torch.manual_seed(0)
    assert torch.equal(ours, torch.nn.init.kaiming_uniform_(torch.nn.Linear(4, 3).weight))


def test_utils():
    """clip_grad_norm_, parameters_to_vector, weight_norm, spectral_norm, prune work on our layers."""
    from fastnn.utils import (
        clip_grad_norm_,
        parameters_to_vector,
        parametrizations,
        prune,
        vector_to_parameters,
    )

    layer, twin, x = fastnn.Linear(6, 4), torch.nn.Linear(6, 4), torch.randn(3, 6)
    twin.load_state_dict(layer.state_dict())
    assert parameters_to_vector(layer.parameters()).numel() == 28
    vector_to_parameters(torch.arange(28.0) / 28, layer.parameters())
    vector_to_parameters(torch.arange(28.0) / 28, twin.parameters())
    layer(x).sum().backward()
    assert clip_grad_norm_(layer.parameters(), 0.1) > 0
    for change in (parametrizations.weight_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)):
        a, b = copy.deepcopy(layer), copy.deepcopy(twin)
        change(a), change(b)
        for _ in range(2):  # also after the weight has changed
            torch.testing.assert_close(a(x), b(x))
            with torch.no_grad():
                for m in (a, b):
                    next(iter(m.parameters())).mul_(0.9)
    conv = parametrizations.spectral_norm(fastnn.Conv2d(2, 3, 3))
    assert conv(torch.randn(1, 2, 5, 5)).shape == (1, 3, 3, 3)


def test_weights_are_read_at_every_call():
    """No packed copy of a weight outlives a change of it, however it is made."""
    for name in ("Linear", "Conv2d", "ConvTranspose2d", "BatchNorm2d"):
        layer, x = build(name)
        layer.eval()
        twin = getattr(torch.nn, name)(*NATIVE[name][0]).eval()
        changes = [
            lambda m: m.weight.data.mul_(2),
            lambda m: m.weight.data.copy_(torch.linspace(-1, 1, m.weight.numel()).view_as(m.weight)),
            lambda m: setattr(m, "weight", torch.nn.Parameter(m.weight.detach() + 1)),
            lambda m: m.weight.detach().view(-1)[0].add_(3),
            lambda m: m.weight.detach().numpy().__imul__(0.5),
        ]
        with torch.no_grad():
            for change in changes:
                change(layer)
                twin.load_state_dict(layer.state_dict())
                torch.testing.assert_close(layer(x), twin(x), rtol=1e-4, atol=1e-4)


def test_version_and_info():
    assert fastnn.__version__[0].isdigit()
    facts = fastnn.info()
    assert facts["cpu capability"] == fastnn._C.cpu_capability() and facts["ops"]


def test_command_line():
    text = subprocess.run(
        [sys.executable, "-m", "fastnn", "info"], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" in text and fastnn._C.cpu_capability() in text and "float32" in text


def test_import_starts_nothing():
    """Importing is quiet, sets no default of torch and starts no threads of OpenMP."""
    code = (
        "import torch;"
        "state = lambda: (torch.get_num_threads(), torch.get_default_dtype(), torch.relu, torch.nn.Linear.forward);"
        "before = state(); import fastnn;"
        "assert before == state();"
        "import os; print(len(os.listdir('/proc/self/task')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "" and int(result.stdout) < 4
