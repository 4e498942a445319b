"""The layers of nano4M: attention, feed-forward, and how padding is kept out of both."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_nano4m import Nano4MConfig
from .packed_attention import FEWEST_PAIRS, PackedMask, packed_attention


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; `(batch, heads, length, head_dim)` in, `(batch, length, heads, head_dim)` out."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def as_multiplied(states: torch.Tensor) -> torch.Tensor:
    """In the type that autocast multiplies in: cast once, for all the linear layers that read the same states."""
    device_type = states.device.type
    if not torch.is_autocast_enabled(device_type) or states.dtype == torch.float64:  # which autocast leaves alone, too
        return states
    return states.to(torch.get_autocast_dtype(device_type))


def pair_mask(config: Nano4MConfig, visible: torch.BoolTensor, dtype: torch.dtype):
    """Which query sees which key, bool `(batch, queries, keys)`, as the attention implementation wants to have it."""
    if config._attn_implementation == "flex_attention":
        return create_block_mask(
            lambda b, h, q, k: visible[b, q, k], len(visible), None, *visible.shape[1:], str(visible.device)
        )
    if config._attn_implementation == "eager":
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=visible.device)
        return torch.where(visible, torch.zeros_like(hidden), hidden)[:, None]
    return visible[:, None]


class SequenceLayout:
    """Moves states between `(batch, length, dim)`, as attention needs them, and `(1, real tokens, dim)`.

    Everything but attention works on single tokens. While training, it gets the real ones only, so that sequences of
    different lengths cost no more than their tokens. Elsewhere, and under `torch.compile`, which wants shapes that do
    not depend on values, states keep their padding and both ways change nothing.

    Attributes:
        places: of the real tokens among all, where padding is dropped; None elsewhere.
        can_pack: attention, too, can be computed without padding.
    """

    def __init__(self, valid_mask: torch.BoolTensor, drop_padding: bool):
        self.shape = valid_mask.shape
        self._valid_mask = valid_mask
        drop_padding = drop_padding and not torch.compiler.is_compiling()
        self.places = None
        if drop_padding and not valid_mask.all():
            self.places = valid_mask.flatten().nonzero()[:, 0]
        self.can_pack = drop_padding and valid_mask.device.type == "cpu"

    @cached_property
    def by_sample(self) -> list[torch.LongTensor]:
        """Where the real tokens of each sample stand."""
        return [sample.nonzero()[:, 0] for sample in self._valid_mask]

    def drop_padding(self, states: torch.Tensor) -> torch.Tensor:
        return states if self.places is None else states.flatten(0, 1)[self.places][None]

    def restore_padding(self, states: torch.Tensor) -> torch.Tensor:
        if self.places is None:
            return states
        padded = states.new_zeros(self.shape.numel(), states.shape[-1])
        return padded.index_copy(0, self.places, states[0]).unflatten(0, self.shape)


def packed_mask(
    config: Nano4MConfig, attention_mask: torch.Tensor | None, queries: SequenceLayout, keys: SequenceLayout
) -> PackedMask | torch.Tensor | None:
    """The mask as `packed_attention` wants to have it, where that is what attention is computed with; or as it was."""
    can_pack = queries.can_pack and keys.can_pack and not config.attention_dropout
    if config._attn_implementation != "sdpa" or not can_pack or queries.shape[1] * keys.shape[1] < FEWEST_PAIRS:
        return attention_mask
    return PackedMask.make(attention_mask, queries.by_sample, keys.by_sample)


class KeyValueCache:
    """Keys and values that attention layers have computed so far, `(batch, heads, length, head_dim)` each.

    They stand in buffers that double when full: joining old and new ones in every step would copy all of them every
    time.
    """

    def __init__(self):
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.lengths: dict[int, int] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values to those of a layer; returns all of them."""
        start = self.lengths.get(layer_index, 0)
        end = start + key.shape[2]
        if layer_index not in self.buffers or self.buffers[layer_index][0].shape[2] < end:
            grown = tuple(new.new_empty(*new.shape[:2], max(end, 2 * start), new.shape[3]) for new in (key, value))
            for buffer, old in zip(grown, self.buffers.get(layer_index, ()), strict=False):
                buffer[:, :, :start] = old[:, :, :start]
            self.buffers[layer_index] = grown
        for buffer, new in zip(self.buffers[layer_index], (key, value), strict=True):
            buffer[:, :, start:end] = new
        self.lengths[layer_index] = end
        return tuple(buffer[:, :, :end] for buffer in self.buffers[layer_index])

    def keep(self, rows: torch.LongTensor) -> None:
        """Forget all samples but these."""
        self.buffers = {layer: tuple(buffer[rows] for buffer in pair) for layer, pair in self.buffers.items()}


class Nano4MAttention(nn.Module):
    """Multi-head attention of `hidden_states` to themselves, or to `context`; with a cache also to all before."""

    def __init__(self, config: Nano4MConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: PackedMask | torch.Tensor | None,
        layout: SequenceLayout,
        context: torch.Tensor | None = None,
        context_layout: SequenceLayout | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = as_multiplied(hidden_states)
        if context is None:
            context, context_layout = hidden_states, layout
        query, key, value = self.q_proj(hidden_states), self.k_proj(context), self.v_proj(context)
        dtype = query.dtype
        if isinstance(attention_mask, PackedMask):
            num_heads = self.config.num_attention_heads
            output = packed_attention(query, key, value, attention_mask, num_heads, self.scaling)
            return self.o_proj(output.to(dtype)), None
        implementation = self.config._attn_implementation
        if "flash" in implementation and attention_mask is not None and attention_mask.ndim == 4:
            implementation = "sdpa"  # flash kernels know padding only
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        no_autocast = nullcontext()
        if implementation == "sdpa" and query.device.type == "cpu" and dtype.itemsize < 4 and query.requires_grad:
            # Its backward pass in half precision is several times slower on CPUs.
            no_autocast = torch.autocast("cpu", enabled=False)
            query, key, value = query.float(), key.float(), value.float()
        query = self._heads(layout.restore_padding(query))
        key, value = (self._heads(context_layout.restore_padding(states)) for states in (key, value))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        with no_autocast:
            output, weights = attention(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, is_causal=False
            )
        return self.o_proj(layout.drop_padding(output.flatten(2).to(dtype))), weights

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.config.num_attention_heads, self.head_dim)).transpose(1, 2)


class Nano4MMLP(nn.Module):
    """Feed-forward layer with GELU."""

    def __init__(self, config: Nano4MConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.up_proj(hidden_states)))


def layer_norm(config: Nano4MConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)


class Nano4MEncoderLayer(GradientCheckpointingLayer):
    """Visible tokens attend to visible tokens, whatever their modality."""

    def __init__(self, config: Nano4MConfig, layer_index: int):
        super().__init__()
        self.attention_norm = layer_norm(config)
        self.attention = Nano4MAttention(config, layer_index)
        self.mlp_norm = layer_norm(config)
        self.mlp = Nano4MMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: PackedMask | torch.Tensor | None,
        layout: SequenceLayout,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), attention_mask, layout, cache=cache)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class Nano4MDecoderLayer(GradientCheckpointingLayer):
    """Queries attend to the other queries of their modality, then to everything the encoder read."""

    def __init__(self, config: Nano4MConfig, layer_index: int):
        super().__init__()
        self.self_attention_norm = layer_norm(config)
        self.self_attention = Nano4MAttention(config, layer_index)
        self.cross_attention_norm = layer_norm(config)
        self.cross_attention = Nano4MAttention(config, layer_index)
        self.mlp_norm = layer_norm(config)
        self.mlp = Nano4MMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: PackedMask | torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: PackedMask | torch.Tensor | None,
        layout: SequenceLayout,
        encoder_layout: SequenceLayout,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        attended, _ = self.self_attention(self.self_attention_norm(hidden_states), attention_mask, layout)
        hidden_states = hidden_states + self.dropout(attended)
        attended, _ = self.cross_attention(
            self.cross_attention_norm(hidden_states),
            encoder_attention_mask,
            layout,
            context=encoder_hidden_states,
            context_layout=encoder_layout,
            cache=cache,
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
