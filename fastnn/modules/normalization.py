"""Layer, RMS, group and instance normalisation as layers: torch's classes on fastnn's kernels."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = [
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "RMSNorm",
]


class LayerNorm(Native, nn.LayerNorm):
    __doc__ = nn.LayerNorm.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(Native, nn.RMSNorm):
    __doc__ = nn.RMSNorm.__doc__

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(Native, nn.GroupNorm):
    __doc__ = nn.GroupNorm.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class _InstanceNorm(Native, nn.modules.instancenorm._InstanceNorm):
    # torch's forward checks the sizes and ends here, with a batch.
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return F.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
        )


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    __doc__ = nn.InstanceNorm1d.__doc__


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    __doc__ = nn.InstanceNorm2d.__doc__


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    __doc__ = nn.InstanceNorm3d.__doc__


class LazyInstanceNorm1d(_InstanceNorm, nn.LazyInstanceNorm1d):
    __doc__ = nn.LazyInstanceNorm1d.__doc__
    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_InstanceNorm, nn.LazyInstanceNorm2d):
    __doc__ = nn.LazyInstanceNorm2d.__doc__
    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_InstanceNorm, nn.LazyInstanceNorm3d):
    __doc__ = nn.LazyInstanceNorm3d.__doc__
    cls_to_become = InstanceNorm3d
