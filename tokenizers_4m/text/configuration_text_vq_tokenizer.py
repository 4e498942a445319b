"""Configuration of the text tokenizer that is a trained network."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ..contract import TokenizerConfig4M


@strict
class TextVQTokenizerConfig(TokenizerConfig4M):
    """Size of the subword vocabulary, of the network and of the codebook.

    Args:
        algorithm, lowercase: of the subwords, see `tokenizers_4m.text.subwords`.
        subword_vocab_size: bytes, subwords and special tokens together; as asked before training, as it came out
            afterwards.
        max_subwords: subwords of a text that are read and written, begin and end included; longer texts are cut.
        num_latents: token ids per clip.
        hidden_size, num_hidden_layers, num_attention_heads: of encoder and decoder each; the inner layers of a block
            are four times as wide.
        cut_probability: in training, that a text is cut off at a place drawn evenly, down to the empty text. Thus
            these come back, too.
        codebook_size, code_dim, commitment_weight, quantizer_warmup_steps: see
            `tokenizers_4m.quantizer.VectorQuantizer`.
    """

    model_type = "nano4m_text_vq_tokenizer"
    modality = "text"

    algorithm: Literal["bpe", "wordpiece"] = "bpe"
    subword_vocab_size: int = 4096
    max_subwords: int = 32
    lowercase: bool = False
    num_latents: int = 16
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    cut_probability: float = 0.05
    codebook_size: int = 512
    code_dim: int = 8
    commitment_weight: float = 0.25
    quantizer_warmup_steps: int = 0

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        if self.max_subwords < 3:
            raise ValueError(f"max_subwords={self.max_subwords} must leave room for begin, one subword and end")
        if self.num_latents < 1:
            raise ValueError(f"num_latents={self.num_latents} must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if not 0 <= self.cut_probability <= 1:
            raise ValueError(f"cut_probability={self.cut_probability} must lie in [0, 1]")

    @property
    def vocab_size(self) -> int:
        return self.codebook_size

    @property
    def token_axes(self) -> dict[str, int]:
        return {"latent": self.num_latents}
