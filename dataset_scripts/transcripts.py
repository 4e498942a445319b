"""Words spoken in a video: subtitle files, subtitle streams and speech recognition, and what falls in a window.

A `Transcript` is the text as written and, where it is known, when each part of it is spoken.  Times are seconds on
the timeline of the file (see `dataset_scripts.media`).
"""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

import av
import numpy as np

from dataset_scripts.media import MediaError, in_language, open_container, stream_origin

SUBTITLE_SUFFIXES = (".srt", ".vtt")
TRANSCRIPT_SUFFIXES = (*SUBTITLE_SUFFIXES, ".txt")  # in the order of preference: times are worth having

NO_CUES = "no subtitle can be read in it"  # why a file does not count

MAX_TEXT_BYTES = 4_000_000  # of one file or entry; the subtitles of a long film have a twentieth

PIECE_SECONDS = 30  # of sound that a recogniser hears at once; as long as Whisper's window

TEXT_CODECS = {"mov_text", "srt", "subrip", "webvtt", "ass", "ssa", "text"}  # others hold pictures of letters

_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,6}))?"
_TIMING_LINE = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
# <b>, </i>, <v Speaker> and {\an8}, but not "a < b" or "<3".
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
_STAMP = re.compile(rf"<{_TIME}>")  # in WebVTT: when what follows is said


@dataclass(frozen=True)
class Cue:
    """A piece of text that is spoken from `start` to `end`, seconds."""

    start: float
    end: float
    text: str

    def words(self) -> list[tuple[float, str]]:
        """Its words with their midpoints in seconds, taking them to be spread evenly over the cue."""
        words = self.text.split()
        length = (self.end - self.start) / max(1, len(words))
        return [(self.start + (index + 0.5) * length, word) for index, word in enumerate(words)]


@dataclass(frozen=True)
class Transcript:
    """The text of a file; `cues` is None where nothing is known about the times."""

    text: str = ""
    cues: tuple[Cue, ...] | None = None

    def cut(self, start: float, end: float) -> "Transcript":
        """The words whose midpoint lies in [start, end) seconds, with times from `start`; all if times are unknown.

        A cue that falls into the window entirely is given as it is written, and so is the whole text.
        """
        if self.cues is None:
            return self
        cut, complete = [], True
        for cue in self.cues:
            words = cue.words()
            inside = [(index, word) for index, (middle, word) in enumerate(words) if start <= middle < end]
            if inside:
                length, text = (cue.end - cue.start) / len(words), cue.text
                if len(inside) < len(words):
                    text = " ".join(word for _, word in inside)
                begun, done = cue.start + inside[0][0] * length, cue.start + (inside[-1][0] + 1) * length
                cut.append(Cue(begun - start, done - start, text))
            complete = complete and len(inside) == len(words)
        return Transcript(self.text if complete else " ".join(cue.text for cue in cut), tuple(cut))

    def columns(self) -> dict:
        """As in the rows of clips; without cues where times are unknown."""
        return {"text": self.text, "cues": [asdict(cue) for cue in self.cues or ()]}

    @classmethod
    def from_columns(cls, text: str, cues: Iterable[dict]) -> "Transcript":
        return cls(text, tuple(Cue(**cue) for cue in cues) or None)


def read_transcript(path: str | Path) -> Transcript | None:
    """Reads a .srt, .vtt or .txt file in UTF-8, UTF-16 or a Western 8-bit encoding; None if it has no subtitle.

    Tags are removed and the lines of a subtitle become one, since their breaks are layout.  A .txt file keeps its
    text but for white space around it, and has no times.

    Raises:
        OSError: the file cannot be read.
        MediaError: the file is too large to be a text.
    """
    path = Path(path)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise MediaError(f"more than {MAX_TEXT_BYTES // 10**6} megabytes of text")
    text = decode_text(path.read_bytes())
    if path.suffix.lower() not in SUBTITLE_SUFFIXES:
        return Transcript(text.strip())
    cues = parse_subtitles(text)
    return from_cues(cues) if cues else None


def decode_text(data: bytes) -> str:
    """Bytes of a text file as text with "\\n" line ends, whatever the encoding; never fails."""
    encodings = ("utf-8-sig", "cp1252", "latin-1")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ("utf-16", *encodings)
    elif guess := _guess_utf_16(data):
        encodings = (guess, *encodings)
    for encoding in encodings:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _guess_utf_16(data: bytes) -> str | None:
    """The UTF-16 that bytes without a mark are in, None for others: every other byte of Western letters is 0."""
    first, second = (data[start:1000:2].count(0) for start in (0, 1))
    pairs = len(data[:1000]) // 2
    if max(first, second) < pairs / 4 or min(first, second) > pairs / 20 or len(data) % 2:
        return None
    return "utf-16-be" if first > second else "utf-16-le"


def parse_subtitles(text: str) -> list[Cue]:
    """The cues of SubRip or WebVTT text in the order of time; parts that are neither are passed over."""
    cues = []
    times, lines = None, []

    def finish() -> None:
        if times is not None:
            cues.extend(_parts(times[0], max(times), "\n".join(lines)))

    for line in text.split("\n"):
        match = _TIMING_LINE.match(line)
        if match:
            # Without an empty line in between, the number of this cue was taken for text of the last one.
            if times is not None and lines and lines[-1].strip().isdigit():
                lines.pop()
            finish()
            times, lines = (_seconds(*match.groups()[:4]), _seconds(*match.groups()[4:])), []
        elif not line.strip():
            finish()
            times, lines = None, []
        elif times is not None:
            lines.append(line)
    finish()
    return sorted(cues, key=lambda cue: cue.start)


def clean_subtitle(text: str) -> str:
    """Text of a subtitle as one line without tags and with entities such as &amp;amp; resolved."""
    return " ".join(html.unescape(_STAMP.sub("", _TAG.sub("", text))).replace("\\N", " ").split())


def _parts(start: float, end: float, text: str) -> Iterator[Cue]:
    """A cue without tags, or one for each part between the stamps within it that stand between words."""
    text, begin = _TAG.sub("", text), 0
    for stamp in _STAMP.finditer(text):
        before, after, time = text[begin : stamp.start()], text[stamp.end() :], _seconds(*stamp.groups())
        between_words = before[-1:].isspace() or after[:1].isspace()
        if between_words and start <= time <= end and clean_subtitle(before) and clean_subtitle(after):
            yield Cue(start, time, clean_subtitle(before))
            start, begin = time, stamp.end()
    if rest := clean_subtitle(text[begin:]):
        yield Cue(start, end, rest)


def from_cues(cues: list[Cue]) -> Transcript:
    """A transcript whose text is that of the cues one after the other."""
    return Transcript(" ".join(cue.text for cue in cues), tuple(cues))


def from_metadata(entry: dict) -> Transcript | None:
    """The transcript in an entry of metadata.jsonl, None if it has neither `text` nor `words`.

    `text` is a string, or a list of strings, say of captions of one picture, of which the first counts; `words` is a
    list of {"start": seconds, "end": seconds, "word": string}.

    Raises:
        ValueError: one of them is of another form, or too long.
    """
    text, words = entry.get("text"), entry.get("words")
    if isinstance(text, list):
        text = text[0] if text else None
    if text is not None and not isinstance(text, str):
        raise ValueError(f"'text' must be a string, got {type(text).__name__}")
    if text is not None:
        if len(text) > MAX_TEXT_BYTES:
            raise ValueError(f"'text' is longer than {MAX_TEXT_BYTES} characters")
        text = storable(text)
    if words is None:
        return None if text is None else Transcript(text)
    if not isinstance(words, list):
        raise ValueError(f"'words' must be a list, got {type(words).__name__}")
    cues = []
    for word in words:
        fields = word if isinstance(word, dict) else {}
        start, end, spoken = (fields.get(name) for name in ("start", "end", "word"))
        if not (_is_time(start) and _is_time(end) and start <= end and isinstance(spoken, str)):
            raise ValueError("every item of 'words' must be {'start': seconds, 'end': seconds, 'word': string}")
        cues.append(Cue(float(start), float(end), storable(spoken.strip())))
    if text is not None and not cues:
        return Transcript(text)
    transcript = from_cues(sorted(cues, key=lambda cue: cue.start))
    return transcript if text is None else Transcript(text, transcript.cues)


def embedded_transcript(path: str | Path, language: str | None = None) -> Transcript | None:
    """The first stream of text subtitles inside a video file, preferring one in `language`; None without words.

    Raises:
        MediaError: the file cannot be opened.
    """
    with open_container(path) as container:
        streams = [s for s in container.streams.subtitles if s.codec_context and s.codec_context.name in TEXT_CODECS]
        if not streams:
            return None
        cues = list(_embedded_cues(container, in_language(streams, language), stream_origin(container)))
    # A subtitle without an end is shown until the next one comes.
    if not cues:
        return None
    ends = [cue.start for cue in (*cues[1:], cues[-1])]
    cues = [cue if cue.end > cue.start else Cue(cue.start, end, cue.text) for cue, end in zip(cues, ends, strict=True)]
    return from_cues(cues)


def _embedded_cues(container, stream, origin: float) -> Iterator[Cue]:
    try:
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            start = float(packet.pts * packet.time_base) - origin
            end = start + float((packet.duration or 0) * packet.time_base)
            for subtitle in packet.decode():
                text = clean_subtitle(decode_text(getattr(subtitle, "dialogue", b"")))
                if text:
                    yield Cue(start, end, text)
    except (av.FFmpegError, ValueError):
        return  # what was read before the damage still counts


def storable(text: str) -> str:
    """The text without half surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def recognise_speech(
    sounds: list[np.ndarray], sampling_rate: int, model: str, language: str | None = None, batch_size: int = 8
) -> list[Transcript]:
    """The words a speech recogniser hears in each of some sounds.

    Args:
        sounds: (samples,) float32 each, mono, of any length: what is longer than half a minute is heard in
            overlapping pieces.
        sampling_rate: Hz.
        model: name or folder of a model for the "automatic-speech-recognition" pipeline of transformers.
        language: passed to models that take one, such as "en" for Whisper.
        batch_size: pieces of whichever sounds that the model hears at once.

    Returns:
        A transcript each, with times of words or phrases if the model gives them, else without.
    """
    audible = [index for index, sound in enumerate(sounds) if len(sound) and np.any(sound)]
    transcripts = [Transcript()] * len(sounds)
    if not audible:
        return transcripts
    recogniser = _recogniser(model)
    options = {}
    if recogniser.type != "seq2seq":
        options = {"chunk_length_s": PIECE_SECONDS, "ignore_warning": True}  # it warns of cuts in Whisper's sentences
    times = {"seq2seq_whisper": True, "ctc": "word", "ctc_with_lm": "word"}.get(recogniser.type)
    if times is True and getattr(recogniser.model.generation_config, "alignment_heads", None):
        times = "word"  # without these heads Whisper knows but the times of phrases
    if times is not None:
        options["return_timestamps"] = times
    # Models of English alone refuse to be told a language.
    multilingual = getattr(getattr(recogniser.model, "generation_config", None), "is_multilingual", True)
    if language and "seq2seq" in recogniser.type and multilingual:
        options["generate_kwargs"] = {"language": language}
    inputs = [{"raw": sounds[index], "sampling_rate": sampling_rate} for index in audible]
    results = recogniser(inputs, batch_size=batch_size, **options)
    for index, result in zip(audible, results, strict=True):
        transcripts[index] = _heard(result, len(sounds[index]) / sampling_rate)
    return transcripts


def _heard(result: dict, seconds: float) -> Transcript:
    cues = []
    for chunk in result.get("chunks") or ():
        start, end = chunk["timestamp"]
        start = 0.0 if start is None else float(start)
        end = seconds if end is None else float(end)
        if chunk["text"].strip():
            cues.append(Cue(start, max(start, end), chunk["text"].strip()))
    return Transcript(result["text"].strip(), tuple(cues) or None)


@lru_cache(maxsize=1)
def _recogniser(model: str):
    # Loaded once per process, and only by those who ask for it: the import alone takes seconds.
    from transformers import pipeline

    try:
        return pipeline("automatic-speech-recognition", model=model)
    except OSError as error:
        raise ValueError(f"asr_model: {model!r} cannot be loaded ({error})") from error


def _is_time(value) -> bool:
    # Whole numbers may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and isfinite(value)


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction or 0}")
