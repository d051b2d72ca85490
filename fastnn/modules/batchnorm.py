"""Batch normalisation as layers: torch's classes on fastnn's kernels."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
]


class _BatchNorm(Native, nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        # momentum None: the average of all batches so far. The count is read here and changed below, so that a
        # call that fails changes nothing.
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            if self.momentum is None and self.num_batches_tracked is not None:
                momentum = 1.0 / (float(self.num_batches_tracked) + 1.0)
        # Running statistics that are not tracked are not updated, but in eval mode they are used if they exist.
        use_running = not self.training or self.track_running_stats
        output = F.batch_norm(
            input,
            self.running_mean if use_running else None,
            self.running_var if use_running else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )
        if self.training and self.track_running_stats:
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return output


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    __doc__ = nn.BatchNorm1d.__doc__


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    __doc__ = nn.BatchNorm2d.__doc__


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    __doc__ = nn.BatchNorm3d.__doc__


class LazyBatchNorm1d(_BatchNorm, nn.LazyBatchNorm1d):
    __doc__ = nn.LazyBatchNorm1d.__doc__
    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_BatchNorm, nn.LazyBatchNorm2d):
    __doc__ = nn.LazyBatchNorm2d.__doc__
    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_BatchNorm, nn.LazyBatchNorm3d):
    __doc__ = nn.LazyBatchNorm3d.__doc__
    cls_to_become = BatchNorm3d
