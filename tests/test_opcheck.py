"""torch.library.opcheck for every op in torch.ops.fastnn: schema, meta kernel, autograd, compilation."""

import torch

import fastnn

PREFIX = "fastnn::"


def registered():
    """The ops that the extension defined, by name."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(n.removeprefix(PREFIX).split(".")[0] for n in names if n.startswith(PREFIX))


PRIVATE = [n for n in registered() if n.startswith("_")]
FRONT = [n for n in registered() if not n.startswith("_")]


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Placeholder so that a front op sees a mode: it must then decompose to aten."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.namespace)
        return func(*args, **(kwargs or {}))


def test_ops_are_registered():
    assert PRIVATE and FRONT
    for name, private, _, _ in fastnn._C.op_table():
        assert name in FRONT and private in PRIVATE
