"""Attention with the signature of ``torch.nn.functional``.

No ``L x S`` matrix is kept: each tile of the scores lives in a core's cache, forward and backward. Dropout is drawn
inside, from a stream that torch's CPU generator starts, as in the family ``dropout``.
"""

import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function, is_scripting

__all__ = ["scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(query @ key.mT * scale + attn_mask) @ value``; see :func:`torch.nn.functional.scaled_dot_product_attention`.

    Native in float32 and float64, for two to four dimensions of any strides, masks that broadcast included. A mask that
    wants a gradient, empty tensors and batches that broadcast get torch's own op.
    """
    if not is_scripting():
        if not has_torch_function((query, key, value, attn_mask)):
            return door().scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
            )
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
