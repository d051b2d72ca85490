"""torch.func, forward mode and second derivatives of a fastnn model give torch.nn's results."""

import copy

import pytest
import torch
from dropin import close, images, twins
from torch.func import functional_call, grad, jacrev, jvp, vmap

import fastnn


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


def test_rrelu_under_transforms():
    """torch's own op: it can be differentiated, and has no batching rule."""
    x = -torch.rand(30) - 1
    torch.manual_seed(1)
    expected = torch.nn.RReLU()(x) / x
    torch.manual_seed(1)
    close(grad(lambda t: fastnn.RReLU()(t).sum())(x), expected)
    for library in (torch.nn, fastnn):
        with pytest.raises(RuntimeError, match="vmap"):
            vmap(library.RReLU(), randomness="different")(x)


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
