"""Configuration of the text tokenizer."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ..contract import TokenizerConfig4M


@strict
class TextTokenizerConfig(TokenizerConfig4M):
    """Vocabulary, budget and special ids of the text tokenizer.

    Args:
        algorithm: how texts are split, see `tokenizers_4m.text.subwords`.
        vocab_size: subwords, bytes and special tokens together. As asked before training, as it came out
            afterwards: a small text has fewer subwords to merge.
        max_tokens: token ids per clip, begin and end included; longer texts are cut, shorter ones padded.
        lowercase: fold case before tokenizing.
        num_sentinels: ids to stand for masked spans of a text, as in T5 (Raffel et al. 2020, arXiv:1910.10683). They
            follow the three below, are no part of what `encode` gives, and `decode` drops them. For models that are
            trained as T5; nano4M's masking needs none, as positions tell where tokens are missing.
        pad_token_id, bos_token_id, eos_token_id: fill, begin and end of text.
    """

    model_type = "nano4m_text_tokenizer"
    modality = "text"

    algorithm: Literal["bpe", "wordpiece"] = "bpe"
    vocab_size: int = 4096
    max_tokens: int = 32
    lowercase: bool = False
    num_sentinels: int = 0
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens={self.max_tokens} must leave room for begin, one token and end")
        if self.num_sentinels < 0:
            raise ValueError(f"num_sentinels={self.num_sentinels} must not be negative")
        special = (self.pad_token_id, self.bos_token_id, self.eos_token_id)
        if special != (0, 1, 2):
            raise ValueError(f"pad_token_id, bos_token_id, eos_token_id={special} must be (0, 1, 2)")

    @property
    def sentinel_token_ids(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>` and so on."""
        return list(range(3, 3 + self.num_sentinels))

    @property
    def token_axes(self) -> dict[str, int]:
        return {"index": self.max_tokens}
