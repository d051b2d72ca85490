"""Which algorithms convolutions may use.

``fastnn.backends.conv.winograd = False`` keeps 3x3 convolutions on direct sums; default True, or False where the
environment variable ``FASTNN_WINOGRAD`` is 0. Winograd's algorithm needs a quarter of the multiplications, but its
transforms round: for float32 values of one size, its error against float64 is about twice that of direct sums (6e-7
of the output's standard deviation, the largest of many about 4e-6). The error is relative to the largest values of a
6x6 window, so beside values a million times larger the small ones of a window lose what direct sums would keep. The
switch holds for the whole process and for gradients too.
"""

import sys
from types import ModuleType

from fastnn import _C

winograd: bool


class _Switches(ModuleType):
    @property
    def winograd(self) -> bool:
        return _C.conv_winograd()

    @winograd.setter
    def winograd(self, on: bool) -> None:
        _C.set_conv_winograd(bool(on))


sys.modules[__name__].__class__ = _Switches
