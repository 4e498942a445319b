"""A judge that hears which words of the GRID corpus are said: an offline speech recogniser held to GRID's grammar.

Every sentence of GRID (Cooke et al. 2006) is a command, a colour, a preposition, a letter, a digit and an adverb,
such as "bin blue at f two now". PocketSphinx brings its acoustic model along and needs no network. It is far from
perfect: quote the error that it makes on real clips beside any other.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torchaudio

# The letter w is left out of GRID, as the only one with more than one syllable.
GRID_WORDS = {
    "command": "bin lay place set".split(),
    "colour": "blue green red white".split(),
    "preposition": "at by in with".split(),
    "letter": list("abcdefghijklmnopqrstuvxyz"),
    "digit": "zero one two three four five six seven eight nine".split(),
    "adverb": "again now please soon".split(),
}
SAMPLING_RATE = 16_000  # of the acoustic model, Hz


def grid_grammar() -> str:
    """The sentences of GRID in the Java Speech Grammar Format."""
    rules = "".join(f"<{name}> = {' | '.join(words)};\n" for name, words in GRID_WORDS.items())
    sentence = " ".join(f"<{name}>" for name in GRID_WORDS)
    return f"#JSGF V1.0;\ngrammar grid;\n{rules}public <sentence> = {sentence};\n"


def words_of(sentence: str) -> dict[str, str]:
    """The words of a sentence by their place in it, `{"command": "bin", ...}`; {} of another number of words."""
    words = sentence.lower().split()
    return dict(zip(GRID_WORDS, words, strict=True)) if len(words) == len(GRID_WORDS) else {}


class GridJudge:
    """Transcribes sentences of GRID, and reads their six words; a judge as in `trainers.evaluation.judges`.

    Raises:
        ImportError: PocketSphinx is not installed.
    """

    reads_words = True  # each attribute is one word of the sentence

    def __init__(self):
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ImportError("the judge of GRID's words needs PocketSphinx: pip install pocketsphinx") from error
        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder) / "grid.jsgf"
            grammar.write_text(grid_grammar(), encoding="utf-8")
            self._decoder = Decoder(samprate=SAMPLING_RATE, jsgf=str(grammar), loglevel="FATAL")

    def truths(self, rows) -> list[dict[str, str] | None]:
        """The words of prepared rows, by their place in the sentence; None of a row without a sentence of GRID."""
        return [words_of(text) or None for text in rows["text"]]

    def read(self, modality: str, media: list, sampling_rate: int | None = None) -> list[dict[str, str]]:
        """The words of sounds or sentences; nothing of what is no sentence of GRID, and nothing of pictures."""
        if modality == "image":
            return [{} for _ in media]
        return [words_of(text) for text in (self.transcribe(media, sampling_rate) if modality == "audio" else media)]

    def transcribe(self, waveforms: Iterable[np.ndarray | torch.Tensor], sampling_rate: int) -> list[str]:
        """The words that are heard, lower case with blanks between them; "" where the recogniser gives up.

        A clip's words do not depend on what was heard before it.

        Args:
            waveforms: floats `(samples,)` in [-1, 1] each; louder samples are clipped.
            sampling_rate: of all of them, Hz.

        Raises:
            ValueError: a waveform has another shape, or samples that are not finite.
        """
        return [self._transcribe(waveform, sampling_rate) for waveform in waveforms]

    def _transcribe(self, waveform: np.ndarray | torch.Tensor, sampling_rate: int) -> str:
        samples = torch.as_tensor(waveform, dtype=torch.float32).cpu()
        if samples.ndim != 1 or not torch.isfinite(samples).all():
            raise ValueError(f"a waveform must be finite samples of shape (samples,), got {tuple(samples.shape)}")
        if sampling_rate != SAMPLING_RATE:
            samples = torchaudio.functional.resample(samples, sampling_rate, SAMPLING_RATE)
        pcm = (samples.clamp(-1, 1) * 32767).to(torch.int16).numpy()
        if not len(pcm):
            return ""
        # Else the noise that was estimated in earlier clips would be taken out of this one.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr if heard is not None else ""
