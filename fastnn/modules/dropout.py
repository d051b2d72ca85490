"""The dropout family as layers: torch's classes on fastnn's kernels."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = ["AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"]


class Dropout(Native, nn.Dropout):
    __doc__ = nn.Dropout.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)


class Dropout1d(Native, nn.Dropout1d):
    __doc__ = nn.Dropout1d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(Native, nn.Dropout2d):
    __doc__ = nn.Dropout2d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(Native, nn.Dropout3d):
    __doc__ = nn.Dropout3d.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout3d(input, self.p, self.training, self.inplace)


class AlphaDropout(Native, nn.AlphaDropout):
    __doc__ = nn.AlphaDropout.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.alpha_dropout(input, self.p, self.training)


class FeatureAlphaDropout(Native, nn.FeatureAlphaDropout):
    __doc__ = nn.FeatureAlphaDropout.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.feature_alpha_dropout(input, self.p, self.training)
