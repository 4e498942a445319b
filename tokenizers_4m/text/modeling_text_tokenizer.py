"""Text tokenizer: a vocabulary of subwords behind the contract of the other tokenizers."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import initialization as init

from .configuration_text_tokenizer import TextTokenizerConfig
from .subwords import SubwordModel, read_texts, train_subwords


class TextTokenizer(SubwordModel, PreTrainedModel):
    """Turns strings into `max_tokens` token ids: begin, subwords, end, padding.

    Made by `TextTokenizer.train_from_iterator` or `from_pretrained`. Its only weight, `token_frequencies`
    (vocab_size,), is the share of each id in the training texts; nothing trains it further.
    """

    config: TextTokenizerConfig
    config_class = TextTokenizerConfig
    base_model_prefix = ""
    main_input_name = "text"

    def __init__(self, config: TextTokenizerConfig, tokenizer: PreTrainedTokenizerFast | None = None):
        super().__init__(config)
        self.token_frequencies = nn.Parameter(torch.zeros(config.vocab_size), requires_grad=False)
        self.fast_tokenizer = tokenizer
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, TextTokenizer):
            init.zeros_(module.token_frequencies)

    @classmethod
    @torch.no_grad()
    def train_from_iterator(cls, texts: Iterable[str], config: TextTokenizerConfig) -> "TextTokenizer":
        """Learn a vocabulary of at most `config.vocab_size` from `texts`; empty texts are passed over.

        Raises:
            ValueError: if there is no text, or the vocabulary is too small for bytes and special tokens.
        """
        texts = [text for text in texts if text.strip()]
        subwords = train_subwords(texts, config.algorithm, config.vocab_size, config.lowercase, config.num_sentinels)
        fields = {**config.to_dict(), "vocab_size": len(subwords)}
        model = cls(TextTokenizerConfig(**fields), subwords)
        token_ids = model.encode(texts)
        counts = torch.bincount(token_ids[model.valid_mask(token_ids)], minlength=len(subwords))
        model.token_frequencies.copy_(counts / counts.sum())
        return model.eval()

    def encode(self, batch: list[str]) -> torch.LongTensor:
        """Strings to ids `(batch, max_tokens)`. Text beyond the budget is cut, the end token stays."""
        return self.to_subword_ids(list(batch), self.config.max_tokens).to(self.device)

    def decode(self, token_ids: torch.LongTensor) -> list[str]:
        """Ids `(batch, max_tokens)` to strings; what follows the first end token is not read.

        Raises:
            ValueError: if the shape is wrong or an id is outside the vocabulary.
        """
        self.check_token_ids(token_ids)
        return self.to_texts(token_ids)

    def preprocess(self, media: list) -> list[str]:
        """Strings as they are, `Path`s read as UTF-8 text files.

        Raises:
            ValueError: if a file is no UTF-8 text.
        """
        return read_texts(media)

    def postprocess(self, batch: list[str]) -> list[str]:
        return list(batch)

    def valid_mask(self, token_ids: torch.LongTensor) -> torch.BoolTensor:
        return token_ids != self.config.pad_token_id

    def describe(self) -> dict:
        described = super().describe()
        if self.config.num_sentinels:
            described["sentinel_token_ids"] = self.config.sentinel_token_ids
        return described
