"""nano4M: a masked transformer over the discrete tokens of several modalities.

After 4M (Mizrahi et al. 2023, arXiv:2312.06647). An encoder reads the visible tokens of all modalities as one
sequence; a decoder is asked about positions ("image, frame 2, row 0, column 3") and answers each with a
distribution over that modality's vocabulary. Trained on random splits into visible and asked-for tokens, one
model covers every direction between the modalities.

Token sequences come flat and padded, with three numbers per token: its id, its modality and its position
within the modality. Nothing here knows pixels or waveforms.

Tokens may also have a step: an input token reads only inputs whose step is not later than its own. What is given has
step 0; tokens that are generated one after another have steps that rise. So what the encoder has once computed for a
token stays true when more tokens follow, and generation reads each token once, with cached keys and values, as
autoregressive models do, though in any order (compare XLNet, Yang et al. 2019, arXiv:1906.08237).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_nano4m import Nano4MConfig, is_whole
from .embeddings_nano4m import Nano4MEmbeddings, check_tokens
from .generation_nano4m import Nano4MGenerationMixin
from .layers_nano4m import (
    KeyValueCache,
    Nano4MAttention,
    Nano4MDecoderLayer,
    Nano4MEncoderLayer,
    SequenceLayout,
    as_multiplied,
    layer_norm,
    packed_mask,
    pair_mask,
)
from .linear_cross_entropy import linear_cross_entropy


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
        leaves each encoder layer. While training, what is between layers has no padding: `(1, real tokens, dim)`.
    attentions, cross_attentions: with `output_attentions=True` and eager attention, the weights of each decoder layer,
        `(batch, heads, num_targets, num_targets or 1 + num_inputs)`; encoder_attentions: with
        `output_encoder_attentions=True`, those of each encoder layer. While training on a CPU, of a batch that is
        padding for more than a quarter, a tuple of those of each sample without padding.
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


class Nano4MHead(nn.Linear):
    """Rows like those of the embeddings' table, so that the two can be tied; each modality uses its own.

    Losses are computed in here, for a sharded weight is whole only while the module it belongs to is called.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        rows: list[slice],
        target_ids: torch.LongTensor | None = None,
        modality_ids: torch.LongTensor | None = None,
        token_weights: torch.FloatTensor | None = None,
        table: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits over the rows, float32; with `target_ids`, what `linear_cross_entropy` returns for them.

        `table` is the weight as the embeddings it is tied to have handed it out.
        """
        if target_ids is None:
            return F.linear(hidden_states, self.weight[rows[0]]).float()
        return linear_cross_entropy(
            hidden_states,
            self.weight if table is None else table,
            target_ids,
            modality_ids,
            token_weights,
            [part.start for part in rows],
            [part.stop - part.start for part in rows],
        )


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
            init.copy_(module.token_offsets, module._token_offsets())
            init.copy_(module.position_offsets, module._position_offsets())
        elif isinstance(module, Nano4MModel):
            init.normal_(module.start_state, std=std)


class Nano4MModel(Nano4MGenerationMixin, Nano4MPreTrainedModel):
    """Encoder, decoder and one output head, a part of which belongs to each modality."""

    _tied_weights_keys = {"head.weight": "embeddings.tokens.weight"}

    def __init__(self, config: Nano4MConfig):
        super().__init__(config)
        self.generation_config = GenerationConfig(modality_defaults={})
        self.embeddings = Nano4MEmbeddings(config)
        # Always the first thing the encoder reads, so that "given nothing" is an input like any other.
        self.start_state = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.encoder_layers = nn.ModuleList(Nano4MEncoderLayer(config, i) for i in range(config.num_encoder_layers))
        self.encoder_norm = layer_norm(config)
        self.decoder_layers = nn.ModuleList(Nano4MDecoderLayer(config, i) for i in range(config.num_decoder_layers))
        self.decoder_norm = layer_norm(config)
        self.head = Nano4MHead(config.hidden_size, config.num_vocabulary_rows, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of all vocabularies, one after the other in the order of `config.modality_names`."""
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.head = value

    def logits_of(self, modality: str, hidden_states: torch.Tensor) -> torch.FloatTensor:
        """Decoder states `(..., hidden_size)` to logits over a modality's own ids, `(..., vocab_size)` float32."""
        return self.head(hidden_states, [self.config.vocabulary_rows(modality)])

    def resize_token_embeddings(self, *args, **kwargs):
        """Raises a ValueError: there are as many vocabularies as modalities."""
        raise ValueError("nano4M has a vocabulary per modality; call resize_vocabulary(modality, vocab_size) instead")

    @torch.no_grad()
    def resize_vocabulary(self, modality: str, vocab_size: int) -> None:
        """Give a modality more or fewer ids; those that stay keep their embeddings and their rows of the head.

        Args:
            modality: its name.
            vocab_size: new number of ids, at least 1. New ids start from fresh random weights; where modalities share
                their vocabularies, only those beyond the longest do, and the others have the rows they share.

        Raises:
            ValueError: the model does not know the modality, or `vocab_size` is no whole number or leaves no room for
                its special ids.
        """
        self.config.modality_id(modality)
        special = [value for key, value in self.config.modalities[modality].items() if key.endswith("_token_id")]
        least = 1 + max((value for value in special if value is not None), default=0)
        if not is_whole(vocab_size, least):
            raise ValueError(f"vocab_size of {modality!r} must be at least {least}, not {vocab_size!r}")
        vocab_size = int(vocab_size)
        before = self.config.vocabulary_rows(modality)
        num_before = self.config.num_vocabulary_rows
        self.config.modalities[modality]["vocab_size"] = vocab_size
        if self.config.share_vocabularies:  # one table for all, as long as the longest of them
            before, vocab_size = slice(0, num_before), self.config.num_vocabulary_rows

        def resized(weight: torch.Tensor) -> torch.Tensor:
            mine = weight[before][:vocab_size]
            fresh = weight.new_empty(vocab_size - len(mine), weight.shape[1])
            fresh.normal_(std=self.config.initializer_range)
            return torch.cat([weight[: before.start], mine, fresh, weight[before.stop :]])

        for module in (self.embeddings.tokens, self.head):
            module.weight = nn.Parameter(resized(module.weight), module.weight.requires_grad)
        self.embeddings.tokens.num_embeddings = len(self.embeddings.tokens.weight)
        self.head.out_features = len(self.head.weight)
        self.embeddings.token_offsets.copy_(self.embeddings._token_offsets())
        self.tie_weights()

    @torch.no_grad()
    def start_from_token_vectors(self, modality: str, vectors: torch.FloatTensor) -> None:
        """Before training, make tokens with like vectors alike, in the embeddings and in the head of a modality.

        Codes of a vector-quantizer are many and many of them nearly the same; a model that starts from random
        embeddings has to find that out one by one.

        Args:
            modality: its name.
            vectors: `(vocab_size, dim)`, such as a tokenizer's `token_vectors()`; projected at random to the width
                and scale of the model's own initial weights.

        Raises:
            ValueError: the model does not know the modality, or the vectors have another shape, are not finite or are
                all the same.
        """
        self.config.modality_id(modality)
        rows = self.config.vocabulary_rows(modality)
        if vectors.ndim != 2 or len(vectors) != self.config.vocab_size_of(modality):
            raise ValueError(
                f"vectors of {modality!r} must have shape ({self.config.vocab_size_of(modality)}, dim), got "
                f"{tuple(vectors.shape)}"
            )
        vectors = vectors.float() - vectors.float().mean(0)
        if not 0 < vectors.std() < torch.inf:
            raise ValueError(f"vectors of {modality!r} are not finite, or all the same: they tell no tokens apart")
        vectors = (vectors / vectors.std()).to(self.device)
        tables = [self.embeddings.tokens.weight]
        if not self.config.tie_word_embeddings:
            tables.append(self.head.weight)
        for table in tables:
            weight = table[rows]
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
        input_steps: torch.LongTensor | None = None,
        target_steps: torch.LongTensor | None = None,
        target_ids: torch.LongTensor | None = None,
        num_items_in_batch: torch.LongTensor | None = None,
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
            input_steps: an input token reads the inputs whose step is not later than its own, `(batch, num_inputs)`
                int64, at least 0; all read all if None.
            target_steps: a target is predicted from the inputs whose step is earlier, `(batch, num_targets)` int64, at
                least 1; from all if None. Only together with `input_steps`.
            target_ids: the true ids at the target positions; with them the loss is computed.
            num_items_in_batch: how many targets each modality has in the whole of which this batch is a part,
                `(modalities,)` int64: the losses of the parts then add up to that of the whole. Only those of this
                batch if None.
            return_logits: whether to return logits; by default only when no `target_ids` are given.

        Returns:
            Nano4MOutput. Padding influences neither the outputs at real positions nor the loss.

        Raises:
            ValueError: on the CPU, for a modality, position or id that the model does not have.
        """
        for name in kwargs:
            if not name.startswith("output_"):
                raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
        on_cpu = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu:  # elsewhere it would have to wait
            inputs = input_modality_ids, input_position_ids, input_ids, input_valid_mask
            targets = target_modality_ids, target_position_ids, target_ids, target_valid_mask
            check_tokens(self.config, "input", *inputs)
            check_tokens(self.config, "target", *targets)
        token_embeddings = table = None
        weight = self.head.weight
        is_tied = weight is self.embeddings.tokens.weight and weight.requires_grad
        # Processes may share a weight out, which is then whole only while the module it belongs to is called.
        if on_cpu and target_ids is not None and is_tied and not torch.distributed.is_initialized():
            token_embeddings, table = self.embeddings.read_tied(input_ids, input_modality_ids)
        encoder_hidden_states, encoder_valid_mask = self.encode(
            input_ids,
            input_modality_ids,
            input_position_ids,
            input_valid_mask,
            input_steps,
            token_embeddings=token_embeddings,
        )
        hidden_states = self.decode(
            target_modality_ids,
            target_position_ids,
            encoder_hidden_states,
            encoder_valid_mask,
            target_valid_mask,
            input_steps,
            target_steps,
        )
        output = Nano4MOutput(last_hidden_state=hidden_states, encoder_last_hidden_state=encoder_hidden_states)
        if target_valid_mask is not None:
            target_modality_ids = target_modality_ids.masked_fill(~target_valid_mask.bool(), -1)
        if return_logits if return_logits is not None else target_ids is None:
            output.logits = {
                name: self.logits_of(name, hidden_states[target_modality_ids == index])
                for index, name in enumerate(self.config.modalities)
            }
        if target_ids is not None:
            output.loss, output.losses, output.num_targets = self._loss(
                hidden_states, target_ids, target_modality_ids, num_items_in_batch, table
            )
        return output

    def encode(
        self,
        input_ids: torch.LongTensor,
        input_modality_ids: torch.LongTensor,
        input_position_ids: torch.LongTensor,
        input_valid_mask: torch.BoolTensor | None = None,
        input_steps: torch.LongTensor | None = None,
        cache: KeyValueCache | None = None,
        token_embeddings: torch.FloatTensor | None = None,
    ) -> tuple[torch.FloatTensor, torch.BoolTensor]:
        """Read visible tokens; see `forward`. Returns states `(batch, 1 + num_inputs, hidden_size)` and their mask.

        An empty `cache` is filled, so that `encode_more` can go on from here. `token_embeddings` are those of the
        `input_ids` alone, where they were read before.
        """
        if input_valid_mask is None:
            input_valid_mask = torch.ones_like(input_ids, dtype=torch.bool)
        valid_mask = F.pad(input_valid_mask.bool(), (1, 0), value=True)
        embeddings = self.embeddings(input_modality_ids, input_position_ids, input_ids, token_embeddings)
        hidden_states = torch.cat([self.start_state.expand(len(input_ids), -1, -1), embeddings], dim=1)
        if input_steps is None:
            attention_mask = create_bidirectional_mask(self.config, hidden_states, valid_mask)
        else:
            steps = F.pad(input_steps, (1, 0))
            visible = valid_mask[:, None, :] & (steps[:, None, :] <= steps[:, :, None])
            attention_mask = pair_mask(self.config, visible, hidden_states.dtype)
        return self._encoder(hidden_states, attention_mask, valid_mask, cache), valid_mask

    def encode_more(
        self,
        input_ids: torch.LongTensor,
        input_modality_ids: torch.LongTensor,
        input_position_ids: torch.LongTensor,
        valid_mask: torch.BoolTensor,
        cache: KeyValueCache,
    ) -> torch.FloatTensor:
        """Read more tokens, each a step later than the one before, as if `encode` had read all at once.

        Args:
            input_ids, input_modality_ids, input_position_ids: as in `forward`, `(batch, num_new)` int64.
            valid_mask: of everything read, start state, earlier tokens and these, `(batch, length)` bool.
            cache: keys and values of what was read before; these tokens' are added.

        Returns:
            The states of the new tokens, `(batch, num_new, hidden_size)`.
        """
        hidden_states = self.embeddings(input_modality_ids, input_position_ids, input_ids)
        num_new, length = input_ids.shape[1], valid_mask.shape[1]
        earlier = torch.ones(num_new, length, dtype=torch.bool, device=valid_mask.device).tril(length - num_new)
        attention_mask = pair_mask(self.config, valid_mask[:, None, :] & earlier, hidden_states.dtype)
        return self._encoder(hidden_states, attention_mask, valid_mask[:, length - num_new :], cache)

    def _encoder(
        self, hidden_states: torch.Tensor, attention_mask, valid_mask: torch.BoolTensor, cache: KeyValueCache | None
    ) -> torch.FloatTensor:
        if not len(hidden_states):  # attention kernels cannot have nothing
            return hidden_states
        layout = SequenceLayout(valid_mask, drop_padding=self.training)
        if cache is None:
            attention_mask = packed_mask(self.config, attention_mask, layout, layout)
        hidden_states = layout.drop_padding(hidden_states)
        for layer in self.encoder_layers:
            hidden_states = layer(hidden_states, attention_mask, layout, cache=cache)
        return layout.restore_padding(self.encoder_norm(hidden_states))

    def decode(
        self,
        target_modality_ids: torch.LongTensor,
        target_position_ids: torch.LongTensor,
        encoder_hidden_states: torch.FloatTensor,
        encoder_valid_mask: torch.BoolTensor,
        target_valid_mask: torch.BoolTensor | None = None,
        input_steps: torch.LongTensor | None = None,
        target_steps: torch.LongTensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.FloatTensor:
        """States `(batch, num_targets, hidden_size)` from which a modality's head predicts the queried tokens.

        With a `cache` of keys and values of encoder states, `encoder_hidden_states` are only those not in it yet,
        which are added; `encoder_valid_mask` is that of all.
        """
        if target_steps is not None and input_steps is None:
            raise ValueError("target_steps say which input_steps a target is predicted from: give both")
        if target_valid_mask is None:
            target_valid_mask = torch.ones_like(target_modality_ids, dtype=torch.bool)
        target_valid_mask = target_valid_mask.bool()
        hidden_states = self.embeddings(target_modality_ids, target_position_ids)
        if not hidden_states.numel():
            return hidden_states
        attention_mask = self._query_mask(
            hidden_states, target_modality_ids, target_position_ids, target_valid_mask, target_steps
        )
        encoder_attention_mask = None
        if target_steps is None and cache is None:
            encoder_attention_mask = create_bidirectional_mask(
                self.config, hidden_states, encoder_valid_mask, encoder_hidden_states=encoder_hidden_states
            )
        if target_steps is not None or cache is not None or getattr(encoder_attention_mask, "ndim", 0) == 2:
            # Two dimensions are what flash kernels are given, which take them for a mask of the queries, too.
            visible = encoder_valid_mask[:, None, :].expand(-1, hidden_states.shape[1], -1)
            if target_steps is not None:
                visible = visible & (F.pad(input_steps, (1, 0))[:, None, :] < target_steps[:, :, None])
            encoder_attention_mask = pair_mask(self.config, visible, hidden_states.dtype)
        layout = SequenceLayout(target_valid_mask, drop_padding=self.training)
        encoder_layout = SequenceLayout(
            encoder_valid_mask[:, encoder_valid_mask.shape[1] - encoder_hidden_states.shape[1] :],
            drop_padding=self.training,
        )
        if cache is None:
            attention_mask = packed_mask(self.config, attention_mask, layout, layout)
            encoder_attention_mask = packed_mask(self.config, encoder_attention_mask, layout, encoder_layout)
        hidden_states = layout.drop_padding(hidden_states)
        encoder_hidden_states = as_multiplied(encoder_layout.drop_padding(encoder_hidden_states))
        for layer in self.decoder_layers:
            hidden_states = layer(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                layout,
                encoder_layout,
                cache=cache,
            )
        return layout.restore_padding(self.decoder_norm(hidden_states))

    def _query_mask(
        self,
        hidden_states: torch.Tensor,
        modality_ids: torch.Tensor,
        position_ids: torch.Tensor,
        valid_mask: torch.Tensor,
        steps: torch.Tensor | None,
    ):
        """Which queries see each other: those of one modality, and in a left-to-right one only earlier ones.

        Other targets must not change an answer, and a query about word 3 must not learn from a query about word 9
        that the text is at least 9 words long. Queries of different steps do not see each other, for a later one may
        know the answer to an earlier one.
        """
        left_to_right = [self.config.is_left_to_right(name) for name in self.config.modalities]
        left_to_right = torch.tensor(left_to_right, device=modality_ids.device)
        # Shared by all queries of a grid, growing along a sequence: a query sees whatever is not later than it.
        time = position_ids * left_to_right[modality_ids]
        same = modality_ids[:, :, None] == modality_ids[:, None, :]
        visible = same & (time[:, None, :] <= time[:, :, None]) & valid_mask[:, None, :]
        if steps is not None:
            visible = visible & (steps[:, :, None] == steps[:, None, :])
        # Padding sees itself, for a row of attention without any key has no result.
        itself = torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
        return pair_mask(self.config, visible | itself, hidden_states.dtype)

    def _loss(
        self,
        hidden_states: torch.Tensor,
        target_ids: torch.Tensor,
        target_modality_ids: torch.Tensor,
        num_items_in_batch: torch.Tensor | None,
        table: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Loss, losses and numbers of targets; a modality id of -1 marks padding, `table` is for the head."""
        names = self.config.modality_names
        modality_ids = target_modality_ids.flatten()
        membership = modality_ids == torch.arange(len(names), device=modality_ids.device)[:, None]
        num_targets = membership.sum(1)
        num_items = num_targets if num_items_in_batch is None else num_items_in_batch
        # The loss is the mean over modalities that have targets of their mean over targets.
        weights = 1 / (num_items.clamp_min(1) * num_items.gt(0).sum().clamp_min(1))
        loss, token_losses = self.head(
            hidden_states.flatten(0, 1),
            [self.config.vocabulary_rows(name) for name in names],
            target_ids.flatten(),
            modality_ids,
            (membership * weights[:, None]).sum(0),
            table,
        )
        losses = (membership * token_losses).sum(1) / num_targets.clamp_min(1)
        return loss, dict(zip(names, losses, strict=True)), dict(zip(names, num_targets, strict=True))
