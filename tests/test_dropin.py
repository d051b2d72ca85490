"""What users do to a torch.nn model works on a fastnn model with all families, with the same result."""

import copy
import io
import os
import pickle

import models
import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fastnn

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def twins(seed=0, dropout=False):
    """In float64, so that a chain of batch norms does not blur what is compared."""
    return tuple(model.double() for model in models.twins(seed, dropout))


def images(n=4, dtype=torch.float64, seed=1):
    return models.images(n, dtype, seed)


def close(a, b):
    torch.testing.assert_close(a, b, **CLOSE)


def loss_and_gradients(model, x):
    model.zero_grad(set_to_none=True)
    y = model(x)
    loss = torch.nn.functional.nll_loss(y, torch.arange(len(x)) % 5)
    loss.backward()
    return [y.detach(), loss.detach(), *(p.grad.clone() for p in model.parameters()), *model.buffers()]


def test_forward_and_backward(strict):
    """Without a single fallback."""
    theirs, ours = twins()
    x = images()
    for training in (True, False):
        theirs.train(training), ours.train(training)
        close(loss_and_gradients(ours, x), loss_and_gradients(theirs, x))


def test_isinstance():
    theirs, ours = twins(dropout=True)
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, type(b))
        if type(b) not in (torch.nn.Flatten, torch.nn.Sequential):
            assert type(a) is not type(b)


def test_state_dict_both_ways():
    theirs, ours = twins()
    ours.train()(images())
    theirs.load_state_dict(ours.state_dict())
    close(theirs.eval()(images()), ours.eval()(images()))


def test_pickle_deepcopy_save():
    _, ours = twins(dropout=True)
    ours.eval()
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for twin in (
        pickle.loads(pickle.dumps(ours)),
        copy.deepcopy(ours),
        torch.load(buffer, weights_only=False),
    ):
        assert [type(m) for m in twin.modules()] == [type(m) for m in ours.modules()]
        assert torch.equal(twin(images()), ours(images()))


def test_backward_hooks_in_a_model():
    theirs, ours = twins()
    logs = []
    for model in (theirs, ours):
        log = []
        for module in model:
            module.register_full_backward_hook(lambda m, dx, dy, log=log: log.append((dx[0], dy[0])))
        model(images().requires_grad_()).square().sum().backward()
        logs.append(log)
    assert len(logs[1]) == len(logs[0]) == 21
    close(logs[1], logs[0])


# --- torch.func, forward mode ----------------------------------------------------------------------------------------


def loss_function(model):
    def loss(parameters, x, target):
        y = functional_call(model, parameters, (x,))
        return torch.nn.functional.nll_loss(y, target)

    return loss


@pytest.fixture(params=[True, False], ids=["train", "eval"])
def functional_twins(request):
    """Models for torch.func; in training the statistics of the batch, since buffers can't change inside it."""
    theirs, ours = twins()
    for model in (theirs, ours):
        model.train(request.param)
        for m in model.modules():
            if request.param and isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
                m.track_running_stats, m.running_mean, m.running_var, m.num_batches_tracked = (
                    False,
                    None,
                    None,
                    None,
                )
    return theirs, ours


def detached(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def test_func_grad(functional_twins):
    x, target = images(), torch.arange(4)
    results = [grad(loss_function(m))(detached(m), x, target) for m in functional_twins]
    close(results[1], results[0])


def test_func_jvp(functional_twins):
    x, direction, target = images(), images(seed=2), torch.arange(4)
    results = []
    for m in functional_twins:
        loss, parameters = loss_function(m), detached(m)
        results.append(jvp(lambda t, f=loss, p=parameters: f(p, t, target), (x,), (direction,)))
    close(results[1], results[0])


def test_func_vmap():
    theirs, ours = twins()
    theirs.eval(), ours.eval()
    x = images(6).view(3, 2, 3, 16, 16)
    close(vmap(ours)(x), vmap(theirs)(x))


def test_func_gradients_per_sample():
    results = []
    for m in twins():
        m.eval()

        def loss(parameters, x, target, m=m):
            y = functional_call(m, parameters, (x[None],))
            return torch.nn.functional.nll_loss(y, target[None])

        results.append(vmap(grad(loss), in_dims=(None, 0, 0))(detached(m), images(), torch.arange(4)))
    close(results[1], results[0])


def test_func_ensemble():
    """vmap over stacked weights."""
    results = []
    for library in range(2):
        models = [twins(seed)[library].eval() for seed in range(3)]
        parameters, buffers = torch.func.stack_module_state(models)
        base = copy.deepcopy(models[0]).to("meta")
        call = lambda p, b, x, base=base: functional_call(base, (p, b), (x,))  # noqa: E731
        results.append(vmap(call, in_dims=(0, 0, None))(parameters, buffers, images()))
    close(results[1], results[0])


def test_vmap_randomness():
    layer, x = fastnn.Dropout(0.5), torch.ones(4, 1000)
    with pytest.raises(RuntimeError, match="random"):
        vmap(layer)(x)
    y = vmap(layer, randomness="different")(x)
    assert not torch.equal(y[0], y[1])
    y = vmap(layer, randomness="same")(x)
    assert torch.equal(y[0], y[1])


def test_jacobian():
    theirs, ours = twins()
    theirs.eval(), ours.eval()
    x = images(1)
    close(jacrev(ours)(x), jacrev(theirs)(x))
    close(torch.autograd.functional.jacobian(ours, x), torch.autograd.functional.jacobian(theirs, x))


def test_forward_mode():
    import torch.autograd.forward_ad as fwad

    results = []
    for model in twins():
        with fwad.dual_level():
            y = model(fwad.make_dual(images(), images(seed=2)))
            results.append(tuple(fwad.unpack_dual(y)))
    assert results[1][1] is not None
    close(results[1], results[0])


def test_double_backward():
    results = []
    for model in twins():
        model.double()
        x = images(dtype=torch.float64).requires_grad_()
        (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), list(model.parameters()), allow_unused=True))
    for a, b in zip(results[1], results[0], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


# --- autocast, memory savers, modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Each layer gives the dtype that torch's layer gives, and close numbers."""
    theirs, ours = models.twins()
    with torch.autocast("cpu", dtype=dtype):
        a, b = models.images(), models.images()
        for mine, other in zip(ours, theirs, strict=True):
            a, b = mine(a), other(b)
            assert a.dtype == b.dtype, type(other).__name__
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
        a.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    theirs, ours = twins()
    leaf = images().requires_grad_()
    expected = theirs(images())
    close(checkpoint(ours, leaf, use_reentrant=reentrant), expected)
    ours.zero_grad()
    checkpoint_sequential(ours, 3, leaf, use_reentrant=reentrant).square().sum().backward()
    theirs(images()).square().sum().backward()
    close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


def test_saved_tensor_hooks():
    theirs, ours = twins()
    packed = []

    def pack(t):
        packed.append(t)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = ours(images())
    y.square().sum().backward()
    theirs(images()).square().sum().backward()
    assert packed
    close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


def test_inference_mode_and_no_grad():
    theirs, ours = twins()
    theirs.eval(), ours.eval()
    with torch.inference_mode():
        y = ours(images())
        assert y.is_inference()
        close(y.clone(), theirs(images()).clone())
    with torch.no_grad():
        assert not ours(images()).requires_grad


def test_anomaly_mode_names_our_nodes():
    _, ours = twins()
    with torch.autograd.detect_anomaly(check_nan=True):
        ours(images()).sum().backward()


def test_deterministic_algorithms():
    _, ours = twins()
    torch.use_deterministic_algorithms(True)
    try:
        a, b = (
            loss_and_gradients(copy.deepcopy(ours), images()),
            loss_and_gradients(copy.deepcopy(ours), images()),
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_gradients_accumulate_and_graph_is_kept():
    theirs, ours = twins()
    for model in (theirs, ours):
        loss = model(images()).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_meta_device():
    with torch.device("meta"):
        theirs, ours = torch.nn.Linear(5, 3), fastnn.Linear(5, 3)
    assert (
        ours.weight.is_meta
        and ours(torch.empty(2, 5, device="meta")).shape == theirs(torch.empty(2, 5, device="meta")).shape
    )
    theirs, ours = (m.to("meta") for m in twins())
    x = images().to("meta").contiguous(memory_format=torch.channels_last)
    for mine, other in zip(ours, theirs, strict=True):
        y, expected = mine(x), other(x)
        assert y.is_meta and y.shape == expected.shape and y.stride() == expected.stride()
        x = expected
    empty = ours.to_empty(device="cpu")
    assert empty(images()).shape == (4, 5)


def test_skip_init():
    layer = torch.nn.utils.skip_init(fastnn.Linear, 5, 3)
    assert type(layer) is fastnn.Linear and layer.weight.shape == (3, 5)


def test_share_memory():
    _, ours = twins()
    before = ours.eval()(images())
    ours.share_memory()
    assert all(p.is_shared() for p in ours.parameters())
    assert torch.equal(ours(images()), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_to_dtype(dtype):
    theirs, ours = (m.to(dtype) for m in twins())
    x = images(dtype=dtype)
    tolerance = CLOSE if dtype is torch.float64 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(ours(x), theirs(x), **tolerance)


def test_channels_last():
    theirs, ours = (m.to(memory_format=torch.channels_last) for m in twins())
    a = b = images().contiguous(memory_format=torch.channels_last)
    for mine, other in zip(ours, theirs, strict=True):
        a, b = mine(a), other(b)
        assert a.stride() == b.stride(), type(other).__name__
    close(a, b)
    close(loss_and_gradients(ours, images()), loss_and_gradients(theirs, images()))


def test_parametrized_and_swapped_parameters():
    theirs, ours = twins()
    for model in (theirs, ours):
        torch.nn.utils.parametrizations.weight_norm(model[0])
        torch.nn.utils.parametrizations.weight_norm(model[14])
    x = images()
    close(ours(x), theirs(x))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        ours.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    torch.testing.assert_close(ours(x.double()), theirs.double()(x.double()))


class Logged(torch.Tensor):
    """A subclass that counts the functions it sees."""

    seen: list = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensor_subclass_sees_torch_functions():
    theirs, ours = twins()
    logs = []
    for model in (theirs, ours):
        Logged.seen = []
        y = model.eval()(images().as_subclass(Logged))
        assert isinstance(y, Logged)
        logs.append([name for name in Logged.seen if not name.startswith("__")])
    assert logs[1] == logs[0]


def test_dispatch_mode_sees_aten():
    """Tools that count or trace ops (here the flop counter) see torch's ops."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for model in twins():
        with FlopCounterMode(display=False) as counter:
            model(images()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == counts[0] > 0


def test_nested_and_sparse_inputs():
    """Kinds of tensors that only torch knows: the same answer, or the same refusal."""
    theirs, ours = torch.nn.Linear(5, 3), fastnn.Linear(5, 3)
    ours.load_state_dict(theirs.state_dict())
    nested = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(4, 5)], layout=torch.jagged)
    torch.testing.assert_close(ours(nested).values(), theirs(nested).values())
    sparse = torch.eye(5).to_sparse()
    torch.testing.assert_close(fastnn.ReLU()(sparse).to_dense(), torch.eye(5))
    conjugated = torch.randn(2, 5, dtype=torch.complex64).conj()
    a, b = fastnn.Linear(5, 3, dtype=torch.complex64), torch.nn.Linear(5, 3, dtype=torch.complex64)
    a.load_state_dict(b.state_dict())
    torch.testing.assert_close(a(conjugated), b(conjugated))
    negative = torch.randn(2, 5, dtype=torch.complex64).conj().imag
    torch.testing.assert_close(ours(negative), theirs(negative))


# --- compilers -------------------------------------------------------------------------------------------------------


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


# --- processes -------------------------------------------------------------------------------------------------------


def _data_parallel(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    _, ours = twins(seed=rank)  # the weights of rank 0 are sent to the other
    model = torch.nn.parallel.DistributedDataParallel(ours)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        loss_and_gradients_of_shard = model(images(8, seed=step)[rank::2])
        loss_and_gradients_of_shard.square().mean().backward()
        optimizer.step()
    torch.save([p.detach() for p in model.parameters()], os.path.join(results, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_data_parallel(tmp_path):
    """Two processes over gloo end with the same weights, those of one process that averages the two gradients."""
    torch.multiprocessing.spawn(_data_parallel, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    theirs, _ = twins(seed=0)
    shards = [theirs, copy.deepcopy(theirs)]
    for step in range(2):
        for model, x in zip(shards, (images(8, seed=step)[0::2], images(8, seed=step)[1::2]), strict=True):
            model.zero_grad()
            model(x).square().mean().backward()
        with torch.no_grad():
            for p, q in zip(*(m.parameters() for m in shards), strict=True):
                mean = (p.grad + q.grad) / 2
                p.sub_(0.1 * mean)
                q.sub_(0.1 * mean)
    close(first, [p.detach() for p in theirs.parameters()])


def _forked(queue):
    _, ours = twins()
    queue.put(ours.eval()(images()).sum().item())


def test_after_fork():
    """A process forked after kernels ran (a data loader's worker) can run them too."""
    _, ours = twins()
    expected = ours.eval()(images()).sum().item()
    torch.set_num_threads(1)  # torch's own ops hang in a fork of a process whose OpenMP team is up
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_forked, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-5)
    process.join()
