"""Pooling layers: torch's classes on fastnn's kernels. ``MaxUnpool*`` and ``FractionalMaxPool*`` are torch's own."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]


class AdaptiveAvgPool1d(Native, nn.AdaptiveAvgPool1d):
    __doc__ = nn.AdaptiveAvgPool1d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(Native, nn.AdaptiveAvgPool2d):
    __doc__ = nn.AdaptiveAvgPool2d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(Native, nn.AdaptiveAvgPool3d):
    __doc__ = nn.AdaptiveAvgPool3d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(input, self.output_size)


class AdaptiveMaxPool1d(Native, nn.AdaptiveMaxPool1d):
    __doc__ = nn.AdaptiveMaxPool1d.__doc__

    def forward(self, input: Tensor):
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(Native, nn.AdaptiveMaxPool2d):
    __doc__ = nn.AdaptiveMaxPool2d.__doc__

    def forward(self, input: Tensor):
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(Native, nn.AdaptiveMaxPool3d):
    __doc__ = nn.AdaptiveMaxPool3d.__doc__

    def forward(self, input: Tensor):
        return F.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class AvgPool1d(Native, nn.AvgPool1d):
    __doc__ = nn.AvgPool1d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )


class AvgPool2d(Native, nn.AvgPool2d):
    __doc__ = nn.AvgPool2d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool3d(Native, nn.AvgPool3d):
    __doc__ = nn.AvgPool3d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class LPPool1d(Native, nn.LPPool1d):
    __doc__ = nn.LPPool1d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(Native, nn.LPPool2d):
    __doc__ = nn.LPPool2d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(Native, nn.LPPool3d):
    __doc__ = nn.LPPool3d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class MaxPool1d(Native, nn.MaxPool1d):
    __doc__ = nn.MaxPool1d.__doc__

    def forward(self, input: Tensor):
        return F.max_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxPool2d(Native, nn.MaxPool2d):
    __doc__ = nn.MaxPool2d.__doc__

    def forward(self, input: Tensor):
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxPool3d(Native, nn.MaxPool3d):
    __doc__ = nn.MaxPool3d.__doc__

    def forward(self, input: Tensor):
        return F.max_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )
