"""The judge of GRID's words: its grammar is the corpus', and it hears what is said, whatever came before."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset_scripts.audio_reader import AudioReader
from dataset_scripts.grid_judges import GRID_WORDS, SAMPLING_RATE, GridJudge, grid_grammar

GRID = Path(os.environ.get("NANO4M_DATA", Path(__file__).parents[2] / "shared" / "data")) / "grid"
needs_grid = pytest.mark.skipif(not GRID.is_dir(), reason=f"no GRID clips in {GRID}: set NANO4M_DATA")


@pytest.fixture(scope="module")
def judge():
    pytest.importorskip("pocketsphinx")
    return GridJudge()


@pytest.fixture(scope="module")
def clips():
    """Some real clips: their sentences, and their sound."""
    rows = [json.loads(line) for line in (GRID / "validation" / "metadata.jsonl").read_text().splitlines()][:6]
    sounds = []
    for row in rows:
        with AudioReader(GRID / "validation" / row["file_name"], SAMPLING_RATE) as reader:
            sounds.append(np.asarray(reader.read(0, 3.0, 3 * SAMPLING_RATE)[0]))
    return [row["text"] for row in rows], sounds


@needs_grid
def test_the_grammar_is_that_of_the_corpus():
    rows = [json.loads(line) for line in (GRID / "train" / "metadata.jsonl").read_text().splitlines()]
    said = [set(words) for words in zip(*(row["text"].split() for row in rows), strict=True)]
    assert said == [set(words) for words in GRID_WORDS.values()]
    assert "<digit> = zero | one |" in grid_grammar()


@needs_grid
def test_it_hears_real_sentences_in_any_order(judge, clips):
    sentences, sounds = clips
    heard = judge.transcribe(sounds, SAMPLING_RATE)
    right = [a == b for x, y in zip(sentences, heard, strict=True) for a, b in zip(x.split(), y.split(), strict=True)]
    assert np.mean(right) > 0.7
    assert judge.transcribe(sounds[::-1], SAMPLING_RATE) == heard[::-1]
    # At another rate, of half the bandwidth, most words are the same.
    halved = judge.transcribe([sound.reshape(-1, 2).mean(1) for sound in sounds], SAMPLING_RATE // 2)
    assert all(len(sentence.split()) == len(GRID_WORDS) for sentence in halved)


def test_odd_waveforms(judge):
    (nothing,) = judge.transcribe([np.zeros(0, np.float32)], SAMPLING_RATE)
    assert nothing == ""
    assert len(judge.transcribe([np.zeros(8000, np.float32), np.zeros(1, np.float32)], SAMPLING_RATE)) == 2
    for waveform in (np.zeros((2, 100), np.float32), np.full(100, np.nan)):
        with pytest.raises(ValueError, match="finite"):
            judge.transcribe([waveform], SAMPLING_RATE)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ImportError, match="pip install pocketsphinx"):
        GridJudge()


def test_the_words_of_sounds_and_sentences_are_read_by_their_place(judge):
    truths = judge.truths({"text": ["bin blue at f two now"]})
    assert truths == [dict(zip(GRID_WORDS, "bin blue at f two now".split(), strict=True))]
    assert judge.read("text", ["Bin blue at f two now", "bin blue"]) == [truths[0], {}]
    assert judge.read("image", ["anything"]) == [{}]
    heard = judge.read("audio", [np.zeros(16_000, dtype=np.float32)], 16_000)[0]
    assert set(heard) <= set(GRID_WORDS)
    assert judge.truths({"text": ["bin blue at f two now", "", "hello"]}) == [truths[0], None, None]
