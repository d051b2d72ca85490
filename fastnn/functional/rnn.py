"""Recurrent layers with the signatures of ``torch.lstm``, ``torch.gru``, ``torch.rnn_tanh`` and of their cells.

``torch.nn.functional`` has no names for them; :mod:`fastnn.modules.rnn` calls these two.
"""

from collections.abc import Sequence

from torch import Tensor

from fastnn.functional._route import door

__all__: list[str] = []

_OPS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


def stack(
    mode: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """All layers over a whole sequence: the output and the last states, ``h_n`` and, of an LSTM, ``c_n``.

    mode: as ``RNNBase.mode``. hx: the initial states, none for zeros. With ``batch_sizes`` the input is the data of a
    :class:`torch.nn.utils.rnn.PackedSequence`, and so is the output.
    """
    result: tuple[Tensor, ...] = getattr(door(), _OPS[mode])(
        input, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
    )
    return result


def cell(
    mode: str,
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, ...]:
    """One step of a batch: the new state, of an LSTM ``(h, c)``. hx: the state before, none for zeros."""
    op = getattr(door(), _OPS[mode] + "_cell")
    if mode == "LSTM":
        both: tuple[Tensor, ...] = op(input, hx, w_ih, w_hh, b_ih, b_hh)
        return both
    return (op(input, hx[0] if hx else None, w_ih, w_hh, b_ih, b_hh),)
