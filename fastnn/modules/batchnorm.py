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
        running_mean, running_var, training, momentum = self._statistics()
        output = F.batch_norm(
            input, running_mean, running_var, self.weight, self.bias, training, momentum, self.eps
        )
        self._count_batch()
        return output

    def _statistics(self) -> tuple[Tensor | None, Tensor | None, bool, float]:
        """What a call now normalises by: running mean and variance, whether the batch's own statistics are used (and
        the running ones updated), and the weight of this batch in the update.
        """
        # momentum None: the average of all batches so far. The count is read here and changed after the call, so
        # that a call that fails changes nothing.
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            if self.momentum is None and self.num_batches_tracked is not None:
                momentum = 1.0 / (float(self.num_batches_tracked) + 1.0)
        # Running statistics that are not tracked are not updated, but in eval mode they are used if they exist.
        use_running = not self.training or self.track_running_stats
        return (
            self.running_mean if use_running else None,
            self.running_var if use_running else None,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
        )

    def _count_batch(self) -> None:
        """After a call: one more batch has gone into the running statistics, if they are kept."""
        if self.training and self.track_running_stats:
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)


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
