"""Linear layers: torch's classes on fastnn's kernels. ``Bilinear`` and ``Identity`` are torch's own."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = ["LazyLinear", "Linear"]


class _Linear(Native):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class Linear(_Linear, nn.Linear):
    __doc__ = nn.Linear.__doc__


class LazyLinear(_Linear, nn.LazyLinear):
    __doc__ = nn.LazyLinear.__doc__
    cls_to_become = Linear
