"""Subwords: whatever a text holds comes back, and nothing in it is taken for a special token."""

import unicodedata

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from test_tokenizers import TEXTS, text_tokenizer
from transformers import AutoModel, AutoTokenizer

from tokenizers_4m import TextTokenizer, TextTokenizerConfig

HOSTILE = {
    "pad": "<pad>",
    "specials": "a <bos>red <eos> disc<pad> moves",
    "sentinel": "x<extra_id_0> y <extra_id_1>",
    "hash": "##a ## a##b \u203fa",
    "spaces": "  a \t\n b  ",
    "nul": "a\0b\0",
    "emoji": "👩🏽‍🚀 🏳️‍🌈 🇵🇱",
    "decomposed": unicodedata.normalize("NFD", "żółw é Å"),
    "stacked": "Z\u0351\u036b\u0343\u0300x",
    "right_to_left": "שָׁלוֹם \u202eabc\u202c مرحبا",
    "controls": "\ufeffa\u200b\ufffe\x1b[0m",
    "planes": "\U0010ffff𝔘\u2028",
    "one_word": "a1b2" * 40,
    "empty": "",
}


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def tokenizer(request) -> TextTokenizer:
    return text_tokenizer(algorithm=request.param, vocab_size=600, num_sentinels=3, max_tokens=300)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_text_comes_back(tokenizer, name):
    text = HOSTILE[name]
    token_ids = tokenizer.encode([text, TEXTS[0]])
    assert tokenizer.decode(token_ids) == [unicodedata.normalize("NFC", text), TEXTS[0]]
    inner = token_ids[0][tokenizer.valid_mask(token_ids)[0]][1:-1]
    assert (inner > 5).all(), "ids of special tokens stand for no text"


def test_surrogates_without_a_partner_are_replaced(tokenizer):
    texts = ["a\ud800b", "\udc00", "\ud83d", "\ud83d\udc22"]
    assert tokenizer.decode(tokenizer.encode(texts)) == ["a\ufffdb", "\ufffd", "\ufffd", "🐢"]


def test_sentinels_have_ids_of_their_own(tokenizer):
    sentinels = tokenizer.config.sentinel_token_ids
    assert sentinels == [3, 4, 5] == tokenizer.describe()["sentinel_token_ids"]
    assert tokenizer.fast_tokenizer.convert_ids_to_tokens(sentinels) == [f"<extra_id_{i}>" for i in range(3)]
    before, after = tokenizer.encode(["a red", " disc"])
    masked = torch.zeros_like(before)
    ids = [1, *before[before > 5].tolist(), 4, *after[after > 5].tolist(), 2]
    masked[: len(ids)] = torch.tensor(ids)
    assert tokenizer.decode(masked[None]) == ["a red disc"]
    assert "sentinel_token_ids" not in text_tokenizer().describe()


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_what_is_too_long_is_cut_after_a_character(algorithm):
    """Neither a turtle, which has four bytes, nor a composed letter falls apart."""
    text = "red 🐢żółw 海🐢" * 20
    for max_tokens in range(3, 40):
        model = text_tokenizer(algorithm=algorithm, vocab_size=516, max_tokens=max_tokens)
        token_ids = model.encode([text])
        (again,) = model.decode(token_ids)
        assert text.startswith(again)
        assert model.valid_mask(token_ids).sum() == len(model.encode([again])[0].nonzero()) > max_tokens - 4
    assert len(again) > 8


def test_wordpiece_takes_the_longest_piece():
    model = text_tokenizer(algorithm="wordpiece", vocab_size=700)
    ids = model.encode(["a red reds"])[0]
    pieces = model.fast_tokenizer.convert_ids_to_tokens(ids[ids > 2])
    assert pieces == ["a", "Ġred", "Ġred", "\u203fs"]


def test_a_word_without_end_is_split_in_linear_time(tokenizer):
    text = "x" * 200_000
    assert tokenizer.decode(tokenizer.encode([text]))[0] in text


def test_vocabularies_are_trained_alike_and_load_alike(tokenizer, tmp_path):
    config = tokenizer.config
    fields = {"algorithm": config.algorithm, "vocab_size": 600, "num_sentinels": 3, "max_tokens": 300}
    assert text_tokenizer(**fields).fingerprint() == tokenizer.fingerprint()
    tokenizer.save_pretrained(tmp_path)
    texts = list(HOSTILE.values())
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode(texts), tokenizer.encode(texts))
    fast = AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert fast(text, add_special_tokens=False)["input_ids"] == ids[ids > 2].tolist()


def test_vocabularies_are_no_larger_than_asked_for():
    for algorithm, smallest in (("bpe", 259), ("wordpiece", 515)):
        model = text_tokenizer(algorithm=algorithm, vocab_size=smallest)
        assert model.config.vocab_size == len(model.fast_tokenizer) == smallest
        assert model.decode(model.encode(["żółw"])) == ["żółw"]
        with pytest.raises(ValueError, match=f"too small: {smallest} are taken"):
            text_tokenizer(algorithm=algorithm, vocab_size=smallest - 1)
    with pytest.raises(StrictDataclassError, match="algorithm"):
        TextTokenizerConfig(algorithm="unigram")
    with pytest.raises(StrictDataclassError, match="num_sentinels"):
        TextTokenizerConfig(num_sentinels=-1)
    with pytest.raises(StrictDataclassError, match="pad_token_id"):
        TextTokenizerConfig(pad_token_id=7)
