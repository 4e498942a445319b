"""Configuration of nano4M: the modalities it knows, and the size of the transformer."""

import math
from numbers import Integral

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig


@strict
class Nano4MConfig(PreTrainedConfig):
    """Everything needed to build a `Nano4MModel`.

    Args:
        modalities: one entry per modality, `name -> fields`. Another modality is added here and nowhere else:

            - `vocab_size` (int): token ids lie in `[0, vocab_size)`;
            - `token_axes` (list of pairs, or a dict): axes of the token grid, slowest first, e.g.
              `[["frame", 8], ["row", 4], ["column", 4]]`; their product is the number of tokens a clip has. Each
              axis has position embeddings of its own, summed;
            - `order` (str): `"any"` if tokens may be predicted in any order (the default), `"left_to_right"` for
              sequences that grow from the front, like text;
            - `bos_token_id`, `eos_token_id`, `pad_token_id` (int, optional): begin, end and fill of a sequence; only
              one that goes from left to right has a begin.
        hidden_size, intermediate_size: width of the transformer and of its feed-forward layers.
        num_encoder_layers, num_decoder_layers, num_attention_heads: its depth and heads.
        dropout: after attention and after the feed-forward layers; in [0, 1).
        attention_dropout: on attention weights; in [0, 1). Costs a quarter of a training step on CPUs.
        share_vocabularies: let all modalities use the same rows of the embeddings and of the head, as many as the
            largest vocabulary has. Saves memory where vocabularies are large; like ids of different modalities start
            out related.
        tie_word_embeddings: let the head use the weights of the embeddings, which are then learned sooner.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: of the layer normalisations.
    """

    model_type = "nano4m"

    modalities: dict[str, dict] | None = None
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_attention_heads: int = 8
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    share_vocabularies: bool = False
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs):
        if self.modalities is None:
            self.modalities = {"text": {"vocab_size": 512, "token_axes": {"index": 32}}}
        # JSON files sort the keys of a dictionary, so nothing may hang on their order: modalities are numbered
        # by name, and axes, whose order matters, are kept as a list.
        self.modalities = {
            name: {**modality, "token_axes": _pairs(name, modality["token_axes"])}
            if "token_axes" in modality
            else modality
            for name, modality in sorted(self.modalities.items())
        }
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_encoder_layers", "num_decoder_layers")
        for field in sizes:
            if not is_whole(getattr(self, field), 1):
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        for field in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must lie in [0, 1)")
        for field in ("initializer_range", "layer_norm_eps"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field}={getattr(self, field)} must be above 0")
        if not self.modalities:
            raise ValueError("modalities is empty: name at least one")
        for name, modality in self.modalities.items():
            _check_modality(name, modality)

    @property
    def modality_names(self) -> list[str]:
        """Names in the order of their modality ids."""
        return list(self.modalities)

    def modality_id(self, name: str) -> int:
        """Index of a modality; ValueError for a name the model does not know."""
        if name not in self.modalities:
            raise ValueError(f"unknown modality {name!r}: this model knows {', '.join(self.modalities)}")
        return self.modality_names.index(name)

    def vocab_size_of(self, name: str) -> int:
        return self.modalities[name]["vocab_size"]

    def vocabulary_rows(self, name: str) -> slice:
        """Where the ids of a modality stand in the embeddings' table, and in the head."""
        before = (
            0
            if self.share_vocabularies
            else sum(map(self.vocab_size_of, self.modality_names[: self.modality_id(name)]))
        )
        return slice(before, before + self.vocab_size_of(name))

    @property
    def num_vocabulary_rows(self) -> int:
        return max(self.vocabulary_rows(name).stop for name in self.modalities)

    def num_tokens_of(self, name: str) -> int:
        """Length of a modality: the product of its axes."""
        return math.prod(length for _, length in self.modalities[name]["token_axes"])

    def is_left_to_right(self, name: str) -> bool:
        """Whether a modality grows from the front, like text."""
        return self.modalities[name].get("order", "any") == "left_to_right"


def is_whole(value, least: int) -> bool:
    """Whether `value` is a whole number, of any type but bool, and at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _check_modality(name: str, modality: dict) -> None:
    for field in ("vocab_size", "token_axes"):
        if field not in modality:
            raise ValueError(f"modalities[{name!r}] lacks the field {field!r}")
    axes = dict(modality["token_axes"])
    for word in (name, *axes):  # each is the name of a module
        if not isinstance(word, str) or not word or "." in word or hasattr(nn.ModuleDict(), word):
            raise ValueError(f"modalities[{name!r}]: torch cannot have {word!r} for a name; choose another")
    if not axes or not all(is_whole(number, 1) for number in (modality["vocab_size"], *axes.values())):
        raise ValueError(
            f"modalities[{name!r}]: vocab_size and every length in token_axes must be whole and at least 1"
        )
    if len(axes) < len(modality["token_axes"]):
        raise ValueError(f"modalities[{name!r}]: two of token_axes have the same name")
    order = modality.get("order", "any")
    if order not in ("any", "left_to_right"):
        raise ValueError(f"modalities[{name!r}]: order must be 'any' or 'left_to_right', not {order!r}")
    fields = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {field: modality[field] for field in fields if modality.get(field) is not None}
    for field, value in special.items():
        if not is_whole(value, 0) or value >= modality["vocab_size"]:
            raise ValueError(f"modalities[{name!r}]: {field}={value} is not in [0, vocab_size)")
    if len(set(special.values())) < len(special):
        raise ValueError(f"modalities[{name!r}]: {', '.join(special)} must differ, not {special}")
    if "eos_token_id" in special and "pad_token_id" not in special:
        raise ValueError(f"modalities[{name!r}] has an eos_token_id and needs a pad_token_id to follow it")
    if "bos_token_id" in special and order != "left_to_right":
        raise ValueError(f"modalities[{name!r}]: only an order 'left_to_right' begins with a bos_token_id")


def _pairs(name: str, axes: dict[str, int] | list) -> list[list]:
    try:
        pairs = [list(pair) for pair in (axes.items() if isinstance(axes, dict) else axes)]
    except TypeError:
        pairs = [[]]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"modalities[{name!r}]: token_axes must be pairs of a name and a length, not {axes!r}")
    return pairs
