"""Recurrent layers and cells: arguments, packed sequences, states, derivatives, threads, checkpoints, fallbacks."""

import copy
import io
import itertools

import pytest
import torch
from support import Family, case
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastnn
from fastnn.testing.cases import parity_cases
from fastnn.testing.networks import packed_sizes

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
KINDS = (
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
)


def recurrent(shape, *args, **kw):
    return case("recurrent", shape, *args, dtypes=("float32", "float64"), **kw)


class TestRnn(Family):
    parity_cases = tuple(parity_cases("rnn"))
    layouts_cases = tuple(c for c in parity_cases if not c.kwargs.get("num_layers"))[::3]
    views_cases = (recurrent((5, 3, 6), "GRU", 6, 7), recurrent((3, 6), "LSTMCell", 6, 7))
    derivatives_cases = (
        recurrent((3, 2, 3), "RNN", 3, 4, states=True, bidirectional=True),
        recurrent((3, 2, 3), "RNN", 3, 4, states=True, nonlinearity="relu"),
        recurrent((3, 2, 3), "GRU", 3, 4, states=True, num_layers=2),
        recurrent((2, 3, 3), "LSTM", 3, 4, states=True, batch_first=True, bias=False),
        recurrent((3, 2, 3), "LSTM", 3, 4, states=True, proj_size=2, bidirectional=True),
        recurrent((sum(packed_sizes(3, 4)), 3), "LSTM", 3, 4, states=True, packed=(3, 4), bidirectional=True),
        recurrent((sum(packed_sizes(3, 4)), 3), "GRU", 3, 4, states=True, packed=(3, 4)),
        *(recurrent((2, 3), name, 3, 4) for name in CELLS),
    )
    threads_cases = (
        recurrent((20, 30, 40), "LSTM", 40, 100, states=True),
        recurrent((15, 2, 40), "GRU", 40, 300, states=True),
        recurrent((15, 2, 40), "LSTM", 40, 300, states=True, proj_size=200, bidirectional=True),
        recurrent(
            (sum(packed_sizes(37, 20)), 40), "RNN", 40, 120, states=True, packed=(37, 20), bidirectional=True
        ),
    )


def twins(name, *args, dtype=torch.float64, **kw):
    """torch's layer and ours, with each other's checkpoints loaded."""
    theirs, ours = (
        getattr(torch.nn, name)(*args, **kw).to(dtype),
        getattr(fastnn, name)(*args, **kw).to(dtype),
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(1.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def initial(layer, *batch, dtype=torch.float64, count=None):
    """Random initial states, as the layer takes them."""
    count = layer.num_layers * (1 + layer.bidirectional) if count is None else count
    h = torch.randn(count, *batch, layer.proj_size or layer.hidden_size, dtype=dtype, requires_grad=True)
    if layer.mode != "LSTM":
        return h
    return h, torch.randn(count, *batch, layer.hidden_size, dtype=dtype, requires_grad=True)


def as_tuple(states):
    return states if isinstance(states, tuple) and not isinstance(states, PackedSequence) else (states,)


def check(theirs, ours, x, states=None, native=True):
    """Outputs, states and every gradient, of a loss that uses all of them."""
    data = x.data if isinstance(x, PackedSequence) else x
    leaves = [data] if data.requires_grad else []
    leaves += [] if states is None else list(as_tuple(states))
    results = []
    for layer, strict in ((theirs, False), (ours, native)):
        if strict:
            with fastnn.strict():
                y, last = layer(x, states)
        else:
            y, last = layer(x, states)
        if isinstance(x, PackedSequence):
            assert torch.equal(y.batch_sizes, x.batch_sizes)
            for mine, given in zip(y[2:], x[2:], strict=True):
                assert (mine is None and given is None) or torch.equal(mine, given)
            y = y.data
        outputs = [y, *as_tuple(last)]
        loss = sum((i + 1) * t.sin().sum() for i, t in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, [*leaves, *layer.parameters()])])
    for mine, other in zip(results[1], results[0], strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=str)
@pytest.mark.parametrize("states", [False, True])
def test_arguments(name, kind, states, capability):
    for bias, batch_first, layers, bidirectional in itertools.product(
        (True, False), (True, False), (1, 2), (True, False)
    ):
        theirs, ours = twins(
            name, 4, 7, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, **kind
        )
        x = torch.randn((3, 5, 4) if batch_first else (5, 3, 4), dtype=torch.float64, requires_grad=True)
        check(theirs, ours, x, initial(ours, 3) if states else None)


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=str)
@pytest.mark.parametrize("states", [False, True])
def test_unbatched(name, kind, states):
    for batch_first in (True, False):
        theirs, ours = twins(name, 4, 7, 2, batch_first=batch_first, bidirectional=True, **kind)
        x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
        check(theirs, ours, x, initial(ours) if states else None)


LENGTHS = {"sorted": [6, 4, 4, 1], "mixed": [2, 6, 1, 6], "equal": [3, 3, 3, 3], "one": [5]}


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed(name, kind, lengths, capability):
    lengths = torch.tensor(LENGTHS[lengths])
    N, T = len(lengths), int(lengths.max())
    for layers, bidirectional, states in itertools.product((1, 2), (True, False), (True, False)):
        theirs, ours = twins(name, 4, 7, layers, bidirectional=bidirectional, **kind)
        x = torch.randn(T, N, 4, dtype=torch.float64)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        packed = PackedSequence(packed.data.requires_grad_(), *packed[1:])
        check(theirs, ours, packed, initial(ours, N) if states else None)


def test_packed_is_padded_without_the_padding():
    layer = fastnn.GRU(4, 7, bidirectional=True).double()
    pieces = [torch.randn(n, 4, dtype=torch.float64) for n in (5, 3, 2)]
    y, _ = pad_packed_sequence(layer(pack_sequence(pieces))[0])
    for i, piece in enumerate(pieces):
        torch.testing.assert_close(y[: len(piece), i], layer(piece)[0])


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(), (1,), (5,)])
def test_cells(name, batch, capability):
    kinds = ({}, {"bias": False}) + (({"nonlinearity": "relu"},) if name == "RNNCell" else ())
    for kw, states in itertools.product(kinds, (True, False)):
        theirs, ours = twins(name, 4, 7, **kw)
        x = torch.randn(*batch, 4, dtype=torch.float64, requires_grad=True)
        h, c = (torch.randn(*batch, 7, dtype=torch.float64, requires_grad=True) for _ in "hc")
        hx = ((h, c) if name == "LSTMCell" else h) if states else None
        results = []
        for layer in (theirs, ours):
            with fastnn.strict():
                new = as_tuple(layer(x, hx))
            wanted = [x, *layer.parameters(), *(as_tuple(hx) if states else ())]
            loss = sum((i + 1) * t.sin().sum() for i, t in enumerate(new))
            results.append([*new, *torch.autograd.grad(loss, wanted)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_cells_in_a_loop_are_the_layer():
    for cell_name, name in (("RNNCell", "RNN"), ("GRUCell", "GRU"), ("LSTMCell", "LSTM")):
        layer, cell = getattr(fastnn, name)(4, 7), getattr(fastnn, cell_name)(4, 7)
        cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
        x, state = torch.randn(6, 3, 4), None
        for step in x:
            state = cell(step, state)
        torch.testing.assert_close(as_tuple(state)[0], layer(x)[0][-1])


def test_gradients_of_some_inputs():
    """Frozen weights and inputs without a gradient; a second backward through the same graph."""
    for name in LAYERS:
        theirs, ours = twins(name, 4, 7)
        for layer in (theirs, ours):
            layer.weight_hh_l0.requires_grad_(False)
            layer.bias_ih_l0.requires_grad_(False)
        x = torch.randn(5, 3, 4, dtype=torch.float64)
        results = []
        for layer in (theirs, ours):
            loss = layer(x)[0].sin().sum()
            wanted = [layer.weight_ih_l0, layer.bias_hh_l0]
            results.append(torch.autograd.grad(loss, wanted, retain_graph=True))
            torch.testing.assert_close(torch.autograd.grad(loss, wanted), results[-1], rtol=0, atol=0)
        torch.testing.assert_close(results[1], results[0])


def test_second_derivatives_mix_inputs_and_weights():
    """One tensor as both states has a gradient for each place."""
    layer = fastnn.LSTMCell(3, 4).double()
    x, h = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    assert torch.autograd.gradcheck(lambda x, h: layer(x, (h, h)), (x, h))
    assert torch.autograd.gradgradcheck(lambda x, h: layer(x, (h, h)), (x, h))
    norm = (
        torch.autograd.grad(layer(x, (h, h))[0].sum(), layer.weight_hh, create_graph=True)[0].square().sum()
    )
    norm.backward()
    assert layer.weight_ih.grad is not None and x.grad is not None


# --- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_between_layers():
    torch.manual_seed(3)
    layer, x = fastnn.GRU(4, 50, 2, dropout=0.5), torch.randn(6, 3, 4)
    with fastnn.strict():
        first, other = layer(x)[0], layer(x)[0]
        assert not torch.equal(first, other)
        torch.manual_seed(3)
        torch.manual_seed(5)
        first = layer(x)[0]
        torch.manual_seed(5)
        assert torch.equal(layer(x)[0], first)
        assert torch.equal(layer.eval()(x)[0], layer(x)[0])
    theirs = torch.nn.GRU(4, 50, 2, dropout=0.5).eval()
    theirs.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x)[0], theirs(x)[0], rtol=1e-4, atol=1e-5)


def test_dropout_drops_what_the_second_layer_reads():
    """With p = 1 the second layer sees zeros; at p in between it sees the first one's output over 1 - p, or zero."""
    layer, x = fastnn.RNN(4, 30, 2, dropout=1.0), torch.randn(6, 3, 4)
    alone = fastnn.RNN(30, 30)
    alone.load_state_dict(
        {k.replace("l1", "l0"): v for k, v in layer.state_dict().items() if k.endswith("l1")}
    )
    torch.testing.assert_close(layer(x)[0], alone(torch.zeros(6, 3, 30))[0])
    with torch.no_grad():
        layer.weight_ih_l1.copy_(torch.eye(30))
        layer.weight_hh_l1.zero_(), layer.bias_ih_l1.zero_(), layer.bias_hh_l1.zero_()
    layer.dropout = 0.25
    first = fastnn.RNN(4, 30)
    first.load_state_dict({k: v for k, v in layer.state_dict().items() if k.endswith("l0")})
    ratio = (torch.atanh(layer(x)[0]) / first(x)[0]).detach().flatten()
    kept = ratio.abs() > 1e-6
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 4 / 3), rtol=1e-3, atol=1e-3)
    assert 0.15 < 1 - kept.float().mean() < 0.35


# --- training, checkpoints, copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_training_curve(name):
    """Thirty steps of SGD: the curve of torch's layer, to rounding."""
    torch.manual_seed(1)
    x, target = torch.randn(12, 8, 5), torch.randn(12, 8, 10)
    theirs, ours = twins(name, 5, 10, 2, dtype=torch.float32)
    curves = []
    for layer in (theirs, ours):
        optimizer, curve = torch.optim.SGD(layer.parameters(), 0.2, momentum=0.9), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = (layer(x)[0] - target).square().mean()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.97 * curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=2e-5, atol=0)


def test_state_between_calls():
    """Truncated backpropagation: the last state of one call, detached, begins the next."""
    for name in LAYERS:
        theirs, ours = twins(name, 4, 7)
        x = torch.randn(8, 3, 4, dtype=torch.float64)
        whole = ours(x)[0]
        state = None
        for piece in x.split(4):
            y, state = ours(piece, state)
            state = tuple(s.detach() for s in state) if name == "LSTM" else state.detach()
        torch.testing.assert_close(y, whole[4:])
        torch.testing.assert_close(y, theirs(x)[0][4:])


class FirstOutput(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor):
        return self.layer(x)[0]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_copies_and_tracing(name):
    layer = getattr(fastnn, name)(4, 7)
    x = torch.randn(3, 4) if name in CELLS else torch.randn(5, 3, 4)

    def first(result):
        return as_tuple(result)[0]

    expected = first(layer(x))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert type(twin) is type(layer)
        assert torch.equal(first(twin(x)), expected)
    assert type(layer) is type(copy.copy(layer))
    if name in LAYERS:  # torch.jit.script takes its overloaded forward within another module only
        scripted = torch.jit.script(FirstOutput(layer))
        torch.testing.assert_close(scripted(x), expected, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(first(torch.jit.script(layer)(x)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        first(torch.compile(layer, backend="eager")(x)), expected, rtol=1e-4, atol=1e-5
    )
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    assert traced.graph.find_nodes(op="call_module", target="0")


def test_functional_call_and_transforms():
    layer = fastnn.GRU(4, 7).double()
    theirs = torch.nn.GRU(4, 7).double()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    weights = {k: 0.5 * v.detach() for k, v in layer.named_parameters()}

    def loss(layer, weights, x):
        return torch.func.functional_call(layer, weights, (x,))[0].sin().sum()

    ours = torch.func.grad(lambda w: loss(layer, w, x[0]))(weights)
    expected = torch.func.grad(lambda w: loss(theirs, w, x[0]))(weights)
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value)
    for either in (theirs, layer):  # torch has no batching rule, and says so
        with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::gru"):
            torch.func.vmap(lambda row, m=either: m(row)[0])(x)
    cell = fastnn.GRUCell(4, 7).double()
    rows = torch.func.vmap(cell)(x[0])
    torch.testing.assert_close(rows, torch.stack([cell(row) for row in x[0]]))
    _, tangent = torch.func.jvp(lambda row: layer(row)[0], (x[0],), (x[1],))
    assert tangent.shape == (5, 3, 7)


def test_weights_are_read_at_every_call():
    for name in LAYERS:
        theirs, ours = twins(name, 4, 7)
        x = torch.randn(5, 3, 4, dtype=torch.float64)
        for change in (
            lambda m: m.weight_hh_l0.data.mul_(2),
            lambda m: setattr(m, "weight_hh_l0", torch.nn.Parameter(m.weight_hh_l0.detach() + 0.1)),
            lambda m: m.flatten_parameters(),
        ):
            change(theirs), change(ours)
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_accelerate_and_revert():
    model = torch.nn.ModuleList([getattr(torch.nn, name)(4, 7) for name in LAYERS + CELLS])
    names = set(fastnn.accelerate(model).swapped.values())
    assert names == {*LAYERS, *CELLS}
    x = torch.randn(5, 3, 4)
    with fastnn.strict():
        for layer in model[:3]:
            layer(x)
    assert "lstm" in str(fastnn.explain(model[2], x))
    fastnn.revert(model)
    assert [type(m) for m in model] == [getattr(torch.nn, name) for name in LAYERS + CELLS]
    model[1](x)


# --- errors and fallbacks ----------------------------------------------------------------------------------------------

BAD = {
    "dimensions": lambda: ((torch.randn(2, 2, 2, 4),), None),
    "input size": lambda: ((torch.randn(5, 3, 6),), None),
    "dtype": lambda: ((torch.randn(5, 3, 4, dtype=torch.float64),), None),
    "hidden size": lambda: ((torch.randn(5, 3, 4),), (1, 3, 8)),
    "hidden batch": lambda: ((torch.randn(5, 3, 4),), (1, 2, 7)),
    "hidden layers": lambda: ((torch.randn(5, 3, 4),), (2, 3, 7)),
    "hidden dimensions": lambda: ((torch.randn(5, 3, 4),), (3, 7)),
    "unbatched hidden": lambda: ((torch.randn(5, 4),), (1, 1, 7)),
    "no steps": lambda: ((torch.randn(0, 3, 4),), None),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", LAYERS)
def test_errors(name, kind):
    (x,), state = BAD[kind]()
    hx = None if state is None else torch.zeros(state)
    hx = (hx, hx) if hx is not None and name == "LSTM" else hx
    layers = getattr(torch.nn, name)(4, 7), getattr(fastnn, name)(4, 7)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        layers[0](x, hx)
    with pytest.raises(type(expected.value)) as raised:
        layers[1](x, hx)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("x", "state"),
    [((3, 2, 4), None), ((3, 6), None), ((3, 4), (3, 8)), ((3, 4), (2, 7)), ((3, 4), (1, 3, 7))],
)
def test_cell_errors(name, x, state):
    hx = None if state is None else torch.zeros(state)
    hx = (hx, hx) if hx is not None and name == "LSTMCell" else hx
    layers = getattr(torch.nn, name)(4, 7), getattr(fastnn, name)(4, 7)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        layers[0](torch.randn(x), hx)
    with pytest.raises(type(expected.value)) as raised:
        layers[1](torch.randn(x), hx)
    assert str(raised.value) == str(expected.value)


def test_fallbacks():
    """Other dtypes, autocast, an empty batch: torch's result, and the reason."""
    x = torch.randn(5, 3, 4)
    for name in LAYERS:
        theirs, ours = twins(name, 4, 7, dtype=torch.bfloat16)
        half = x.bfloat16()
        torch.testing.assert_close(ours(half)[0], theirs(half)[0])
        with fastnn.strict(), pytest.raises(RuntimeError, match="no kernel for this dtype"):
            ours(half)
        theirs, ours = twins(name, 4, 7, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(x)[0].dtype == theirs(x)[0].dtype
            with fastnn.strict(), pytest.raises(RuntimeError, match="autocast"):
                ours(x)
        with fastnn.strict(), pytest.raises(RuntimeError, match="an empty input"):
            ours(x[:, :0])
        assert ours(x[:, :0])[0].shape == theirs(x[:, :0])[0].shape


def test_special_values():
    """A NaN stays with its sequence; gates that saturate give no NaN."""
    for name, kind in KINDS:
        theirs, ours = twins(name, 4, 7, dtype=torch.float32, **kind)
        x = torch.randn(6, 20, 4)
        x[2, 5] = float("nan")
        x[1, 7] = 1e30
        y, expected = ours(x)[0], theirs(x)[0]
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert not y[:, :5].isnan().any() and y[2:, 5].isnan().any()
