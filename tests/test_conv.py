"""Convolutions and transposed convolutions: every argument, layout and dtype, special values, derivatives."""

import concurrent.futures
import os
import subprocess
import sys

import pytest
import torch
from support import Family, case, check_specials

import fastnn
from fastnn import functional as F
from fastnn.testing.cases import parity_cases


class TestConv(Family):
    parity_cases = (
        *parity_cases("conv"),
        case("Conv2d", (2, 3, 11, 13), 3, 5, (2, 3), dilation=(3, 2), stride=2, padding=(1, 2)),
        case("Conv2d", (2, 17, 9, 7), 17, 17, 3, groups=17, padding=1),
        case("Conv2d", (2, 5, 9, 7), 5, 15, 3, groups=5, stride=2, padding=1),
        case("Conv2d", (2, 33, 7, 5), 33, 18, 1, stride=2, padding=1),
        case("Conv2d", (2, 3, 8, 9), 3, 4, (4, 2), padding="same", dilation=(2, 1)),
        case("Conv2d", (2, 3, 8, 9), 3, 4, 3, padding=(1, 2), padding_mode="circular", stride=2),
        case("Conv2d", (1, 1, 1, 1), 1, 1, 1),
        case("Conv2d", (2, 2, 3, 3), 2, 3, 5, padding=3),
        case("Conv2d", (2, 2, 9, 9), 2, 3, 2, stride=4),
        case("Conv2d", (2, 64, 14, 14), 64, 48, 3, padding=1, algorithm="winograd"),
        case("Conv2d", (3, 51, 19, 21), 51, 45, 3, padding=(2, 0), algorithm="winograd"),
        case("ConvTranspose2d", (2, 32, 19, 17), 32, 40, 3, padding=1, algorithm="winograd"),
        case("Conv2d", (2, 40, 30, 35), 40, 33, 3, padding=(2, 1), dilation=(2, 3), algorithm="winograd"),
        case("Conv3d", (2, 32, 5, 17, 19), 32, 24, 3, padding=1, algorithm="winograd"),
        case("Conv3d", (1, 24, 6, 18, 20), 24, 33, (2, 3, 3), dilation=(3, 2, 1), algorithm="winograd"),
        case("ConvTranspose3d", (1, 24, 4, 16, 13), 24, 40, 3, padding=(0, 1, 2), algorithm="winograd"),
        case("Conv2d", (1, 130, 6, 6), 130, 33, 3, padding=1),
        case("Conv2d", (2, 35, 6, 7), 35, 40, 5, padding=4),
        case("Conv1d", (1, 40, 133), 40, 30, 9, padding=4),
        case("Conv3d", (2, 4, 6, 7, 8), 4, 6, (2, 3, 1), stride=(1, 2, 3), padding=(1, 0, 2), groups=2),
        case("ConvTranspose2d", (2, 6, 5, 4), 6, 9, 3, groups=3, dilation=2, padding=1),
        case("ConvTranspose2d", (2, 3, 5, 6), 3, 4, 3, stride=2, call={"output_size": (2, 4, 11, 14)}),
        case("ConvTranspose2d", (2, 3, 5, 6), 3, 4, 3, dilation=3, output_padding=(2, 1)),
        case("ConvTranspose2d", (1, 67, 9, 8), 67, 35, 4, stride=2, padding=1),
        case(
            "ConvTranspose1d", (2, 4, 9), 4, 6, 4, stride=3, padding=2, output_padding=1, groups=2, dilation=2
        ),
        case(
            "ConvTranspose3d", (2, 4, 3, 4, 3), 4, 2, (2, 3, 1), stride=(1, 2, 3), padding=(0, 1, 0), groups=2
        ),
    )
    views_cases = (
        case("Conv2d", (2, 3, 9, 8), 3, 5, 3, padding=1),
        case("Conv2d", (2, 3, 11, 13), 3, 5, (2, 3), dilation=(3, 2), stride=2, padding=(1, 2)),
        case("Conv2d", (2, 6, 9, 7), 6, 9, 3, groups=3, padding=1),
        case("Conv2d", (2, 17, 9, 7), 17, 17, 3, groups=17, padding=1),
        case("Conv2d", (2, 33, 7, 5), 33, 18, 1),
        case("Conv2d", (3, 9, 8), 3, 5, 3),
        case("Conv1d", (2, 4, 17), 4, 6, 4, stride=3, padding=2, dilation=2, groups=2),
        case("Conv3d", (2, 3, 5, 6, 7), 3, 4, 3),
        case("ConvTranspose2d", (2, 3, 5, 6), 3, 4, 3, stride=2, padding=1, output_padding=1),
        case("ConvTranspose1d", (2, 3, 9), 3, 4, 3),
        case("ConvTranspose3d", (2, 3, 3, 4, 5), 3, 4, 3),
    )
    derivatives_cases = (
        case("Conv2d", (2, 2, 4, 3), 2, 2, 2),
        case("Conv2d", (1, 2, 5, 4), 2, 2, (3, 2), stride=2, padding=(1, 0)),
        case("Conv2d", (1, 2, 5, 4), 2, 4, 2, dilation=2, groups=2, bias=False),
        case("Conv2d", (2, 4, 3), 2, 2, 2, padding="same"),
        case("Conv1d", (1, 2, 6), 2, 3, 3, padding=1),
        case("Conv3d", (1, 1, 3, 3, 2), 1, 2, 2),
        case("ConvTranspose1d", (1, 2, 4), 2, 2, 3, stride=2, output_padding=1),
        case("ConvTranspose2d", (1, 2, 3, 2), 2, 2, 2, stride=2, padding=1),
        case("ConvTranspose3d", (1, 1, 2, 2, 2), 1, 2, 2),
    )
    threads_cases = (
        case("Conv2d", (5, 32, 28, 28), 32, 48, 3, padding=1),
        case("Conv2d", (8, 1, 28, 28), 1, 20, 5),
        case("Conv2d", (1, 64, 30, 33), 64, 80, 3, padding=1, algorithm="winograd"),
        case("Conv2d", (3, 48, 17, 17), 48, 48, 3, groups=48, padding=1),
        case("Conv2d", (2, 64, 31, 31), 64, 96, 1, stride=2),
        case("Conv3d", (2, 8, 9, 12, 13), 8, 16, 3),
        case("Conv3d", (1, 32, 6, 17, 18), 32, 48, 3, padding=1, algorithm="winograd"),
        case("Conv2d", (2, 32, 33, 34), 32, 48, 3, padding=2, dilation=2, algorithm="winograd"),
        case("ConvTranspose2d", (3, 32, 14, 14), 32, 24, 4, stride=2, padding=1),
    )


@pytest.mark.parametrize("groups", [1, 3])
def test_weight_layouts(groups):
    x, w = torch.randn(2, 6, 7, 8), torch.randn(9, 6 // groups, 3, 3)
    expected = torch.nn.functional.conv2d(x, w, padding=1, groups=groups)
    arranged = [
        w.contiguous(memory_format=torch.channels_last),
        w.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([w, w], 0)[:9],
        torch.stack([w, w], -1)[..., 0],
    ]
    for weight in arranged:
        torch.testing.assert_close(F.conv2d(x, weight, padding=1, groups=groups), expected)
    ones = torch.nn.functional.conv2d(x, w[:1].expand_as(w), padding=1, groups=groups)
    torch.testing.assert_close(F.conv2d(x, w[:1].expand_as(w), padding=1, groups=groups), ones)


@pytest.mark.parametrize(
    "name", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
)
def test_functional_keywords(name):
    dims = int(name[-2])
    x, w = torch.randn(2, 4, *[6] * dims), torch.randn(4, 2, *[3] * dims)
    keywords = {"bias": torch.randn(4), "stride": 2, "padding": 1, "dilation": 1, "groups": 2}
    if "transpose" in name:
        keywords["output_padding"] = 1
    torch.testing.assert_close(
        getattr(F, name)(x, w, **keywords), getattr(torch.nn.functional, name)(x, w, **keywords)
    )
    torch.testing.assert_close(
        getattr(F, name)(input=x, weight=w, groups=2), getattr(torch.nn.functional, name)(x, w, groups=2)
    )


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_specials(case, special, capability):
    """One bad value reaches the outputs whose window holds it, and no others."""
    x = torch.randn(case.shape)
    x.view(-1)[x.numel() // 2] = special
    check_specials(case, x)


test_specials.cases = [
    case("Conv2d", (3, 16, 14, 14), 16, 24, 3, padding=1, algorithm="winograd"),
    case("Conv2d", (1, 3, 13, 12), 3, 5, 3, padding=1),
    case("Conv2d", (2, 16, 14, 14), 16, 16, 3, padding=1),
    case("Conv2d", (1, 4, 13, 12), 4, 4, 3, groups=4),
    case("Conv2d", (1, 9, 7, 7), 9, 5, 1),
    case("Conv1d", (1, 3, 19), 3, 4, 3),
    case("Conv3d", (1, 3, 5, 6, 7), 3, 4, 3),
    case("ConvTranspose2d", (1, 3, 5, 6), 3, 4, 3, stride=2),
]


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_only_the_gradients_asked_for(needs):
    tensors = [torch.randn(2, 3, 6, 7), torch.randn(4, 3, 3, 3), torch.randn(4)]
    ours = [t.clone().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
    theirs = [t.clone().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
    F.conv2d(*ours, padding=1).square().sum().backward()
    torch.nn.functional.conv2d(*theirs, padding=1).square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [f"Lazy{kind}{n}d" for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)])
def test_lazy(name):
    layer = getattr(fastnn, name)(4, 3)
    layer(torch.randn(2, 5, *[6] * int(name[-2])))
    assert type(layer) is getattr(fastnn, name.removeprefix("Lazy")) and layer.in_channels == 5


@pytest.fixture
def switch():
    """fastnn.backends.conv, as it was afterwards."""
    on = fastnn.backends.conv.winograd
    yield fastnn.backends.conv
    fastnn.backends.conv.winograd = on


def algorithm_of(layer, x):
    (row,) = fastnn.explain(layer, x).rows
    return row.detail


def test_winograd_switch(switch):
    layer = fastnn.Conv2d(40, 36, 3, padding=1)
    x, used = torch.randn(2, 40, 26, 29), []
    for on in (True, False, True):
        switch.winograd = on
        assert switch.winograd is on
        used.append("winograd" in algorithm_of(layer, x))
    assert used == [True, False, True]


def test_winograd_environment():
    code = "import fastnn; print(fastnn.backends.conv.winograd)"
    for value, expected in (("0", "False"), ("1", "True"), ("", "True")):
        environment = {**os.environ, "FASTNN_WINOGRAD": value}
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == expected


@pytest.mark.parametrize(
    "values", ["normal", "large mean", "large and small channels", "large and small images"]
)
def test_winograd_error(values, capability):
    """At most three times torch's on the whole, forward and backward, whatever the scales."""
    x, w, dy = torch.randn(2, 40, 26, 29), torch.randn(36, 40, 3, 3) / 19, torch.randn(2, 36, 26, 29)
    if values == "large mean":
        x, dy = x + 100, dy + 100
    elif values == "large and small channels":
        x, w = (
            x * 10.0 ** torch.linspace(-4, 4, 40).view(-1, 1, 1),
            w * 10.0 ** torch.linspace(2, -2, 40).view(-1, 1, 1),
        )
    elif values == "large and small images":
        x, dy = (
            x * torch.tensor([1e-4, 1e4]).view(2, 1, 1, 1),
            dy * torch.tensor([1e4, 1e-4]).view(2, 1, 1, 1),
        )

    def results(conv, dtype):
        a, b = x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
        y = conv(a, b, padding=1)
        return [y.detach(), *torch.autograd.grad(y, [a, b], dy.to(dtype))]

    def norm(a, b):
        return (a.double() - b).norm()

    expected = results(torch.nn.functional.conv2d, torch.float64)
    ours, theirs = results(F.conv2d, torch.float32), results(torch.nn.functional.conv2d, torch.float32)
    for a, b, reference in zip(ours, theirs, expected, strict=True):
        assert norm(a, reference) <= 3 * norm(b, reference)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_winograd_is_direct_where_numbers_end(value, switch, capability):
    """Beside a number that the transforms cannot hold, the bits are those of the direct algorithm."""
    x, w = torch.randn(2, 40, 26, 29), torch.randn(36, 40, 3, 3) / 1e3
    x[1, 3, 7, 9] = value
    switch.winograd = True
    ours = F.conv2d(x, w, padding=1)
    switch.winograd = False
    assert torch.equal(ours.nan_to_num(7), F.conv2d(x, w, padding=1).nan_to_num(7))


BENCHMARK_CASES = [
    case("Conv2d", (2, 40, 26, 29), 40, 36, 3, padding=1),
    case("Conv2d", (2, 3, 20, 23), 3, 8, 5, stride=2),
    case("Conv2d", (2, 16, 15, 14), 16, 16, 3, padding=1, groups=2),
    case("Conv2d", (3, 8, 4, 3), 8, 9, (4, 3)),
    case("ConvTranspose2d", (2, 12, 9, 8), 12, 10, 4, stride=2, padding=1),
    case("Conv1d", (2, 5, 33), 5, 7, 3),
]


@pytest.fixture
def benchmark(switch):
    """The switches, with nothing measured yet and nothing left behind."""
    switch.forget()
    switch.benchmark = True
    yield switch
    switch.benchmark = False
    switch.forget()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_benchmark(case, layout, benchmark, capability):
    """Each direction is measured once; what is fastest gives the results, and never by the plain loops."""
    theirs, ours, (x,) = case.build("torch"), case.build("fastnn"), case.inputs()
    ours.load_state_dict(theirs.state_dict())
    if layout == "channels_last":
        if x.dim() != 4:
            pytest.skip("no such layout of this dimension")
        x = x.contiguous(memory_format=torch.channels_last)

    def step(layer):
        a = x.detach().requires_grad_()
        y = layer(a)
        return [y, *torch.autograd.grad(y, [a, layer.weight], y.detach().sin())]

    expected = step(theirs)
    for _ in range(3):
        for a, b in zip(step(ours), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    rows = benchmark.measured()
    outer = [row for row in rows if row["channels_last"] == (layout == "channels_last")]
    assert sorted(row["direction"] for row in outer) == ["backward data", "backward weight", "forward"]
    for row in rows:
        assert "reference" not in row["seconds"] and row["capability"] == capability
        if len(row["seconds"]) > 1:
            assert row["seconds"][row["fastest"]] == min(row["seconds"].values()) > 0


test_benchmark.cases = BENCHMARK_CASES


def test_benchmark_default_is_first(benchmark):
    """The default among the candidates is what runs without the switch."""
    for one in BENCHMARK_CASES:
        layer, (x,) = one.build("fastnn"), one.inputs()
        benchmark.forget()
        benchmark.benchmark = False
        usual = algorithm_of(layer, x)
        benchmark.benchmark = True
        layer(x)
        assert benchmark.measured()[0]["default"] in usual


def test_benchmark_obeys_the_other_switch(benchmark):
    layer, x = fastnn.Conv2d(40, 36, 3, padding=1), torch.randn(2, 40, 26, 29)
    for on in (True, False):
        benchmark.winograd = on
        layer(x)
    with_it, without = sorted((row["seconds"] for row in benchmark.measured()), key=len, reverse=True)
    assert "winograd" in with_it and "winograd" not in without


def test_benchmark_measures_anew_for_another_kind(benchmark):
    layer = fastnn.Conv2d(6, 6, 3)
    x = torch.randn(2, 6, 12, 12)
    for kind in (x, x, x[:1], x.double(), x.contiguous(memory_format=torch.channels_last)):
        fastnn.functional.conv2d(kind, layer.weight.to(kind.dtype))
    sizes = [(row["n"], row["dtype"], row["channels_last"]) for row in benchmark.measured()]
    assert {(2, "float32", False), (1, "float32", False), (2, "float64", False), (2, "float32", True)} <= set(
        sizes
    )


def test_benchmark_in_several_threads(benchmark):
    """All get what was measured first, so the same bits."""
    layer, x = fastnn.Conv2d(24, 24, 3, padding=1), torch.randn(4, 24, 20, 20)
    with concurrent.futures.ThreadPoolExecutor(4) as pool, torch.no_grad():
        results = list(pool.map(layer, [x] * 12))
    assert all(torch.equal(y, results[0]) for y in results)
    assert len({row["threads"] for row in benchmark.measured()}) == len(benchmark.measured())


@pytest.mark.parametrize(("value", "expected"), [("", "False"), ("0", "False"), ("1", "True")])
def test_benchmark_environment(value, expected):
    code = "import fastnn; print(fastnn.backends.conv.benchmark)"
    environment = {**os.environ, "FASTNN_CONV_BENCHMARK": value}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == expected
