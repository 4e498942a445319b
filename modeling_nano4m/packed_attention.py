"""Attention on a CPU without padding: the tokens of all samples stand in a row, and each sees those of its own sample.

Short samples are computed with plain matrix products, which takes a CPU half as long as its fused kernel does; their
attention weights are kept for the backward pass, a fifth of what else a layer keeps of them at most. Long ones go to
that kernel, which keeps none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

# Below so many queries times keys, padding included, all samples at once cost less than one after the other.
FEWEST_PAIRS = 32**2
# Samples of up to so many queries times keys are short: above, the fused kernel is as fast.
MOST_PAIRS = 256**2

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class PackedMask:
    """How many queries and keys each sample has; and which pairs are hidden, `(queries, keys)` bool, or None."""

    num_queries: list[int]
    num_keys: list[int]
    hidden: list[torch.BoolTensor | None]

    @classmethod
    def make(
        cls, mask: torch.BoolTensor | None, queries: list[torch.LongTensor], keys: list[torch.LongTensor]
    ) -> "PackedMask":
        """Which real tokens see which, from a mask of padded samples.

        Args:
            mask: what is visible, `(batch, 1, queries, keys)`; all if None.
            queries, keys: for each sample the places of its real tokens, ascending.
        """
        hidden = []
        for sample, (own_queries, own_keys) in enumerate(zip(queries, keys, strict=True)):
            visible = None if mask is None else mask[sample, 0, own_queries][:, own_keys]
            hidden.append(None if visible is None or visible.all() else ~visible)
        return cls([len(places) for places in queries], [len(places) for places in keys], hidden)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: PackedMask, num_heads: int, scaling: float
) -> torch.Tensor:
    """Multi-head attention, computed in float32 if in less was asked; `(..., heads * head_dim)`, in and out.

    The dimensions in front hold the real tokens of one sample after the other. Can be differentiated once.
    """
    query, key, value = (states.float() if states.dtype.itemsize < 4 else states for states in (query, key, value))
    return _PackedAttention.apply(query * scaling, key, value, mask, num_heads)


class _PackedAttention(torch.autograd.Function):
    """What is computed for a sample is written where it belongs; autograd would have to join it."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # turns autocast off, which would cast for each product
    def forward(ctx, query, key, value, mask, num_heads):
        output, kept = query.new_empty(query.shape), []  # of each sample, its weights or its normalizers
        samples = _samples(mask, num_heads, (query, output), (key, value))
        for (own_query, own_output, own_key, own_value), hidden in samples:
            if _is_short(own_query, own_key):
                scores = torch.bmm(own_query, own_key.mT)  # `@` would copy what is not contiguous
                weights = (scores if hidden is None else scores.masked_fill_(hidden, -torch.inf)).softmax(-1)
                own_output.copy_(torch.bmm(weights, own_value))
                kept.append(weights)
            else:
                states = (own[None] for own in (own_query, own_key, own_value))
                result, own_normalizers = _fused(*states, attn_mask=_bias(hidden, query.dtype), scale=1.0)
                own_output.copy_(result[0])
                kept.append(own_normalizers)
        ctx.save_for_backward(query, key, value, output, *kept)
        ctx.mask, ctx.num_heads = mask, num_heads
        return output

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx, output_gradient):
        query, key, value, output, *kept = ctx.saved_tensors
        gradients = [states.new_empty(states.shape) for states in (query, key, value)]
        of_queries = output_gradient, query, output, gradients[0]
        samples = _samples(ctx.mask, ctx.num_heads, of_queries, (key, value, *gradients[1:]))
        for (own, hidden), own_kept in zip(samples, kept, strict=True):
            given, own_query, own_output, query_gradient, own_key, own_value, key_gradient, value_gradient = own
            if _is_short(own_query, own_key):
                value_gradient.copy_(torch.bmm(own_kept.mT, given))
                scores = torch._softmax_backward_data(torch.bmm(given, own_value.mT), own_kept, -1, query.dtype)
                query_gradient.copy_(torch.bmm(scores, own_key))
                key_gradient.copy_(torch.bmm(scores.mT, own_query))
            else:
                states = (part[None] for part in (given, own_query, own_key, own_value, own_output))
                bias = _bias(hidden, query.dtype)
                results = _fused_backward(*states, own_kept, 0.0, False, attn_mask=bias, scale=1.0)
                for gradient, result in zip((query_gradient, key_gradient, value_gradient), results, strict=True):
                    gradient.copy_(result[0])
        return *gradients, None, None


def _samples(mask: PackedMask, num_heads: int, of_queries: tuple, of_keys: tuple) -> Iterator[tuple]:
    """For each sample its part of all tensors, `(heads, tokens, head_dim)`, those of queries first; and what is
    hidden."""
    parts = [
        states.flatten(0, -2).unflatten(-1, (num_heads, -1)).transpose(0, 1).split(lengths, dim=1)
        for tensors, lengths in ((of_queries, mask.num_queries), (of_keys, mask.num_keys))
        for states in tensors
    ]
    return zip(zip(*parts, strict=True), mask.hidden, strict=True)


def _is_short(query: torch.Tensor, key: torch.Tensor) -> bool:
    return query.shape[1] * key.shape[1] <= MOST_PAIRS


def _bias(hidden: torch.BoolTensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if hidden is None else torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
