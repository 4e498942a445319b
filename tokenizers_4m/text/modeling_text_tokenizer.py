"""Text tokenizer: a byte-level BPE vocabulary behind the contract of the other tokenizers.

Sennrich et al. 2016 (arXiv:1508.07909), over bytes as in GPT-2, so that any Unicode text comes back exactly
and no token stands for "unknown". The vocabulary is trained with the `tokenizers` library and lives in the
folder as the usual files of a `PreTrainedTokenizerFast`, which `AutoTokenizer` reads too.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import initialization as init

from ..contract import TokenizerContract
from .configuration_text_tokenizer import TextTokenizerConfig

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


class TextTokenizer(TokenizerContract, PreTrainedModel):
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
            ValueError: if there is no text, or the vocabulary is too small for the 256 bytes.
        """
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError("TextTokenizer: no text to train on: every `text` in the data set is empty")
        smallest = 256 + len(SPECIAL_TOKENS)
        if config.vocab_size < smallest:
            raise ValueError(f"vocab_size={config.vocab_size} must be at least {smallest} (256 bytes and specials)")
        backend = Tokenizer(models.BPE())
        normalizer = [normalizers.NFC()] + ([normalizers.Lowercase()] if config.lowercase else [])
        backend.normalizer = normalizers.Sequence(normalizer)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=list(SPECIAL_TOKENS.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            **SPECIAL_TOKENS,
            model_max_length=config.max_tokens,
            padding_side="right",
        )
        fields = {**config.to_dict(), "vocab_size": len(fast)}
        model = cls(TextTokenizerConfig(**fields), fast)
        token_ids = model.encode(texts)
        counts = torch.bincount(token_ids[model.valid_mask(token_ids)], minlength=len(fast))
        model.token_frequencies.copy_(counts / counts.sum())
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load model and vocabulary from one folder or Hub repository; see `PreTrainedModel.from_pretrained`."""
        hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in hub if name in kwargs}
        )
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.fast_tokenizer = tokenizer
        return loaded

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs) -> None:
        """Save model and vocabulary into one folder; see `PreTrainedModel.save_pretrained`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self._vocabulary().save_pretrained(save_directory)

    def encode(self, batch: list[str]) -> torch.LongTensor:
        """Strings to ids `(batch, max_tokens)`. Text beyond the budget is cut, the end token stays."""
        config = self.config
        rows = self._vocabulary()(list(batch), add_special_tokens=False)["input_ids"] if len(batch) else []
        token_ids = torch.full((len(rows), config.max_tokens), config.pad_token_id, dtype=torch.int64)
        for row, ids in zip(token_ids, rows, strict=True):
            ids = [config.bos_token_id, *ids[: config.max_tokens - 2], config.eos_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return token_ids.to(self.device)

    def decode(self, token_ids: torch.LongTensor) -> list[str]:
        """Ids `(batch, max_tokens)` to strings; what follows the first end token is not read.

        Raises:
            ValueError: if the shape is wrong or an id is outside the vocabulary.
        """
        self.check_token_ids(token_ids)
        ended = (token_ids == self.config.eos_token_id).cumsum(-1) > 0
        token_ids = token_ids.masked_fill(ended, self.config.pad_token_id)
        return self._vocabulary().batch_decode(
            token_ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def preprocess(self, media: list) -> list[str]:
        """Strings as they are, `Path`s read as UTF-8 text files.

        Raises:
            ValueError: if a file is no UTF-8 text.
        """
        return [self._to_text(item) for item in media]

    def postprocess(self, batch: list[str]) -> list[str]:
        return list(batch)

    def valid_mask(self, token_ids: torch.LongTensor) -> torch.BoolTensor:
        return token_ids != self.config.pad_token_id

    def fingerprint(self) -> str:
        vocabulary = self._vocabulary().backend_tokenizer.to_str()
        return hashlib.sha256((super().fingerprint() + vocabulary).encode()).hexdigest()[:16]

    def _vocabulary(self) -> PreTrainedTokenizerFast:
        if self.fast_tokenizer is None:
            raise ValueError(
                "TextTokenizer has no vocabulary yet: make it with TextTokenizer.train_from_iterator(texts, config) "
                "or TextTokenizer.from_pretrained(folder)"
            )
        return self.fast_tokenizer

    @staticmethod
    def _to_text(item) -> str:
        if not isinstance(item, Path):
            return str(item)
        try:
            return item.read_text(encoding="utf-8-sig").strip()
        except (UnicodeDecodeError, OSError) as error:
            raise ValueError(f"{item}: not a readable UTF-8 text file ({error})") from error
