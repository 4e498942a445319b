"""Subword vocabularies: trained with the `tokenizers` library, lossless, and saved in a tokenizer's own folder.

Both algorithms work over the bytes of a text, so that any Unicode text comes back and no token stands for "unknown":

- `bpe`, byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909), over bytes as in GPT-2;
- `wordpiece`, greedy longest match (Schuster and Nakajima 2012; Devlin et al. 2019, arXiv:1810.04805). BERT marks
  pieces that continue a word with "##", which a text may hold too; here the mark is a character that bytes are never
  written as. Words of more than `LONGEST_WORD` bytes are cut, as the search takes quadratic time.

What a text comes back as: itself in Unicode's normal form C, in lower case if so configured, with U+FFFD in place of
surrogates without a partner, which no UTF-8 can hold. Special tokens are ids of their own: a text that spells one,
such as "<pad>", is made of ordinary subwords.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..contract import TokenizerContract

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
PAD_ID, BOS_ID, EOS_ID = range(len(SPECIAL_TOKENS))
# Bytes, written as printable characters, in a fixed order.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTINUES_WORD = "\u203f"
LONGEST_WORD = 64


def train_subwords(
    texts: Iterable[str], algorithm: str, vocab_size: int, lowercase: bool = False, num_sentinels: int = 0
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of at most `vocab_size` subwords; empty texts are passed over.

    Ids start with the special tokens, `<pad>`, `<bos>`, `<eos>`, and `num_sentinels` times `<extra_id_0>` and on.

    Raises:
        ValueError: if there is no text, or the vocabulary is too small for bytes and special tokens.
    """
    texts = [whole_characters(text) for text in texts if text.strip()]
    if not texts:
        raise ValueError("no text to train on: every `text` in the data set is empty")
    sentinels = [f"<extra_id_{index}>" for index in range(num_sentinels)]
    specials = [*SPECIAL_TOKENS.values(), *sentinels]
    smallest = len(specials) + len(ALPHABET) * (2 if algorithm == "wordpiece" else 1)
    if vocab_size < smallest:
        raise ValueError(
            f"a {algorithm} vocabulary of {vocab_size} is too small: {smallest} are taken by bytes and special tokens"
        )
    settings = {"vocab_size": vocab_size, "initial_alphabet": ALPHABET, "show_progress": False}
    if algorithm == "bpe":
        backend = _backend(models.BPE(), lowercase)
        backend.train_from_iterator(texts, trainers.BpeTrainer(**settings, special_tokens=specials))
    else:
        # The trainer takes up bytes inside words where it sees them, in no fixed order, unless they are "special".
        continuing = [CONTINUES_WORD + byte for byte in ALPHABET]
        settings |= {"special_tokens": [*specials, *ALPHABET, *continuing]}
        learner = _backend(models.WordPiece(continuing_subword_prefix=CONTINUES_WORD), lowercase)
        trainer = trainers.WordPieceTrainer(**settings, continuing_subword_prefix=CONTINUES_WORD)
        learner.train_from_iterator(texts, trainer)
        backend = _backend(
            models.WordPiece(
                learner.get_vocab(),
                continuing_subword_prefix=CONTINUES_WORD,
                max_input_chars_per_word=LONGEST_WORD,
            ),
            lowercase,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIAL_TOKENS,
        **({"extra_special_tokens": sentinels} if sentinels else {}),
        split_special_tokens=True,
        padding_side="right",
    )


def whole_characters(text: str) -> str:
    """Join surrogates that make a character, and put U+FFFD in place of those that do not."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _backend(model: models.Model, lowercase: bool) -> Tokenizer:
    """Tokenizer with what comes before and after `model`: normal form, bytes as characters, and words."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if isinstance(model, models.WordPiece):
        cut = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
        backend.decoder = decoders.Sequence([decoders.Replace(CONTINUES_WORD, ""), backend.decoder])
    return backend


class SubwordModel(TokenizerContract):
    """Mixed into the `PreTrainedModel`s that start from subwords: keeps the vocabulary beside the weights.

    The files are the usual ones of a `PreTrainedTokenizerFast`, which `AutoTokenizer` reads too.
    """

    fast_tokenizer: PreTrainedTokenizerFast | None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load model and vocabulary from one folder or Hub repository; see `PreTrainedModel.from_pretrained`.

        Of nothing but a configuration and weights (`None`), the model has no vocabulary yet.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
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

    def fingerprint(self) -> str:
        vocabulary = self._vocabulary().backend_tokenizer.to_str()
        return hashlib.sha256((super().fingerprint() + vocabulary).encode()).hexdigest()[:16]

    def to_subword_ids(self, texts: list[str], length: int) -> torch.LongTensor:
        """Strings to ids `(batch, length)`: begin, subwords, end, padding. What is too long is cut after a character.

        The ids of special tokens stand nowhere else, whatever the texts spell.
        """
        token_ids = torch.full((len(texts), length), PAD_ID, dtype=torch.int64)
        if len(texts):
            texts = [whole_characters(text) for text in texts]
            encoded = self._vocabulary()(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
            for row, encoding in zip(token_ids, encoded.encodings, strict=True):
                ids = [BOS_ID, *encoding.ids[: _fitting(encoding, length - 2)], EOS_ID]
                row[: len(ids)] = torch.tensor(ids)
        return token_ids

    def to_texts(self, subword_ids: torch.LongTensor) -> list[str]:
        """Ids `(batch, length)` to strings; what follows the first end token is not read, special tokens are dropped.

        Bytes that make no character, as only ids can that no text was turned into, become U+FFFD.
        """
        ended = (subword_ids == EOS_ID).cumsum(-1) > 0
        return self._vocabulary().batch_decode(
            subword_ids.masked_fill(ended, PAD_ID).tolist(),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def _vocabulary(self) -> PreTrainedTokenizerFast:
        if self.fast_tokenizer is None:
            raise ValueError(f"{type(self).__name__} has no vocabulary yet: train one, or load it by from_pretrained")
        return self.fast_tokenizer


def _fitting(encoding: Encoding, length: int) -> int:
    """How many of the first `length` subwords to keep, so that none of the bytes of a character is left behind."""
    if len(encoding) <= length:
        return len(encoding)
    offsets = encoding.offsets
    while length and offsets[length][0] < offsets[length - 1][1]:
        length -= 1
    return length


def read_texts(media: list) -> list[str]:
    """Strings as they are, `Path`s read as UTF-8 text files.

    Raises:
        ValueError: if a file is no UTF-8 text.
    """
    return [_read(item) if isinstance(item, Path) else str(item) for item in media]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: not a readable UTF-8 text file ({error})") from error
