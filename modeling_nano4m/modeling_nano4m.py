"""nano4M: a masked transformer over the discrete tokens of several modalities.

After 4M (Mizrahi et al. 2023, arXiv:2312.06647). An encoder reads the visible tokens of all modalities as one
sequence; a decoder is asked about positions ("image, frame 2, row 0, column 3") and answers each with a
distribution over that modality's vocabulary. Trained on random splits into visible and asked-for tokens, one
model covers every direction between the modalities.

Token sequences come flat and padded, with three numbers per token: its id, its modality and its position
within the modality. Nothing here knows pixels or waveforms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_nano4m import Nano4MConfig
from .generation_nano4m import Nano4MGenerationMixin


@dataclass
class Nano4MOutput(ModelOutput):
    """
    loss: scalar float32: the mean over modalities that have targets of their mean cross-entropy, nats per token.
    losses: that cross-entropy for each modality; 0 where a modality has no target.
    num_targets: how many targets each modality has, int64 scalars.
    logits: for each modality, `(its number of targets, vocab_size)` float32, in the order of the flattened batch.
    last_hidden_state: decoder output at the queried positions, `(batch, num_targets, hidden_size)`.
    encoder_last_hidden_state: `(batch, 1 + num_inputs, hidden_size)`; the first is the learned start state.
    hidden_states: with `output_hidden_states=True`, what enters the first decoder layer, what leaves each layer but
        the last, and `last_hidden_state`; encoder_hidden_states: with `output_encoder_hidden_states=True`, what
        leaves each encoder layer.
    attentions, cross_attentions: with `output_attentions=True` and eager attention, the weights of each decoder layer,
        `(batch, heads, num_targets, num_targets or 1 + num_inputs)`; encoder_attentions: with
        `output_encoder_attentions=True`, those of each encoder layer.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    num_targets: dict[str, torch.LongTensor] | None = None
    logits: dict[str, torch.FloatTensor] | None = None
    last_hidden_state: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None


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


class Nano4MAttention(nn.Module):
    """Multi-head attention of `hidden_states` to themselves, or to `context`."""

    def __init__(self, config: Nano4MConfig, masks_pairs: bool = False):
        super().__init__()
        self.config = config
        self.masks_pairs = masks_pairs
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
        attention_mask: torch.Tensor | None,
        context: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context = hidden_states if context is None else context
        query, key, value = (
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in ((self.q_proj, hidden_states), (self.k_proj, context), (self.v_proj, context))
        )
        implementation = self.config._attn_implementation
        if self.masks_pairs and "flash" in implementation:
            implementation = "sdpa"
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, is_causal=False
        )
        return self.o_proj(output.flatten(2)), weights


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

    def __init__(self, config: Nano4MConfig):
        super().__init__()
        self.attention_norm = layer_norm(config)
        self.attention = Nano4MAttention(config)
        self.mlp_norm = layer_norm(config)
        self.mlp = Nano4MMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), attention_mask)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class Nano4MDecoderLayer(GradientCheckpointingLayer):
    """Queries attend to the other queries of their modality, then to everything the encoder read."""

    def __init__(self, config: Nano4MConfig):
        super().__init__()
        self.self_attention_norm = layer_norm(config)
        self.self_attention = Nano4MAttention(config, masks_pairs=True)
        self.cross_attention_norm = layer_norm(config)
        self.cross_attention = Nano4MAttention(config)
        self.mlp_norm = layer_norm(config)
        self.mlp = Nano4MMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        attended, _ = self.self_attention(self.self_attention_norm(hidden_states), attention_mask)
        hidden_states = hidden_states + self.dropout(attended)
        attended, _ = self.cross_attention(
            self.cross_attention_norm(hidden_states), encoder_attention_mask, context=encoder_hidden_states
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class Nano4MEmbeddings(nn.Module):
    """Embeds tokens (id, modality, position) and queries (modality, position).

    All vocabularies share one table, and so do all positions: the id of a modality is shifted by the sizes of
    the modalities before it, and a whole mixed batch is one lookup.
    """

    def __init__(self, config: Nano4MConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(sum(map(config.vocab_size_of, config.modalities)), config.hidden_size)
        self.modalities = nn.Embedding(len(config.modalities), config.hidden_size)
        self.positions = nn.ModuleDict(
            {
                name: nn.ModuleDict({axis: nn.Embedding(n, config.hidden_size) for axis, n in modality["token_axes"]})
                for name, modality in config.modalities.items()
            }
        )
        self.register_buffer("token_offsets", self._offsets(config.vocab_size_of), persistent=False)
        self.register_buffer("position_offsets", self._offsets(config.num_tokens_of), persistent=False)

    def forward(
        self, modality_ids: torch.Tensor, position_ids: torch.Tensor, token_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Ids of shape `(batch, length)` to `(batch, length, hidden_size)`; queries have no `token_ids`."""
        embeddings = F.embedding(position_ids + self.position_offsets[modality_ids], self._position_table())
        embeddings = embeddings + self.modalities(modality_ids)
        if token_ids is not None:
            embeddings = embeddings + self.tokens(token_ids + self.token_offsets[modality_ids])
        return embeddings

    def _position_table(self) -> torch.Tensor:
        """Embeddings of every position of every modality, each the sum over its axes."""
        tables = []
        for axes in self.positions.values():
            table = 0
            for axis in axes.values():
                # The grid grows by one axis: (positions so far, 1, dim) + (1, axis, dim).
                table = axis.weight if isinstance(table, int) else (table[:, None] + axis.weight).flatten(0, 1)
            tables.append(table)
        return torch.cat(tables)

    def _offsets(self, size_of: Callable[[str], int]) -> torch.LongTensor:
        sizes = torch.tensor([size_of(name) for name in self.config.modalities])
        return sizes.cumsum(0) - sizes


class Nano4MPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving."""

    config: Nano4MConfig
    config_class = Nano4MConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Nano4MEncoderLayer", "Nano4MDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": Nano4MDecoderLayer,
        "attentions": OutputRecorder(Nano4MAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(Nano4MAttention, index=1, layer_name="cross_attention"),
        "encoder_hidden_states": Nano4MEncoderLayer,
        "encoder_attentions": OutputRecorder(Nano4MAttention, index=1, layer_name="attention"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, Nano4MEmbeddings):
            init.copy_(module.token_offsets, module._offsets(self.config.vocab_size_of))
            init.copy_(module.position_offsets, module._offsets(self.config.num_tokens_of))
        elif isinstance(module, Nano4MModel):
            init.normal_(module.start_state, std=std)


class Nano4MModel(Nano4MGenerationMixin, Nano4MPreTrainedModel):
    """Encoder, decoder and one output head per modality."""

    def __init__(self, config: Nano4MConfig):
        super().__init__(config)
        self.embeddings = Nano4MEmbeddings(config)
        # Always the first thing the encoder reads, so that "given nothing" is an input like any other.
        self.start_state = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.encoder_layers = nn.ModuleList(Nano4MEncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.encoder_norm = layer_norm(config)
        self.decoder_layers = nn.ModuleList(Nano4MDecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.decoder_norm = layer_norm(config)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.hidden_size, config.vocab_size_of(name), bias=False) for name in config.modalities}
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of all vocabularies, one after the other in the order of `config.modality_names`."""
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.tokens = value

    def resize_token_embeddings(self, *args, **kwargs):
        """Raises a ValueError: there are as many vocabularies as modalities."""
        raise ValueError("nano4M has a vocabulary per modality; call resize_vocabulary(modality, vocab_size) instead")

    @torch.no_grad()
    def resize_vocabulary(self, modality: str, vocab_size: int) -> None:
        """Give a modality more or fewer ids; those that stay keep their embeddings and their rows of the head.

        Args:
            modality: its name.
            vocab_size: new number of ids, at least 1. New ids start from fresh random weights.

        Raises:
            ValueError: the model does not know the modality, or `vocab_size` is less than 1.
        """
        rows = self._vocabulary_rows(modality)
        if vocab_size < 1:
            raise ValueError(f"vocab_size of {modality!r} must be at least 1, not {vocab_size}")
        table, head = self.embeddings.tokens.weight, self.heads[modality]
        table = torch.cat([table[: rows.start], self._resized(table[rows], vocab_size), table[rows.stop :]])
        self.embeddings.tokens = nn.Embedding.from_pretrained(table, freeze=False)
        head.weight = nn.Parameter(self._resized(head.weight, vocab_size))
        head.out_features = vocab_size
        self.config.modalities[modality]["vocab_size"] = vocab_size
        self.embeddings.token_offsets.copy_(self.embeddings._offsets(self.config.vocab_size_of))

    def _vocabulary_rows(self, modality: str) -> slice:
        """Where the ids of a modality stand in the table of all vocabularies."""
        start = int(self.embeddings.token_offsets[self.config.modality_id(modality)])
        return slice(start, start + self.config.vocab_size_of(modality))

    def _resized(self, weight: torch.Tensor, length: int) -> torch.Tensor:
        fresh = weight.new_empty(max(0, length - len(weight)), weight.shape[1])
        return torch.cat([weight[:length], fresh.normal_(std=self.config.initializer_range)])

    @torch.no_grad()
    def start_from_token_vectors(self, modality: str, vectors: torch.FloatTensor) -> None:
        """Before training, make tokens with like vectors alike, in the embeddings and in the head of a modality.

        Codes of a vector-quantizer are many and many of them nearly the same; a model that starts from random
        embeddings has to find that out one by one.

        Args:
            modality: its name.
            vectors: `(vocab_size, dim)`, such as a tokenizer's `token_vectors()`; projected at random to the width
                and scale of the model's own initial weights.
        """
        rows = self._vocabulary_rows(modality)
        vectors = ((vectors - vectors.mean(0)) / vectors.std()).to(self.device)
        for weight in (self.embeddings.tokens.weight[rows], self.heads[modality].weight):
            projection = torch.randn(vectors.shape[1], weight.shape[1], device=self.device) / vectors.shape[1] ** 0.5
            weight.mul_(0.3).add_(self.config.initializer_range * (vectors @ projection))

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor,
        input_modality_ids: torch.LongTensor,
        input_position_ids: torch.LongTensor,
        target_modality_ids: torch.LongTensor,
        target_position_ids: torch.LongTensor,
        input_valid_mask: torch.BoolTensor | None = None,
        target_valid_mask: torch.BoolTensor | None = None,
        target_ids: torch.LongTensor | None = None,
        return_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Nano4MOutput:
        """Predict the tokens at the target positions from the input tokens.

        Args:
            input_ids: visible token ids, each within its modality's vocabulary, `(batch, num_inputs)` int64.
                `num_inputs` may be 0.
            input_modality_ids: index of each token's modality in `config.modality_names`, same shape.
            input_position_ids: position of each token within its modality, same shape.
            target_modality_ids, target_position_ids: what to predict, `(batch, num_targets)` int64.
            input_valid_mask, target_valid_mask: True for real tokens, False for padding; bool; all real if None.
            target_ids: the true ids at the target positions; with them the loss is computed.
            return_logits: whether to return logits; by default only when no `target_ids` are given.

        Returns:
            Nano4MOutput. Padding influences neither the outputs at real positions nor the loss.
        """
        encoder_hidden_states, encoder_valid_mask = self.encode(
            input_ids, input_modality_ids, input_position_ids, input_valid_mask
        )
        hidden_states = self.decode(
            target_modality_ids, target_position_ids, encoder_hidden_states, encoder_valid_mask, target_valid_mask
        )
        output = Nano4MOutput(last_hidden_state=hidden_states, encoder_last_hidden_state=encoder_hidden_states)
        if target_valid_mask is None:
            target_valid_mask = torch.ones_like(target_modality_ids, dtype=torch.bool)
        if return_logits if return_logits is not None else target_ids is None:
            output.logits = {
                name: self.heads[name](hidden_states[(target_modality_ids == index) & target_valid_mask]).float()
                for index, name in enumerate(self.config.modalities)
            }
        if target_ids is not None:
            output.loss, output.losses, output.num_targets = self._loss(
                hidden_states, target_ids, target_modality_ids, target_valid_mask
            )
        return output

    def encode(
        self,
        input_ids: torch.LongTensor,
        input_modality_ids: torch.LongTensor,
        input_position_ids: torch.LongTensor,
        input_valid_mask: torch.BoolTensor | None = None,
    ) -> tuple[torch.FloatTensor, torch.BoolTensor]:
        """Read visible tokens; see `forward`. Returns states `(batch, 1 + num_inputs, hidden_size)` and their mask."""
        if input_valid_mask is None:
            input_valid_mask = torch.ones_like(input_ids, dtype=torch.bool)
        valid_mask = F.pad(input_valid_mask, (1, 0), value=True)
        embeddings = self.embeddings(input_modality_ids, input_position_ids, input_ids)
        hidden_states = torch.cat([self.start_state.expand(len(input_ids), -1, -1), embeddings], dim=1)
        attention_mask = create_bidirectional_mask(self.config, hidden_states, valid_mask)
        for layer in self.encoder_layers:
            hidden_states = layer(hidden_states, attention_mask)
        return self.encoder_norm(hidden_states), valid_mask

    def decode(
        self,
        target_modality_ids: torch.LongTensor,
        target_position_ids: torch.LongTensor,
        encoder_hidden_states: torch.FloatTensor,
        encoder_valid_mask: torch.BoolTensor,
        target_valid_mask: torch.BoolTensor | None = None,
    ) -> torch.FloatTensor:
        """States `(batch, num_targets, hidden_size)` from which a modality's head predicts the queried tokens."""
        if target_valid_mask is None:
            target_valid_mask = torch.ones_like(target_modality_ids, dtype=torch.bool)
        hidden_states = self.embeddings(target_modality_ids, target_position_ids)
        attention_mask = self._query_mask(hidden_states, target_modality_ids, target_position_ids, target_valid_mask)
        encoder_attention_mask = create_bidirectional_mask(
            self.config, hidden_states, encoder_valid_mask, encoder_hidden_states=encoder_hidden_states
        )
        for layer in self.decoder_layers:
            hidden_states = layer(hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask)
        return self.decoder_norm(hidden_states)

    def _query_mask(
        self,
        hidden_states: torch.Tensor,
        modality_ids: torch.Tensor,
        position_ids: torch.Tensor,
        valid_mask: torch.Tensor,
    ) -> torch.Tensor | None:
        """Which queries see each other: those of one modality, and in a left-to-right one only earlier ones.

        Other targets must not change an answer, and a query about word 3 must not learn from a query about word 9
        that the text is at least 9 words long.
        """
        orders = [modality.get("order", "any") for modality in self.config.modalities.values()]
        left_to_right = torch.tensor([order == "left_to_right" for order in orders], device=modality_ids.device)
        # Shared by all queries of a grid, growing along a sequence: a query sees whatever is not later than it.
        time = position_ids * left_to_right[modality_ids]

        if "flash" in self.config._attn_implementation:
            # Flash kernels know padding only; this one attention runs on sdpa, which takes a boolean mask.
            same = modality_ids[:, None, :, None] == modality_ids[:, None, None, :]
            earlier = time[:, None, :, None] >= time[:, None, None, :]
            return same & earlier & valid_mask[:, None, None, :]

        def visible(batch, head, query, key):
            same = modality_ids[batch, query] == modality_ids[batch, key]
            return same & (time[batch, query] >= time[batch, key])

        return create_bidirectional_mask(self.config, hidden_states, valid_mask, and_mask_function=visible)

    def _loss(
        self,
        hidden_states: torch.Tensor,
        target_ids: torch.Tensor,
        target_modality_ids: torch.Tensor,
        target_valid_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        losses, num_targets = {}, {}
        for index, name in enumerate(self.config.modalities):
            mine = (target_modality_ids == index) & target_valid_mask
            # A head without targets still takes part, with zero gradient: distributed training expects it to.
            # Float32 from the logits on, for bfloat16 loses the difference between likely and certain.
            logits = self.heads[name](hidden_states[mine]).float()
            total = F.cross_entropy(logits, target_ids[mine], reduction="sum")
            num_targets[name] = mine.sum()
            losses[name] = total / num_targets[name].clamp_min(1)
        present = torch.stack(list(num_targets.values())).gt(0).sum()
        return sum(losses.values()) / present.clamp_min(1), losses, num_targets
