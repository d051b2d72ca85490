"""Chains in the ``forward`` of a user's own module: found by fx, run by a forward that is generated from its graph.

What fx writes down is one path through the code. So it is used only where there is no other: code is looked at first
(globals, side effects, optional arguments), and each call checks what the trace took for granted (attributes of the
module that are plain values, types of the arguments). Otherwise the module's own ``forward`` runs.
"""

import builtins
import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnn.fuse_functions import layer_of, may_overwrite, use_own_functions
from fastnn.modules._base import Native
from fastnn.modules.chain import Chain, Sum, chains, is_normalization, one_by_one

__all__ = ["FusedForward", "UnfitError", "fused_class", "original_class"]


class UnfitError(Exception):
    """Why a forward stays as it is."""


class _Slot:
    """A chain in a generated forward. ``layers`` of the module come with the call, None stands for each.

    fx wants a name of what it calls.
    """

    def __init__(self, layers: list[nn.Module | None]):
        self.__name__ = "chain"
        self._layers = layers
        self._given: tuple[nn.Module, ...] = ()
        self._run: Callable[..., Tensor] | None = None

    def __call__(self, input: Tensor, residual: tuple[Tensor, ...], *given: nn.Module) -> Tensor:
        if self._run is None or self._given != given:
            rest = iter(given)
            layers = [next(rest) if layer is None else layer for layer in self._layers]
            # Exchanged since the trace for layers of another kind?
            one = chains(layers) == [range(len(layers))]
            self._run = Chain(layers) if one else functools.partial(one_by_one, layers)
            self._given = given
        return self._run(input, *residual)


class _Tracer(fx.Tracer):
    """Looks into one module's own forward: all others are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


_VALUES = (bool, int, float, str, type(None))
_MODULES = ("torch", "fastnn", "math", "operator", "_operator")
_BUILTINS = {
    "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed", "super", "tuple", "zip",
}  # fmt: skip
# Attributes of torch, Tensor and others: their answers a trace would freeze, or what they do it would drop.
_FROZEN = {
    "is_autocast_enabled", "is_grad_enabled", "is_tensor", "device_count", "initial_seed", "manual_seed", "random",
    "normal", "bernoulli", "bernoulli_", "uniform_", "rand", "rand_like", "randint", "randn", "randn_like",
    "randperm", "empty", "full", "ones", "zeros", "tensor", "arange", "no_grad", "enable_grad", "set_grad_enabled",
    "autocast", "data", "grad", "requires_grad_", "register_hook", "retain_grad", "backward", "autograd", "detach_",
    "set_", "print", "checkpoint", "jit", "compile", "func", "vmap", "distributed", "cuda",
}  # fmt: skip
_LASTING = (
    "STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "STORE_DEREF", "DELETE_ATTR", "DELETE_GLOBAL", "DELETE_SUBSCR",
)  # fmt: skip
_ELSEWHERE = ("IMPORT_", "MAKE_FUNCTION", "YIELD", "SETUP_", "PUSH_EXC", "BEFORE_WITH")


def _look_through(function: Any) -> None:
    """Raises UnfitError where code could do otherwise at another call, or more than compute."""
    code = getattr(function, "__code__", None)
    if code is None:
        raise UnfitError("its forward is not a Python function")
    if set(code.co_freevars) - {"__class__"}:
        raise UnfitError("its forward is decorated, or uses variables of a function around it")
    for instruction in dis.get_instructions(code):
        name, kind = instruction.argval, instruction.opname
        if kind == "LOAD_GLOBAL":
            value = function.__globals__.get(name, getattr(builtins, name, None))
            is_module = isinstance(value, types.ModuleType)
            home = value.__name__ if is_module else getattr(value, "__module__", None)
            known = str(home).split(".")[0] in _MODULES or name in _BUILTINS or isinstance(value, _VALUES)
            if not known or name in _FROZEN:
                raise UnfitError(f"its forward uses {name}")
        elif kind.startswith(("LOAD_ATTR", "LOAD_METHOD")) and name in _FROZEN:
            raise UnfitError(f"its forward uses {name}")
        elif kind in _LASTING:
            raise UnfitError("its forward changes what outlives the call")
        elif kind.startswith(_ELSEWHERE):
            raise UnfitError("its forward has inner functions, imports, with or try blocks")


_OWN = frozenset(dir(nn.Module()))  # attributes that every module has
_Read = tuple[str, str]  # name of a module, attribute


@contextmanager
def _watching(module: nn.Module, values: dict[_Read, Any]) -> Iterator[None]:
    """While this lasts, plain values that are read from the module or one below it go into ``values``, and methods
    that are called are looked through.
    """
    before = {m: type(m) for m in module.modules()}
    try:
        for name, m in module.named_modules():
            m.__class__ = _watched(type(m), name, values)
        yield
    finally:
        for m, cls in before.items():
            m.__class__ = cls


def _watched(cls: type[nn.Module], path: str, values: dict[_Read, Any]) -> type[nn.Module]:
    class Watched(cls):  # type: ignore[valid-type, misc]
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if isinstance(value, types.MethodType):
                if name not in _OWN and not cls.__module__.startswith("torch."):
                    _look_through(value.__func__)
            elif isinstance(value, _VALUES):
                values[path, name] = value
            elif name not in _OWN and not isinstance(value, (nn.Module, Tensor, type)):
                if path == "" or not cls.__module__.startswith("torch."):
                    raise UnfitError(f"its forward reads self.{name}, {type(value).__name__}")
            return value

    return Watched


class _Plan:
    """The generated forward of one module in one mode."""

    def __init__(self, module: nn.Module, cls: type[nn.Module]):
        required, optional = [], {}
        for parameter in list(inspect.signature(cls.forward).parameters.values())[1:]:
            if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                raise UnfitError("its forward takes a variable number of arguments")
            if parameter.default is parameter.empty:
                required.append(parameter.name)
            else:
                optional[parameter.name] = parameter.default
        self._values: dict[_Read, Any] = {}
        now = type(module)
        module.__class__ = cls
        try:
            _look_through(cls.forward)
            with _watching(module, self._values):
                graph = _Tracer().trace(module, concrete_args=optional)
        except UnfitError:
            raise
        except Exception as error:
            raise UnfitError(
                f"fx can't trace it: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from None
        finally:
            module.__class__ = now
        self._values = {read: v for read, v in self._values.items() if read != ("", "training")}
        self.arguments = len(required)
        self.chains, self.members = _replace_chains(graph, module)
        use_own_functions(graph)
        code = graph.python_code("self")
        space: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, f"<fastnn.fuse of {cls.__name__}>", "exec"), space)
        self._forward: Callable[..., Any] = space["forward"]
        self._optional = tuple(optional.values())

    def fits(self, module: nn.Module, arguments: tuple[Any, ...]) -> bool:
        if len(arguments) != self.arguments or not all(isinstance(a, Tensor) for a in arguments):
            return False
        return all(
            getattr(module.get_submodule(path), name) == value for (path, name), value in self._values.items()
        )

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        return self._forward(module, *arguments, *self._optional)


class _Run:
    """Layers of a graph of which each has what the one before gives, and nobody else has that."""

    def __init__(self) -> None:
        self.nodes: list[fx.Node] = []
        self.layers: list[nn.Module] = []
        self.residuals: dict[fx.Node, fx.Node] = {}  # sum -> its other branch

    def append(self, node: fx.Node, layer: nn.Module, before: fx.Node | None) -> None:
        self.nodes.append(node)
        self.layers.append(layer)
        if isinstance(layer, Sum):
            self.residuals[node] = node.args[1] if node.args[0] is before else node.args[0]  # type: ignore[assignment]


def _runs(graph: fx.Graph, module: nn.Module) -> list[_Run]:
    runs: list[_Run] = []
    open_runs: dict[fx.Node, _Run] = {}  # by their last node
    order = list(graph.nodes)
    for node in order:
        layer = layer_of(node, module)
        if layer is None:
            continue
        sources = node.all_input_nodes[: 1 if getattr(layer, "inplace", False) else 2]
        ends = [n for n in sources if n in open_runs and len(n.users) == 1]
        if isinstance(layer, Sum):
            ends = [n for n in ends if _may_wait(open_runs[n], node, order, module)]
            ends.sort(key=lambda n: not is_normalization(open_runs[n].layers[-1]))
        before = ends[0] if ends else None
        if before is None:
            run = _Run()
            runs.append(run)
        else:
            run = open_runs.pop(before)
        run.append(node, layer, before)
        open_runs[node] = run
    return runs


def _may_wait(run: _Run, until: fx.Node, order: list[fx.Node], module: nn.Module) -> bool:
    """Whether a run may begin as late as at ``until``: in between nothing is overwritten, and none of its layers runs."""
    between = order[order.index(run.nodes[0]) : order.index(until)]
    others = [node for node in between if node not in run.nodes]
    called = [module.get_submodule(str(node.target)) for node in others if node.op == "call_module"]
    shared = any(layer in called_layer.modules() for called_layer in called for layer in run.layers)
    return not shared and not any(may_overwrite(node, module) for node in others)


def _replace_chains(graph: fx.Graph, module: nn.Module) -> tuple[list[str], list[str]]:
    """Turns runs of layers in the graph into calls of a chain each; returns these in words, and the names of layers."""
    words: list[str] = []
    members: list[str] = []
    for run in _runs(graph, module):
        for found in chains(run.layers):
            nodes, layers = run.nodes[found.start : found.stop], run.layers[found.start : found.stop]
            words.append(repr(Chain(layers)))
            named = [node.op == "call_module" for node in nodes]
            names = [str(node.target) for node in nodes if node.op == "call_module"]
            members += names
            slot = _Slot([None if name else layer for name, layer in zip(named, layers, strict=True)])
            residual = tuple(run.residuals[node] for node in nodes if node in run.residuals)
            sources = nodes[0].all_input_nodes
            given = next(n for n in sources if n is not run.residuals.get(nodes[0]))
            with graph.inserting_before(nodes[-1] if residual else nodes[0]):
                call = graph.call_function(slot, (given, residual, *map(graph.get_attr, names)))
            nodes[-1].replace_all_uses_with(call)
            for node in reversed(nodes):
                graph.erase_node(node)
    return words, members


class FusedForward:
    """First base of a module whose forward has chains; the second is the user's class."""

    def _run(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not named and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            plan = self._plan_now()
            if plan is not None and plan.fits(self, arguments):  # type: ignore[arg-type]
                return plan(self, arguments)  # type: ignore[arg-type]
        return original_class(type(self)).forward(self, *arguments, **named)  # type: ignore[arg-type]

    def _plan_now(self) -> _Plan | None:
        """That of the mode, train or eval, made at the first call."""
        plans: dict[bool, _Plan | None] = self.__dict__.setdefault("_plan", {})
        training: bool = self.training  # type: ignore[attr-defined]
        if training not in plans:
            try:
                plans[training] = _Plan(self, original_class(type(self)))  # type: ignore[arg-type]
            except UnfitError:
                plans[training] = None
        return plans[training]

    def chain_members(self) -> list[nn.Module]:
        """The layers that the chains take in the present mode."""
        plan = self._plan_now()
        names = [] if plan is None else plan.members
        return [self.get_submodule(name) for name in names]  # type: ignore[attr-defined]

    def __prepare_scriptable__(self) -> Any:
        """TorchScript compiles the user's own forward: from then on it is that again."""
        self.__class__ = original_class(type(self))  # type: ignore[assignment, arg-type]
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name != "_plan"}
        return _new, (original_class(type(self)),), state  # type: ignore[arg-type]


def _new(cls: type[nn.Module]) -> Any:
    fused = fused_class(cls)
    return fused.__new__(fused)


_classes: dict[type[nn.Module], Any] = {}


def fused_class(cls: type[nn.Module]) -> Any:
    """``cls`` with a forward that runs chains."""
    if cls not in _classes:

        @functools.wraps(cls.forward)  # fx and inspect see its signature
        def forward(self: FusedForward, *arguments: Any, **named: Any) -> Any:
            return self._run(arguments, named)

        names = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "forward": forward,
        }
        _classes[cls] = type(cls.__name__, (FusedForward, cls), names)
    return _classes[cls]


def original_class(cls: type[nn.Module]) -> type[nn.Module]:
    return cls.__bases__[1] if issubclass(cls, FusedForward) else cls


def chains_of(module: nn.Module) -> list[str]:
    """The chains in the forward of a user's module, in words.

    Raises:
        UnfitError: its forward has to stay as it is.
    """
    if isinstance(module, (Native, torch.jit.ScriptModule, fx.GraphModule)) or "forward" in vars(module):
        raise UnfitError("its forward is not that of a class of the user's")
    return _Plan(module, original_class(type(module))).chains
