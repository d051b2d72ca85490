"""Element-wise activations, PReLU, RReLU and GLU as layers: torch's classes on fastnn's kernels."""

from torch import Tensor, nn

from fastnn import functional as F
from fastnn.modules._base import Native

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]


class ReLU(Native, nn.ReLU):
    __doc__ = nn.ReLU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, self.inplace)


class LeakyReLU(Native, nn.LeakyReLU):
    __doc__ = nn.LeakyReLU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class ELU(Native, nn.ELU):
    __doc__ = nn.ELU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha, self.inplace)


class SELU(Native, nn.SELU):
    __doc__ = nn.SELU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.selu(input, self.inplace)


class CELU(Native, nn.CELU):
    __doc__ = nn.CELU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.celu(input, self.alpha, self.inplace)


class Sigmoid(Native, nn.Sigmoid):
    __doc__ = nn.Sigmoid.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(Native, nn.Tanh):
    __doc__ = nn.Tanh.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class ReLU6(Native, nn.ReLU6):
    __doc__ = nn.ReLU6.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)


class Hardtanh(Native, nn.Hardtanh):
    __doc__ = nn.Hardtanh.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)


class GELU(Native, nn.GELU):
    __doc__ = nn.GELU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate=self.approximate)


class SiLU(Native, nn.SiLU):
    __doc__ = nn.SiLU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, self.inplace)


class Mish(Native, nn.Mish):
    __doc__ = nn.Mish.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.mish(input, self.inplace)


class Softplus(Native, nn.Softplus):
    __doc__ = nn.Softplus.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)


class Softsign(Native, nn.Softsign):
    __doc__ = nn.Softsign.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.softsign(input)


class Hardswish(Native, nn.Hardswish):
    __doc__ = nn.Hardswish.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.hardswish(input, self.inplace)


class Hardsigmoid(Native, nn.Hardsigmoid):
    __doc__ = nn.Hardsigmoid.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.hardsigmoid(input, self.inplace)


class LogSigmoid(Native, nn.LogSigmoid):
    __doc__ = nn.LogSigmoid.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.logsigmoid(input)


class Threshold(Native, nn.Threshold):
    __doc__ = nn.Threshold.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.threshold(input, self.threshold, self.value, self.inplace)


class Tanhshrink(Native, nn.Tanhshrink):
    __doc__ = nn.Tanhshrink.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.tanhshrink(input)


class Softshrink(Native, nn.Softshrink):
    __doc__ = nn.Softshrink.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.softshrink(input, self.lambd)


class Hardshrink(Native, nn.Hardshrink):
    __doc__ = nn.Hardshrink.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.hardshrink(input, self.lambd)


class RReLU(Native, nn.RReLU):
    __doc__ = nn.RReLU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)


class PReLU(Native, nn.PReLU):
    __doc__ = nn.PReLU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)


class GLU(Native, nn.GLU):
    __doc__ = nn.GLU.__doc__

    def forward(self, input: Tensor) -> Tensor:
        return F.glu(input, self.dim)
