"""Calls in a traced forward as layers: ``F.max_pool2d(x, 2)`` is ``MaxPool2d(2)`` without a place in the module."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastnn import functional, modules
from fastnn.modules.chain import Sum

__all__ = ["layer_of", "may_overwrite", "use_own_functions"]

Make = Callable[..., nn.Module]


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return modules.Dropout(p, inplace).train(training)


def _max_pool(layer: Make) -> Make:
    # The layer's arguments after dilation stand in another order than the function's.
    def make(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        return layer(kernel_size, stride, padding, dilation, return_indices, ceil_mode)

    return make


def _in_place(layer: Make) -> Make:
    return lambda: layer(inplace=True)


# Function -> what makes the layer from the arguments behind the input: the layers take the same, but where noted.
_FUNCTIONS: dict[Any, Make] = {
    F.relu: modules.ReLU,
    F.leaky_relu: modules.LeakyReLU,
    F.elu: modules.ELU,
    F.selu: modules.SELU,
    F.celu: modules.CELU,
    F.relu6: modules.ReLU6,
    F.hardtanh: modules.Hardtanh,
    F.gelu: modules.GELU,
    F.silu: modules.SiLU,
    F.mish: modules.Mish,
    F.softplus: modules.Softplus,
    F.softsign: modules.Softsign,
    F.hardswish: modules.Hardswish,
    F.hardsigmoid: modules.Hardsigmoid,
    F.sigmoid: modules.Sigmoid,
    F.tanh: modules.Tanh,
    torch.relu: modules.ReLU,
    torch.relu_: _in_place(modules.ReLU),
    torch.sigmoid: modules.Sigmoid,
    torch.tanh: modules.Tanh,
    F.max_pool1d: _max_pool(modules.MaxPool1d),
    F.max_pool2d: _max_pool(modules.MaxPool2d),
    F.max_pool3d: _max_pool(modules.MaxPool3d),
    F.avg_pool1d: modules.AvgPool1d,
    F.avg_pool2d: modules.AvgPool2d,
    F.avg_pool3d: modules.AvgPool3d,
    F.adaptive_max_pool1d: modules.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d: modules.AdaptiveMaxPool2d,
    F.adaptive_max_pool3d: modules.AdaptiveMaxPool3d,
    F.adaptive_avg_pool1d: modules.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: modules.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: modules.AdaptiveAvgPool3d,
    F.dropout: _dropout,
}
_METHODS: dict[str, Make] = {
    "relu": modules.ReLU,
    "relu_": _in_place(modules.ReLU),
    "sigmoid": modules.Sigmoid,
    "tanh": modules.Tanh,
}


# Sums of two tensors, and whether the first one takes the sum.
_SUMS: dict[Any, bool] = {
    operator.add: False,
    torch.add: False,
    "add": False,
    operator.iadd: True,
    "add_": True,
}


def layer_of(node: fx.Node, module: nn.Module) -> nn.Module | None:
    """The layer that a node is: one of the module's, or one made for a function; None for anything else."""
    if len(node.args) == 2 == len(node.all_input_nodes) and not node.kwargs and node.target in _SUMS:
        return Sum(inplace=_SUMS[node.target])
    if len(node.args) == 0 or not isinstance(node.args[0], fx.Node) or len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module":
        alone = len(node.args) == 1 and not node.kwargs
        return module.get_submodule(str(node.target)) if alone else None
    make = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if node.op == "call_method":
        make = _METHODS.get(str(node.target))
    if make is None:
        return None
    try:
        return make(*node.args[1:], **node.kwargs)
    except TypeError:  # arguments that only the function has
        return None


def may_overwrite(node: fx.Node, module: nn.Module) -> bool:
    """Whether a node may change a tensor that it is given."""
    if node.op == "call_module":
        inside = list(module.get_submodule(str(node.target)).modules())
        known = all(type(m).__module__.startswith(("torch.", "fastnn.")) for m in inside)
        return not known or any(getattr(m, "inplace", False) for m in inside)
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "_")
    in_operator = getattr(node.target, "__module__", "") == "_operator" and name.startswith("i")
    return (
        name.endswith("_")
        or in_operator
        or "out" in node.kwargs
        or node.kwargs.get("inplace", False) is not False
    )


def use_own_functions(graph: fx.Graph) -> None:
    """Leads functions of ``torch.nn.functional`` to fastnn's: fx notes torch's even where fastnn's was called."""
    own = {getattr(F, name): f for name, f in vars(functional).items() if callable(f) and hasattr(F, name)}
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = own.get(node.target, node.target)
