"""What users do to a torch.nn model works on a fastnn model with all families, with the same result."""

import copy
import io
import os
import pickle

import models
import pytest
import torch
from dropin import CLOSE, close, images, loss_and_gradients, twins
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fastnn


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


def test_profiler():
    """A profiler sees the private ops, forward and backward, though calls that nobody watches go straight to the kernel."""
    x = torch.randn(4, 3, requires_grad=True)
    with torch.profiler.profile() as profile:
        fastnn.ReLU()(x).sum().backward()
    seen = {event.key for event in profile.key_averages()}
    assert {"fastnn::_activation", "fastnn::_activation_backward"} <= seen
