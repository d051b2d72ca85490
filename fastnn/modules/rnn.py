"""Recurrent layers: torch's classes on fastnn's kernels, a whole sequence in one operation per layer.

What torch would complain about, compilers, and arguments that override torch functions get torch's own forward.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastnn.functional import rnn as F
from fastnn.functional._route import compiling, has_torch_function
from fastnn.modules._base import ScriptsAsTorch

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class _Recurrent(ScriptsAsTorch, nn.RNNBase):
    """The forward of RNN, LSTM and GRU."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        packed = isinstance(input, PackedSequence)
        data: Tensor = input.data if packed else input
        states = () if hx is None else tuple(hx) if self.mode == "LSTM" else (hx,)
        dims = data.dim()
        if (
            compiling()
            or (not packed and (dims not in (2, 3) or any(state.dim() != dims for state in states)))
            or (self.mode == "LSTM" and len(states) not in (0, 2))
            or has_torch_function((data, *states, *self._flat_weights))
        ):
            return super().forward(input, hx)
        self._update_flat_weights()
        return self._packed(input, states) if packed else self._padded(input, states)

    def _run(
        self, input: Tensor, batch_sizes: Tensor | None, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        if states:
            self.check_forward_args(input, states if self.mode == "LSTM" else states[0], batch_sizes)
        else:
            self.check_input(input, batch_sizes)
        return F.stack(
            self.mode, input, batch_sizes, states, self._flat_weights, self.bias, self.num_layers, self.dropout,
            self.training, self.bidirectional, self.batch_first,
        )  # fmt: skip

    def _hidden(self, states: tuple[Tensor, ...]) -> Any:
        """The states as torch's forward takes and returns them."""
        return states if self.mode == "LSTM" else states[0]

    def _packed(self, input: PackedSequence, states: tuple[Tensor, ...]) -> Any:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if sorted_indices is not None:
            states = tuple(state.index_select(1, sorted_indices) for state in states)
        output, *last = self._run(data, batch_sizes, states)
        if unsorted_indices is not None:
            last = [state.index_select(1, unsorted_indices) for state in last]
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self._hidden(tuple(last))

    def _padded(self, input: Tensor, states: tuple[Tensor, ...]) -> Any:
        if input.dim() == 3:
            output, *last = self._run(input, None, states)
            return output, self._hidden(tuple(last))
        batch = 0 if self.batch_first else 1
        output, *last = self._run(input.unsqueeze(batch), None, tuple(state.unsqueeze(1) for state in states))
        return output.squeeze(batch), self._hidden(tuple(state.squeeze(1) for state in last))


class RNN(_Recurrent, nn.RNN):
    __doc__ = nn.RNN.__doc__


class LSTM(_Recurrent, nn.LSTM):
    __doc__ = nn.LSTM.__doc__


class GRU(_Recurrent, nn.GRU):
    __doc__ = nn.GRU.__doc__


class _Cell(ScriptsAsTorch, nn.RNNCellBase):
    """The forward of the three cells."""

    def _step(self, mode: str, input: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The new states, or None where torch's forward is to run."""
        dims = input.dim()
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if (
            compiling()
            or dims not in (1, 2)
            or any(state.dim() != dims for state in states)
            or has_torch_function((input, *states, *weights))
        ):
            return None
        if dims == 2:
            return F.cell(mode, input, states, *weights)
        batch = tuple(state.unsqueeze(0) for state in states)
        return tuple(state.squeeze(0) for state in F.cell(mode, input.unsqueeze(0), batch, *weights))


class RNNCell(_Cell, nn.RNNCell):
    __doc__ = nn.RNNCell.__doc__

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity in ("tanh", "relu"):
            new = self._step(f"RNN_{self.nonlinearity.upper()}", input, () if hx is None else (hx,))
            if new is not None:
                return new[0]
        return super().forward(input, hx)


class LSTMCell(_Cell, nn.LSTMCell):
    __doc__ = nn.LSTMCell.__doc__

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        new = self._step("LSTM", input, () if hx is None else tuple(hx))
        return super().forward(input, hx) if new is None else (new[0], new[1])


class GRUCell(_Cell, nn.GRUCell):
    __doc__ = nn.GRUCell.__doc__

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        new = self._step("GRU", input, () if hx is None else (hx,))
        return super().forward(input, hx) if new is None else new[0]
