"""Attention and the Transformer: torch's classes, each part of them on fastnn's kernels.

torch's own layers leave their parts alone in inference and run one private op (the "fast path") instead; here the
parts run in every mode. Nested tensors and arguments that override torch functions get torch's own forward.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import has_torch_function

from fastnn import functional as F
from fastnn.functional._route import compiling, eager
from fastnn.functional.attention import attend
from fastnn.modules._base import ScriptsAsTorch
from fastnn.modules.chain import is_plain
from fastnn.modules.dropout import Dropout
from fastnn.modules.linear import Linear

__all__ = [
    "MultiheadAttention",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]

_ACTIVATIONS = {torch_functional.relu: F.relu, torch_functional.gelu: F.gelu}


def _feed_forward(x: Tensor, linear: nn.Module, activation: Any, dropout: nn.Module) -> Tensor:
    """``dropout(activation(linear(x)))``: relu and dropout as one operation, relu alone over what ``linear`` gave.

    Only where nobody sees what is between them.
    """
    made: Tensor = linear(x)
    if activation is torch_functional.relu and type(linear) is Linear and type(dropout) is Dropout:
        alone = is_plain(linear) and is_plain(dropout) and not _has_any_global_hook()
        if alone and not (compiling() or torch.jit.is_tracing() or has_torch_function((made,))):
            if dropout.training and 0.0 < dropout.p < 1.0:
                y: Tensor = eager.relu_dropout(made, dropout.p, True)
                return y
            made = F.relu(made, inplace=True)
            return dropout(made)
    return dropout(_ACTIVATIONS.get(activation, activation)(made))


class _Composed(ScriptsAsTorch):
    """A layer made of layers: those that torch's ``__init__`` has made become fastnn's, those given to it stay."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("fastnn."):
            init = cls.__init__

            @functools.wraps(init)
            def initialise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
                from fastnn.accelerate import accelerate  # it needs the finished list of classes

                init(self, *args, **kwargs)
                given = [x for x in (*args, *kwargs.values()) if isinstance(x, nn.Module)]
                for child in self.children():
                    if not any(child is x for x in given):
                        accelerate(child, allow_empty=True)

            cls.__init__ = initialise


def _masks(
    dtype: torch.dtype, padding: tuple[str, Tensor | None], mask: tuple[str, Tensor | None]
) -> list[Tensor | None]:
    """Both masks as numbers to add, with torch's warnings and errors under the names of the caller's arguments."""
    other = torch_functional._none_or_dtype(mask[1])
    canonical = torch_functional._canonical_mask
    return [
        canonical(padding[1], padding[0], other, mask[0], dtype),
        canonical(mask[1], mask[0], None, "", dtype, False),
    ]


def _fits(query: Tensor, key: Tensor, value: Tensor, layer: nn.MultiheadAttention) -> bool:
    """Whether torch would not complain about the inputs."""
    batch = 0 if layer.batch_first else 1
    return (
        query.dim() == key.dim() == value.dim() == 3
        and query.shape[2] == layer.embed_dim
        and (key.shape == value.shape if layer._qkv_same_embed_dim else key.shape[:2] == value.shape[:2])
        and query.shape[batch] == key.shape[batch]
        and (key.shape[2], value.shape[2]) == (layer.kdim, layer.vdim)
    )


def _masks_fit(
    query: Tensor, key: Tensor, layer: nn.MultiheadAttention, padding: Tensor | None, mask: Tensor | None
) -> bool:
    batch = 0 if layer.batch_first else 1
    N, L, S = query.shape[batch], query.shape[1 - batch], key.shape[1 - batch]
    return (padding is None or padding.shape == (N, S)) and (
        mask is None or mask.shape in ((L, S), (N * layer.num_heads, L, S))
    )


class MultiheadAttention(_Composed, nn.MultiheadAttention):
    __doc__ = nn.MultiheadAttention.__doc__

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        masks = (key_padding_mask, attn_mask)
        batched = query.dim() == 3
        inputs = (query, key, value)
        if not batched and not query.is_nested and query.dim() == 2:
            # As a batch of one; `is` still tells which inputs are the same.
            batch = 0 if self.batch_first else 1
            wide = {id(x): x.unsqueeze(batch) for x in inputs}
            inputs = tuple(wide[id(x)] for x in inputs)
            masks = (None if masks[0] is None else masks[0].unsqueeze(0), attn_mask)
        if (
            any(x.is_nested for x in inputs)
            or has_torch_function((*inputs, *self.parameters()))
            or not _fits(*inputs, self)
            or not _masks_fit(*inputs[:2], self, *masks)
            or (is_causal and attn_mask is None)
        ):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        # The hint replaces the mask where nothing else needs the mask.
        causal = is_causal and key_padding_mask is None and not need_weights
        padding, mask = _masks(
            query.dtype, ("key_padding_mask", masks[0]), ("attn_mask", None if causal else masks[1])
        )
        y, weights = attend(
            *inputs,
            self.num_heads,
            (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight),
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout if self.training else 0.0,
            self.out_proj.weight,
            self.out_proj.bias,
            padding,
            need_weights,
            mask,
            average_attn_weights,
            causal,
            self.batch_first,
        )
        if batched:
            return y, weights
        return y.squeeze(0 if self.batch_first else 1), None if weights is None else weights.squeeze(0)


class TransformerEncoderLayer(_Composed, nn.TransformerEncoderLayer):
    __doc__ = nn.TransformerEncoderLayer.__doc__

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if src.is_nested or has_torch_function((src,)):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        padding, mask = _masks(
            src.dtype, ("src_key_padding_mask", src_key_padding_mask), ("src_mask", src_mask)
        )
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), mask, padding, is_causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, mask, padding, is_causal))
        return self.norm2(x + self._ff_block(x))

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(_feed_forward(x, self.linear1, self.activation, self.dropout)))


class TransformerDecoderLayer(_Composed, nn.TransformerDecoderLayer):
    __doc__ = nn.TransformerDecoderLayer.__doc__

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout3(self.linear2(_feed_forward(x, self.linear1, self.activation, self.dropout)))


class TransformerEncoder(_Composed, nn.TransformerEncoder):
    __doc__ = nn.TransformerEncoder.__doc__

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        if mask is not None or src_key_padding_mask is None or not self._nests(src, src_key_padding_mask):
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        # torch drops the padding by way of a nested tensor, and fills it with zeros afterwards.
        padding, _ = _masks(src.dtype, ("src_key_padding_mask", src_key_padding_mask), ("mask", None))
        output = src
        for layer in self.layers:
            output = layer(output, is_causal=bool(is_causal), src_key_padding_mask=padding)
        hidden = src_key_padding_mask.bool()  # of numbers, too: those other than 0
        output = output.masked_fill(hidden.unsqueeze(-1), 0.0)
        return output if self.norm is None else self.norm(output)

    def _nests(self, src: Tensor, padding: Tensor) -> bool:
        """Whether torch's forward would make a nested tensor for layers of ours."""
        first = self.layers[0]
        if not isinstance(first, TransformerEncoderLayer) or src.dim() != 3 or src.is_nested:
            return False
        seen = padding.logical_not()
        return (
            torch.backends.mha.get_fastpath_enabled()
            and getattr(self, "use_nested_tensor", False)
            and not first.training
            and not torch.is_autocast_enabled()
            and not torch.compiler.is_compiling()
            and not has_torch_function((src, *self.parameters()))
            and not (torch.is_grad_enabled() and any(x.requires_grad for x in (src, *first.parameters())))
            and bool(torch._nested_tensor_from_mask_left_aligned(src, seen))
        )


class TransformerDecoder(_Composed, nn.TransformerDecoder):
    __doc__ = nn.TransformerDecoder.__doc__


class Transformer(_Composed, nn.Transformer):
    __doc__ = nn.Transformer.__doc__
