"""Element-wise activations as layers: torch's classes on fastnn's kernels."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = ["ReLU"]


class ReLU(Native, nn.ReLU):
    __doc__ = nn.ReLU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, inplace=self.inplace)
