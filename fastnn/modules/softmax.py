"""Softmax and its kin as layers: torch's classes on fastnn's kernels."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = ["LogSoftmax", "Softmax", "Softmax2d", "Softmin"]


class Softmax(Native, nn.Softmax):
    __doc__ = nn.Softmax.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(Native, nn.LogSoftmax):
    __doc__ = nn.LogSoftmax.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)


class Softmin(Native, nn.Softmin):
    __doc__ = nn.Softmin.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.softmin(input, self.dim, _stacklevel=5)


class Softmax2d(Native, nn.Softmax2d):
    __doc__ = nn.Softmax2d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return F.softmax(input, -3, _stacklevel=5)
