"""Configuration of the text tokenizer."""

from huggingface_hub.dataclasses import strict

from ..contract import TokenizerConfig4M


@strict
class TextTokenizerConfig(TokenizerConfig4M):
    """Vocabulary, budget and special ids of the text tokenizer.

    Args:
        vocab_size: subwords, bytes and special tokens together. As asked before training, as it came out
            afterwards: a small text has fewer subwords to merge.
        max_tokens: token ids per clip, begin and end included; longer texts are cut, shorter ones padded.
        lowercase: fold case before tokenizing.
        pad_token_id, bos_token_id, eos_token_id: fill, begin and end of text.
    """

    model_type = "nano4m_text_tokenizer"
    modality = "text"

    vocab_size: int = 4096
    max_tokens: int = 32
    lowercase: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens={self.max_tokens} must leave room for begin, one token and end")

    @property
    def token_axes(self) -> dict[str, int]:
        return {"index": self.max_tokens}
