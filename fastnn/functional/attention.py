"""Attention with the signature of ``torch.nn.functional``.

No ``L x S`` matrix is kept: each tile of the scores lives in a core's cache, forward and backward. Dropout is drawn
inside, from a stream that torch's CPU generator starts, as in the family ``dropout``.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function, is_scripting
from fastnn.functional.dropout import dropout
from fastnn.functional.linear import linear
from fastnn.functional.softmax import softmax

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


def _projections(
    query: Tensor, key: Tensor, value: Tensor, weights: Sequence[Tensor | None], bias: Tensor | None
) -> Sequence[Tensor]:
    """The projected query, key and value; one product for those that are the same tensor."""
    packed, *separate = weights
    if packed is None:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        inputs = zip((query, key, value), separate, biases, strict=True)
        return [linear(x, w, b) for x, w, b in inputs if w is not None]
    if key is value:
        if query is key:
            return linear(query, packed, bias).chunk(3, -1)
        size = packed.shape[1]
        w_query, w_pair = packed.split([size, 2 * size])
        b_query, b_pair = (None, None) if bias is None else bias.split([size, 2 * size])
        return [linear(query, w_query, b_query), *linear(key, w_pair, b_pair).chunk(2, -1)]
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [linear(x, w, b) for x, w, b in zip((query, key, value), packed.chunk(3), biases, strict=True)]


def _longer(mask: Tensor | None) -> Tensor | None:
    """The mask for one more key, which everybody sees."""
    return None if mask is None else F.pad(mask, (0, 1))


def _joint_mask(mask: Tensor | None, padding: Tensor | None, N: int, heads: int) -> Tensor | None:
    """Both masks as one that broadcasts to ``(N, heads, L, S)``."""
    if mask is not None and mask.dim() == 3:
        mask = mask.view(N, heads, mask.shape[1], mask.shape[2])
    if padding is None:
        return mask
    padding = padding.view(N, 1, 1, padding.shape[1])
    return padding if mask is None else mask + padding


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    weights: Sequence[Tensor | None],
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention of three-dimensional inputs, in the layout in which they come.

    Heads are views of the projections, and the result's heads join without a copy. Masks are added (see
    ``torch.nn.functional._canonical_mask``), ``(N, S)`` and ``(L, S)`` or ``(N * heads, L, S)``.
    """
    batch, tokens = (0, 1) if batch_first else (1, 0)
    N = query.shape[batch]
    packed, plain = weights[0], bias_k is None and not add_zero_attn and not need_weights
    if packed is not None and query is key is value and plain:
        qkv = linear(query, packed, in_proj_bias)
        mask = _joint_mask(attn_mask, key_padding_mask, N, num_heads)
        y = door().packed_attention(qkv, mask, num_heads, batch_first, dropout_p, is_causal)
        return linear(y, out_proj_weight, out_proj_bias), None
    q, k, v = _projections(query, key, value, weights, in_proj_bias)
    extra = []
    if bias_k is not None and bias_v is not None:
        extra.append((bias_k, bias_v))
    if add_zero_attn:
        extra.append((k.new_zeros(1, 1, k.shape[-1]), v.new_zeros(1, 1, v.shape[-1])))
    for more_k, more_v in extra:
        sizes = (N, 1, -1) if batch_first else (1, N, -1)
        k = torch.cat([k, more_k.expand(sizes)], tokens)
        v = torch.cat([v, more_v.expand(sizes)], tokens)
        attn_mask, key_padding_mask = _longer(attn_mask), _longer(key_padding_mask)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (num_heads, -1)).permute(batch, 2, tokens, 3)

    q, k, v = heads(q), heads(k), heads(v)
    mask = _joint_mask(attn_mask, key_padding_mask, N, num_heads)
    attention: Tensor | None = None
    if need_weights:
        scores = q * math.sqrt(1.0 / q.shape[-1]) @ k.transpose(-1, -2)
        attention = softmax(scores if mask is None else scores + mask, -1)
        if dropout_p > 0.0:
            attention = dropout(attention, dropout_p)
        y = attention @ v
        if average_attn_weights:
            attention = attention.mean(1)
    else:
        y = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
    y = y.permute(*((0, 2, 1, 3) if batch_first else (2, 0, 1, 3))).flatten(2)
    return linear(y, out_proj_weight, out_proj_bias), attention
