"""Text tokenizer that is a trained network: a text of any length becomes a fixed number of discrete latents.

Transformer blocks over the subwords, a linear map from their places to those of the latents, a vector quantizer, and
the way back (the map between places is the token mixing of MLP-Mixer, Tolstikhin et al. 2021, arXiv:2105.01601). The
decoder gives all subwords at once. Latents have no end: a model that predicts them fills them in any order, as it
does those of an image. As in the other autoencoders here every block starts as the identity, so that training starts
from a linear path; with queries for latents and subwords in its place (TiTok, Yu et al. 2024, arXiv:2406.07550) the
network spends most of its training finding out which latent is to hold which word.

It is lossy: a text unlike those of the training may come back as another one. The empty text is one of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from ..autoencoder import QuantizedAutoencoder
from ..quantizer import VectorQuantizer
from .configuration_text_vq_tokenizer import TextVQTokenizerConfig
from .subwords import BOS_ID, EOS_ID, PAD_ID, SubwordModel, read_texts, train_subwords


@dataclass
class TextVQOutput(ModelOutput):
    """
    loss: scalar float32, the weighted sum of the parts below.
    losses: each part before weighting, scalars: `cross_entropy` (nats per subword) and `commitment`.
    metrics: `exact_match`, `(batch,)` float32: 1 where a text comes back without an error, else 0.
    reconstruction: `(batch, max_subwords)` int64, what the decoder makes of the quantized latents.
    token_ids: `(batch, num_latents)` int64.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    metrics: dict[str, torch.FloatTensor] | None = None
    reconstruction: torch.LongTensor | None = None
    token_ids: torch.LongTensor | None = None


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each normalised before and starting as the identity."""

    def __init__(self, config: TextVQTokenizerConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up_proj, self.down_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.out_proj.starts_at_zero = self.down_proj.starts_at_zero = True

    def forward(self, hidden_states: torch.Tensor, valid_mask: torch.BoolTensor | None) -> torch.Tensor:
        """`hidden_states` (batch, length, hidden_size); `valid_mask` (batch, length), True at what may be seen."""
        heads = self.qkv_proj(self.attention_norm(hidden_states)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mask = None if valid_mask is None else valid_mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        hidden_states = hidden_states + self.out_proj(attended)
        return hidden_states + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(hidden_states))))


class Resample(nn.Linear):
    """Maps a sequence to one of another length, channel by channel; starts as linear interpolation."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch, in_features, hidden_size)` to `(batch, out_features, hidden_size)`."""
        return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)


class TextVQTokenizer(SubwordModel, QuantizedAutoencoder, PreTrainedModel):
    """Turns strings into `num_latents` token ids. Made by `with_vocabulary` and training, or `from_pretrained`."""

    config: TextVQTokenizerConfig
    config_class = TextVQTokenizerConfig
    base_model_prefix = ""
    main_input_name = "subword_ids"

    def __init__(self, config: TextVQTokenizerConfig, tokenizer: PreTrainedTokenizerFast | None = None):
        super().__init__(config)
        width = config.hidden_size
        self.subword_embeddings = nn.Embedding(config.subword_vocab_size, width)
        places = config.max_subwords - 1  # the begin tells nothing
        self.encoder_positions, self.decoder_positions = nn.Embedding(places, width), nn.Embedding(places, width)
        self.encoder = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.decoder = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.to_latents, self.to_subwords = Resample(places, config.num_latents), Resample(config.num_latents, places)
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.quantizer = VectorQuantizer(
            width, config.codebook_size, config.code_dim, warmup_steps=config.quantizer_warmup_steps
        )
        self.head = nn.Linear(width, config.subword_vocab_size)
        self.fast_tokenizer = tokenizer
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, Resample):
            places = torch.eye(module.in_features)[None]
            weight = F.interpolate(places, size=module.out_features, mode="linear", align_corners=True)[0].t()
            init.copy_(module.weight, weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def with_vocabulary(cls, texts: Iterable[str], config: TextVQTokenizerConfig) -> "TextVQTokenizer":
        """A new network, to be trained, over the subwords of `texts`; empty texts are passed over.

        Raises:
            ValueError: if there is no text, or the vocabulary is too small for bytes and special tokens.
        """
        subwords = train_subwords(texts, config.algorithm, config.subword_vocab_size, config.lowercase)
        return cls(TextVQTokenizerConfig(**{**config.to_dict(), "subword_vocab_size": len(subwords)}), subwords)

    @can_return_tuple
    def forward(self, subword_ids: torch.LongTensor) -> TextVQOutput:
        """Reconstruct `subword_ids` `(batch, max_subwords)`, as `preprocess` makes them, and score the result.

        In training some are cut off first: see `cut_probability`.
        """
        if self.training:
            subword_ids = self._cut(subword_ids)
        quantized = self.quantizer(self._latents(subword_ids))
        logits = self._logits(quantized.quantized)
        cross_entropy = F.cross_entropy(
            logits.flatten(0, 1), subword_ids[:, 1:].flatten(), ignore_index=PAD_ID, reduction="sum"
        )
        losses = {
            "cross_entropy": cross_entropy / (subword_ids[:, 1:] != PAD_ID).sum(),
            "commitment": quantized.commitment_loss,
        }
        reconstruction = self._subwords(logits)
        return TextVQOutput(
            loss=losses["cross_entropy"] + self.config.commitment_weight * losses["commitment"],
            losses=losses,
            metrics={"exact_match": (reconstruction == subword_ids).all(-1).float()},
            reconstruction=reconstruction,
            token_ids=quantized.token_ids.flatten(1),
        )

    def encode(self, subword_ids: torch.LongTensor) -> torch.LongTensor:
        """Subword ids `(batch, max_subwords)` to ids `(batch, num_latents)`."""
        return self.quantizer(self._latents(subword_ids)).token_ids.flatten(1)

    def decode(self, token_ids: torch.LongTensor) -> torch.LongTensor:
        """Ids `(batch, num_latents)` to subword ids `(batch, max_subwords)`.

        Raises:
            ValueError: if the shape is wrong or an id is outside the vocabulary.
        """
        self.check_token_ids(token_ids)
        return self._subwords(self._logits(self.quantizer.lookup(token_ids.unsqueeze(-1))))

    def preprocess(self, media: list) -> torch.LongTensor:
        """Strings, or `Path`s of UTF-8 text files, to subword ids `(batch, max_subwords)`.

        They are begin, subwords, end and padding. Text beyond the budget is cut, the end stays.

        Raises:
            ValueError: if a file is no UTF-8 text.
        """
        return self.to_subword_ids(read_texts(media), self.config.max_subwords)

    def postprocess(self, subword_ids: torch.LongTensor) -> list[str]:
        """Subword ids to strings; what follows the first end is not read."""
        return self.to_texts(subword_ids)

    def _latents(self, subword_ids: torch.LongTensor) -> torch.Tensor:
        config = self.config
        if subword_ids.ndim != 2 or subword_ids.shape[1] != config.max_subwords:
            raise ValueError(
                f"TextVQTokenizer: subword_ids must have shape (batch, {config.max_subwords}), "
                f"got {tuple(subword_ids.shape)}"
            )
        subword_ids = subword_ids[:, 1:]
        valid_mask = subword_ids != PAD_ID
        hidden_states = self.subword_embeddings(subword_ids) + self.encoder_positions.weight
        for block in self.encoder:
            hidden_states = block(hidden_states, valid_mask)
        hidden_states = self.encoder_norm(hidden_states).masked_fill(~valid_mask.unsqueeze(-1), 0)
        return self.to_latents(hidden_states)

    def _logits(self, latents: torch.Tensor) -> torch.FloatTensor:
        """`(batch, max_subwords - 1, subword_vocab_size)` float32: of what follows the begin."""
        hidden_states = self.to_subwords(latents.to(self.dtype)) + self.decoder_positions.weight
        for block in self.decoder:
            hidden_states = block(hidden_states, None)
        logits = self.head(self.decoder_norm(hidden_states)).float()
        never = torch.tensor([PAD_ID, BOS_ID], device=logits.device)
        return logits.index_fill(-1, never, torch.finfo(logits.dtype).min)

    @staticmethod
    def _subwords(logits: torch.FloatTensor) -> torch.LongTensor:
        """The likeliest subwords up to the first end, put as `preprocess` puts a text."""
        token_ids = F.pad(logits.argmax(-1), (1, 0), value=BOS_ID)
        token_ids[:, -1] = EOS_ID
        ends = (token_ids == EOS_ID).long()
        return token_ids.masked_fill(ends.cumsum(-1) - ends > 0, PAD_ID)

    def _cut(self, subword_ids: torch.LongTensor) -> torch.LongTensor:
        """Some of the texts end at a place drawn evenly."""
        end = (subword_ids == EOS_ID).long().argmax(-1, keepdim=True)
        draws = torch.rand(2, *end.shape, device=end.device)
        end = torch.where(draws[0] < self.config.cut_probability, 1 + (draws[1] * end).long(), end)
        places = torch.arange(subword_ids.shape[1], device=end.device)
        return subword_ids.masked_fill(places == end, EOS_ID).masked_fill(places > end, PAD_ID)
