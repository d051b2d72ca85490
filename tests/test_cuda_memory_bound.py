"""Memory-bound families on CUDA: outputs and gradients beside the CPU's in float64."""

import pytest
import torch
from support_cuda import DTYPES, F, built, compare, needs_gpu

import fastnn

OPS = ["_dropout", "_dropout_by", "_random_stream", "_softmax", "_softmax_backward", "_layer_norm"]
OPS += ["_layer_norm_backward", "_batch_norm_train", "_batch_norm_eval", "_batch_norm_backward"]
OPS += ["_group_norm", "_instance_norm", "_group_norm_backward", "_prelu", "_prelu_backward", "_glu"]
OPS += ["_glu_backward", "_rrelu", "_rrelu_backward", "_rrelu_by"]
OPS += ["_max_pool", "_max_pool_backward", "_max_pool_indices", "_avg_pool", "_avg_pool_backward"]
OPS += ["_cross_entropy", "_cross_entropy_backward", "_pointwise_loss", "_pointwise_loss_backward"]


@built
@pytest.mark.parametrize("op", OPS)
def test_the_library_registers_its_kernels(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastnn::{op}", "CUDA")


LENGTHS = [1, 7, 64, 129, 1024, 2041, 4096, 20000]


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_softmax(name, dtype):
    for length in LENGTHS:
        compare(lambda f, x: getattr(f, name)(x, dim=-1), [3 * torch.randn(5, length)], dtype)
    for inner in (2, 33):
        compare(lambda f, x: getattr(f, name)(x, dim=1), [3 * torch.randn(3, 19, inner)], dtype)


@needs_gpu
def test_softmax_of_special_values():
    for length in (4, 40000):
        x = torch.zeros(4, length)
        x[0, 0], x[1, 0], x[2, 0], x[3] = float("inf"), -float("inf"), float("nan"), -float("inf")
        for shape in ((4, length, 1), (4, length, 2)):
            values = x[:, :, None].expand(shape).cuda()
            torch.testing.assert_close(F.softmax(values, 1), torch.softmax(values, 1), equal_nan=True)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_layer_and_rms_norm(dtype, length):
    x, w, b = 2 + torch.randn(37, length), torch.randn(length), torch.randn(length)
    if length > 1:
        compare(lambda f, x, w, b: f.layer_norm(x, (length,), w, b), [x, w, b], dtype)
    compare(lambda f, x, w: f.rms_norm(x, (length,), w, eps=1e-5), [x, w], dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (64, 40), (3, 5, 7), (4, 9, 7, 7), (2, 33, 31, 65)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm(dtype, training, shape, channels_last):
    if channels_last and len(shape) != 4:
        pytest.skip("four dimensions only")
    C = shape[1]

    def function(f, x, w, b):
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean = torch.linspace(-1, 1, C, dtype=kind, device=x.device)
        var = torch.linspace(0.5, 2, C, dtype=kind, device=x.device)
        if w.dtype != x.dtype:
            w, b = w.to(kind), b.to(kind)
        y = f.batch_norm(x, mean.to(w.dtype), var.to(w.dtype), w, b, training=training)
        assert y.stride() == x.stride()
        return y

    compare(function, [3 + torch.randn(shape), torch.randn(C), torch.randn(C)], dtype)


@needs_gpu
def test_batch_norm_moves_the_running_statistics():
    x = 3 + torch.randn(6, 5, 9, 9)
    mine, reference = fastnn.BatchNorm2d(5).cuda(), torch.nn.BatchNorm2d(5)
    mine(x.cuda())
    reference(x)
    torch.testing.assert_close(mine.running_mean.cpu(), reference.running_mean)
    torch.testing.assert_close(mine.running_var.cpu(), reference.running_var)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
}


def arranged(function, layout):
    """The function of an input in this layout; the gradient flows through the rearrangement."""
    return lambda f, x, *rest: function(f, LAYOUTS[layout](x), *rest)


POOLINGS = {
    "max 2": lambda f, x: f.max_pool2d(x, 2),
    "max 3 2 1": lambda f, x: f.max_pool2d(x, 3, 2, 1),
    "max 5 1 2 ceil": lambda f, x: f.max_pool2d(x, 5, 2, 2, ceil_mode=True),
    "max dilated": lambda f, x: f.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2)),
    "max wide": lambda f, x: f.max_pool2d(x, (9, 10), 3),
    "avg 2": lambda f, x: f.avg_pool2d(x, 2),
    "avg 3 2 1": lambda f, x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg divisor": lambda f, x: f.avg_pool2d(x, 3, 2, ceil_mode=True, divisor_override=5),
    "adaptive max": lambda f, x: f.adaptive_max_pool2d(x, (4, 13)),
    "adaptive avg": lambda f, x: f.adaptive_avg_pool2d(x, (4, 13)),
    "global avg": lambda f, x: f.adaptive_avg_pool2d(x, 1),
}


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooling(dtype, name, layout):
    for shape in ((2, 5, 11, 13), (2, 16, 12, 16)):
        compare(arranged(POOLINGS[name], layout), [torch.randn(shape)], dtype)


@needs_gpu
def test_pooling_of_other_ranks_and_indices():
    length, volume = torch.randn(3, 7, 20), torch.randn(2, 3, 6, 7, 8)
    compare(lambda f, x: f.max_pool1d(x, 3, 2, 1), [length], torch.float32)
    compare(lambda f, x: f.avg_pool1d(x, 3, 2, 1), [length], torch.float32)
    compare(lambda f, x: f.max_pool3d(x, 3, 2, 1), [volume], torch.float32)
    compare(lambda f, x: f.avg_pool3d(x, (2, 3, 2)), [volume], torch.float32)
    compare(lambda f, x: f.adaptive_avg_pool3d(x, (2, 3, 1)), [volume], torch.float32)
    x = torch.randn(2, 3, 20, 20).round()  # many equals, the first of which counts
    x[0, 0, 3:5, 3:9] = float("nan")
    for kernel in (3, 18):  # bytes, and codes beyond a byte
        ours = F.max_pool2d(x.cuda(), kernel, 1, return_indices=True)
        theirs = torch.nn.functional.max_pool2d(x, kernel, 1, return_indices=True)
        torch.testing.assert_close(ours[0].cpu(), theirs[0], equal_nan=True)
        assert torch.equal(ours[1].cpu(), theirs[1])
    assert F.max_pool2d(x[:0].cuda(), 3).shape == (0, 3, 6, 6)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 6, 7, 5), (2, 32, 16, 24), (2, 48, 60, 60)], ids=str)
def test_group_and_instance_norm(dtype, layout, shape):
    C = shape[1]

    def group(f, x, w, b):
        return f.group_norm(LAYOUTS[layout](x), 3 if C % 3 == 0 else 4, w, b)

    def instance(f, x, w, b):
        return f.instance_norm(LAYOUTS[layout](x), weight=w, bias=b)

    for function in (group, instance):
        compare(function, [torch.randn(shape), torch.randn(C), torch.randn(C)], dtype)


@needs_gpu
def test_instance_norm_moves_the_running_statistics():
    x = 3 + torch.randn(4, 5, 9, 9)
    mine = fastnn.InstanceNorm2d(5, track_running_stats=True).cuda()
    reference = torch.nn.InstanceNorm2d(5, track_running_stats=True)
    mine(x.cuda())
    reference(x)
    torch.testing.assert_close(mine.running_mean.cpu(), reference.running_mean)
    torch.testing.assert_close(mine.running_var.cpu(), reference.running_var)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prelu_and_glu(dtype, layout):
    for shape in ((3, 6, 7, 5), (2, 16, 33, 64)):
        x, C = torch.randn(shape), shape[1]
        compare(arranged(lambda f, x, w: f.prelu(x, w), layout), [x, torch.rand(1)], dtype)
        compare(arranged(lambda f, x, w: f.prelu(x, w), layout), [x, torch.rand(C)], dtype)
        compare(arranged(lambda f, x: f.glu(x, 1), layout), [x], dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses(dtype, reduction):
    for shape in ((5, 7), (64, 1000), (3, 40000), (2, 21, 9, 7), (2, 5, 8, 16)):
        target = torch.randint(shape[1], (shape[0], *shape[2:]))
        target.view(-1)[0] = -100
        weight = torch.rand(shape[1])

        def entropy(f, x, target=target, weight=weight):
            return f.cross_entropy(x, target.to(x.device), weight.to(x), reduction=reduction)

        compare(entropy, [3 * torch.randn(shape)], dtype)
    for count in (1, 4099, 1 << 17):
        t = torch.rand(count).bfloat16()
        for name in ("mse_loss", "binary_cross_entropy_with_logits"):
            compare(
                lambda f, x, t=t, name=name: getattr(f, name)(x, t.to(x), reduction=reduction),
                [torch.randn(count)],
                dtype,
            )


@needs_gpu
def test_a_target_that_is_no_class_makes_the_loss_nan():
    x = torch.randn(4, 5, device="cuda", requires_grad=True)
    loss = F.cross_entropy(x, torch.tensor([0, 5, -1, 4], device="cuda"), reduction="none")
    assert loss.isnan().tolist() == [False, True, True, False]
    (dx,) = torch.autograd.grad(loss.nansum(), x)
    assert dx.isfinite().all(1).tolist() == [True, False, False, True]


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 49])
def test_dropout_draws_as_the_cpu(dtype, length):
    for decisions in (1, 31, 64, 1000, 4099):
        for shift in (0, 1):
            x = torch.randn(decisions * length + shift, dtype=dtype)
            arguments = (0.3, 1 / 0.7, 0.0, 0.0, length, 12345, 678)
            ours = torch.ops.fastnn._dropout(x.cuda()[shift:], *arguments).cpu()
            assert torch.equal(ours, torch.ops.fastnn._dropout(x[shift:], *arguments))


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rrelu_draws_as_the_cpu(dtype):
    for count in (1, 5, 64, 4099):
        for shift in (0, 1):
            x = torch.randn(count + shift, dtype=dtype)
            arguments = (0.1, 0.4, 12345, 678)
            ours = torch.ops.fastnn._rrelu(x.cuda()[shift:], *arguments).cpu()
            theirs = torch.ops.fastnn._rrelu(x[shift:], *arguments)
            # r is rounded once or twice.
            torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=0)


@needs_gpu
def test_rrelu_keeps_its_slopes_and_draws_anew_in_a_graph():
    x = torch.randn(1 << 16, device="cuda", requires_grad=True)
    with fastnn.strict():
        y = F.rrelu(x, training=True)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, y.detach() / x.detach())
    assert dx.min() >= 1 / 8 and dx[x < 0].max() <= 1 / 3 and (dx[x > 0] == 1).all()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = F.rrelu(x.detach(), training=True)
    graph.replay()
    before = captured.clone()
    graph.replay()
    assert not torch.equal(before, captured)


@needs_gpu
def test_dropout_follows_the_generator_and_draws_anew_in_a_graph():
    x = torch.ones(1 << 16, device="cuda", requires_grad=True)
    torch.manual_seed(3)
    with fastnn.strict():
        first, second = F.dropout(x, 0.4), F.dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(first, F.dropout(x, 0.4)) and not torch.equal(first, second)
    assert abs((first == 0).double().mean().item() - 0.4) < 0.01
    (dx,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(dx, first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = F.dropout(x.detach(), 0.4)
    graph.replay()
    before = y.clone()
    graph.replay()
    assert not torch.equal(before, y)
