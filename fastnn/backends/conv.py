"""Which algorithms convolutions may use.

``fastnn.backends.conv.winograd = False`` keeps 3x3 convolutions on direct sums; default True, or False where the
environment variable ``FASTNN_WINOGRAD`` is 0. Winograd's algorithm needs a quarter of the multiplications, but its
transforms round: for float32 values of one size, its error against float64 is about twice that of torch's direct sums
(5e-7 of the output's standard deviation, the largest of many about 4e-6; docs/accuracy.md). The error is relative to the
largest values of a 6x6 window, so beside values a million times larger the small ones of a window lose what direct
sums would keep.

``fastnn.backends.conv.benchmark = True`` measures, as ``torch.backends.cudnn.benchmark`` does, what is fastest on this
machine: the first call with new sizes (or another layout, dtype, number of threads, instruction set or setting of
``winograd``) runs every algorithm that may compute it a few times, later ones take the fastest. Default False, where
the sizes decide, or True where ``FASTNN_CONV_BENCHMARK`` is 1. The bits of a result then depend on what was fastest.

Both hold for the whole process and for gradients too.
"""

import sys
from types import ModuleType
from typing import Any

from fastnn import _C

winograd: bool
benchmark: bool


def measured() -> list[dict[str, Any]]:
    """What ``benchmark`` has measured: a dictionary per direction and sizes.

    ``direction`` is "forward", "backward data" or "backward weight" (a transposed convolution's forward is a
    "backward data"), ``seconds`` the least time of each algorithm (None where there is one alone), ``fastest`` the one
    in use, ``default`` the one that runs without ``benchmark``.
    """
    return _C.conv_measurements()


def forget() -> None:
    """Forget what was measured: the next calls measure anew."""
    _C.forget_conv_measurements()


class _Switches(ModuleType):
    @property
    def winograd(self) -> bool:
        return _C.conv_winograd()

    @winograd.setter
    def winograd(self, on: bool) -> None:
        _C.set_conv_winograd(bool(on))

    @property
    def benchmark(self) -> bool:
        return _C.conv_benchmark()

    @benchmark.setter
    def benchmark(self, on: bool) -> None:
        _C.set_conv_benchmark(bool(on))


sys.modules[__name__].__class__ = _Switches
