"""Convolutions as layers: torch's classes on fastnn's kernels."""

# torch's own classes do not agree with their annotations (padding may be a string, lazy weights are uninitialised).
# mypy: disable-error-code="arg-type, assignment, misc"

import torch.nn.functional as torch_functional
from torch import Tensor, nn
from torch.nn.modules.utils import _pair, _single, _triple

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]


class Conv1d(Native, nn.Conv1d):
    __doc__ = nn.Conv1d.__doc__

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            padded = torch_functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            return F.conv1d(padded, weight, bias, self.stride, _single(0), self.dilation, self.groups)
        return F.conv1d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(Native, nn.Conv2d):
    __doc__ = nn.Conv2d.__doc__

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            padded = torch_functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            return F.conv2d(padded, weight, bias, self.stride, _pair(0), self.dilation, self.groups)
        return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Conv3d(Native, nn.Conv3d):
    __doc__ = nn.Conv3d.__doc__

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            padded = torch_functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            return F.conv3d(padded, weight, bias, self.stride, _triple(0), self.dilation, self.groups)
        return F.conv3d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class ConvTranspose1d(Native, nn.ConvTranspose1d):
    __doc__ = nn.ConvTranspose1d.__doc__

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose1d")
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 1, self.dilation
        )
        return F.conv_transpose1d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class ConvTranspose2d(Native, nn.ConvTranspose2d):
    __doc__ = nn.ConvTranspose2d.__doc__

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose2d")
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        return F.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class ConvTranspose3d(Native, nn.ConvTranspose3d):
    __doc__ = nn.ConvTranspose3d.__doc__

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose3d")
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 3, self.dilation
        )
        return F.conv_transpose3d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class LazyConv1d(Conv1d, nn.LazyConv1d):
    __doc__ = nn.LazyConv1d.__doc__
    cls_to_become = Conv1d


class LazyConv2d(Conv2d, nn.LazyConv2d):
    __doc__ = nn.LazyConv2d.__doc__
    cls_to_become = Conv2d


class LazyConv3d(Conv3d, nn.LazyConv3d):
    __doc__ = nn.LazyConv3d.__doc__
    cls_to_become = Conv3d


class LazyConvTranspose1d(ConvTranspose1d, nn.LazyConvTranspose1d):
    __doc__ = nn.LazyConvTranspose1d.__doc__
    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(ConvTranspose2d, nn.LazyConvTranspose2d):
    __doc__ = nn.LazyConvTranspose2d.__doc__
    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(ConvTranspose3d, nn.LazyConvTranspose3d):
    __doc__ = nn.LazyConvTranspose3d.__doc__
    cls_to_become = ConvTranspose3d
