"""accelerate, revert, explain, strict."""

import copy

import pytest
import torch
from models import all_families, images, twins, with_dropout

import fastnn
from fastnn import functional as F


def types(model):
    return [type(m) for m in model.modules()]


def test_swaps_classes_in_place_and_back():
    model = with_dropout(torch.nn)
    before, weights = types(model), [id(p) for p in model.parameters()]
    report = fastnn.accelerate(model)
    assert types(model) == types(with_dropout(fastnn))
    assert [id(p) for p in model.parameters()] == weights
    assert len(report.swapped) == 21 and report.swapped["0"] == "Conv2d"
    assert "21" in str(report) and "Conv2d" in str(report)
    fastnn.revert(model)
    assert types(model) == before
    assert "__module__" not in vars(model[0])


def test_same_numbers():
    theirs, _ = twins()
    ours = copy.deepcopy(theirs)
    fastnn.accelerate(ours)
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-5)
    fastnn.revert(ours)
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-5)


def test_a_swapped_layer_is_like_one_built():
    swapped, built = torch.nn.Conv2d(2, 3, 3), fastnn.Conv2d(2, 3, 3)
    fastnn.accelerate(swapped)
    assert vars(swapped).keys() == vars(built).keys() and repr(swapped) == repr(built)


def test_optimizer_hooks_and_buffers_stay():
    model, calls = all_families(torch.nn), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].weight.register_hook(lambda g: calls.append("gradient"))
    buffer = model[1].running_mean
    fastnn.accelerate(model)
    before = model[0].weight.detach().clone()
    model(images()).square().sum().backward()
    optimizer.step()
    assert sorted(calls) == ["forward", "gradient"]
    assert not torch.equal(model[0].weight, before)
    assert model[1].running_mean is buffer and buffer.abs().sum() > 0


def test_training_goes_on_in_the_middle():
    """Momentum of the optimizer is kept: swapping between steps changes no curve."""
    theirs, _ = twins()
    ours = copy.deepcopy(theirs)
    losses = []
    for model, swap in ((theirs, False), (ours, True)):
        optimizer, curve = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
        for step in range(6):
            if swap and step == 2:
                fastnn.accelerate(model)
            if swap and step == 4:
                fastnn.revert(model)
            optimizer.zero_grad()
            loss = torch.nn.functional.nll_loss(model(images(8)), torch.arange(8) % 5)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_model_itself_may_be_a_layer():
    layer = torch.nn.Linear(3, 2)
    fastnn.accelerate(layer)
    assert type(layer) is fastnn.Linear


def test_subclasses_are_skipped_and_reported():
    class Own(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = torch.nn.Sequential(Own(3, 3), torch.nn.Linear(3, 3))
    report = fastnn.accelerate(model)
    assert type(model[0]) is Own and type(model[1]) is fastnn.Linear
    assert list(report.kept) == ["0"] and "Own" in str(report)
    fastnn.revert(model)
    assert type(model[0]) is Own


def test_filter():
    model, asked = all_families(torch.nn), []

    def no_convolutions(module, name):
        asked.append(name)
        return not isinstance(module, torch.nn.Conv2d)

    report = fastnn.accelerate(model, filter_fn=no_convolutions)
    assert type(model[0]) is torch.nn.Conv2d and type(model[1]) is fastnn.BatchNorm2d
    assert "0" in asked and "0" in report.kept and "0" not in report.swapped


def test_nothing_matched():
    with pytest.raises(ValueError, match="no layer"):
        fastnn.accelerate(torch.nn.Sequential(torch.nn.Flatten()))
    assert not fastnn.accelerate(torch.nn.Flatten(), allow_empty=True).swapped
    with pytest.raises(TypeError, match="model"):
        fastnn.accelerate("model")


def test_twice_is_once():
    model = all_families(torch.nn)
    fastnn.accelerate(model)
    kinds = types(model)
    assert not fastnn.accelerate(model).swapped
    assert types(model) == kinds


def test_shared_layer_is_swapped_once():
    layer = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    fastnn.accelerate(model)
    assert model[0] is model[2] and type(layer) is fastnn.Linear
    torch.testing.assert_close(model(torch.eye(4)), torch.nn.Sequential(*model)(torch.eye(4)))


def test_other_models_and_torch_stay_untouched():
    other = all_families(torch.nn)
    fastnn.accelerate(all_families(torch.nn))
    assert types(other) == types(all_families(torch.nn))
    assert torch.nn.Linear(2, 2).__class__ is torch.nn.Linear


def test_lazy_layers_become_ours():
    model = torch.nn.Sequential(torch.nn.LazyConv2d(3, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    fastnn.accelerate(model, allow_empty=True)
    model(torch.randn(1, 2, 5, 5))
    fastnn.accelerate(model, allow_empty=True)
    assert type(model[0]) is fastnn.Conv2d and type(model[2]) is fastnn.Linear


def test_transformer_and_attention():
    """Models whose parents bypass their children keep working."""
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    ours = copy.deepcopy(theirs)
    fastnn.accelerate(ours)
    x = torch.randn(2, 5, 8)
    for training in (True, False):
        theirs.train(training), ours.train(training)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_reports_kernels_and_algorithms():
    _, ours = twins()
    explanation = fastnn.explain(ours, images())
    native = set(explanation.native)
    for name, module in ours.named_modules():
        if name and not isinstance(module, torch.nn.Flatten):
            assert name in native, f"{name} {type(module).__name__}: {explanation.fallbacks.get(name)}"
    convolution = next(row for row in explanation.to_dict() if row["name"] == "0")
    assert "conv2d (" in convolution["detail"], "the algorithm in brackets"
    assert "Conv2d" in str(explanation)


def test_explain_tells_why_not():
    model = torch.nn.Sequential(fastnn.Linear(4, 4), torch.nn.Linear(4, 4), fastnn.Tanh())
    explanation = fastnn.explain(model, torch.randn(2, 4))
    assert explanation.native == ["0", "2"] and list(explanation.fallbacks) == ["1"]
    explanation = fastnn.explain(
        fastnn.Linear(4, 4, dtype=torch.complex64), torch.randn(2, 4, dtype=torch.complex64)
    )
    (reason,) = explanation.fallbacks.values()
    assert "dtype" in reason
    assert "dtype" in str(explanation)


def test_explain_reports_bypassed_layers():
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    fastnn.accelerate(model)
    assert "never called" in fastnn.explain(model, torch.randn(2, 5, 8)).fallbacks["self_attn.out_proj"]


def test_explain_changes_nothing():
    _, ours = twins(dropout=True)
    ours.train()
    before, state = copy.deepcopy(ours.state_dict()), torch.get_rng_state()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in ours.modules()]
    fastnn.explain(ours, images())
    assert torch.equal(torch.get_rng_state(), state) and ours.training
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in ours.modules()]


def test_explain_cleans_up_after_an_error():
    _, ours = twins()
    with pytest.raises(RuntimeError):
        fastnn.explain(ours, torch.randn(2, 7, 16, 16))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ours.modules())
    assert fastnn.explain(ours, images()).native


# --- strict ----------------------------------------------------------------------------------------------------------


def test_strict_raises_on_fallback():
    x = torch.randn(3, dtype=torch.complex64)
    F.sigmoid(x)
    with fastnn.strict(), pytest.raises(RuntimeError, match=r"strict.*dtype"):
        F.sigmoid(x)
    F.sigmoid(x)


def test_strict_nests_and_ends_with_errors():
    with fastnn.strict():
        with fastnn.strict():
            pass
        with pytest.raises(RuntimeError, match="strict"):
            F.tanh(torch.randn(3, dtype=torch.complex64))
    with pytest.raises(ZeroDivisionError), fastnn.strict():
        raise ZeroDivisionError
    assert not fastnn._C.strict()


def test_disabled_runs_torch():
    fastnn._C.set_enabled(False)
    try:
        with fastnn.strict(), pytest.raises(RuntimeError, match="disabled"):
            F.relu(torch.randn(3))
        F.relu(torch.randn(3))
    finally:
        fastnn._C.set_enabled(True)
