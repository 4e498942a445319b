"""Reading of the sound of one media file with PyAV, between two times of the file's timeline.

See `dataset_scripts.media` for that timeline and for pictures.
"""

from collections.abc import Iterator
from math import gcd
from pathlib import Path

import av
import numpy as np
import torch
from torchaudio.functional import resample

from dataset_scripts.media import MediaError, Reader, audio_stream, decode_frames, open_container, stream_origin

LONGEST_DRIFT = 0.1  # seconds; timestamps of sound are often rounded, only larger jumps are real gaps
MAX_PHASES = 4_000_000  # size of the resampling filter
RESAMPLE_MARGIN = 0.05  # seconds of context on either side, several times the resampling kernel's width
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; others are a broken header: sound of days, or a memory full of it


class AudioReader(Reader):
    """An audio stream of a file as mono sound, asked for in the order of time; silence if there is none.

    Of several streams it is the first in `language`, a code such as "en", else the first of all.

    Raises:
        MediaError: the file cannot be opened, or its sampling rate is beyond reason.
    """

    def __init__(self, path: str | Path, sampling_rate: int, language: str | None = None):
        self.sampling_rate = sampling_rate
        self.container = open_container(path)
        self.stream = audio_stream(self.container, language)
        self._origin = stream_origin(self.container)
        self._rate = 0  # Hz of the decoded sound, known once the first frame is there
        self._pieces: list[tuple[int, np.ndarray]] = []  # (index of the first sample on the timeline, samples)
        self._source = self._decode() if self.stream else iter(())
        self._next = next(self._source, None)

    def read(self, start: float, end: float, num_samples: int) -> tuple[np.ndarray, int]:
        """The sound of [start, end) seconds; `start` must not decrease from call to call.

        Returns:
            samples: (num_samples,) float32, usually within -1 .. 1; zeros where the stream has no sound and from
                `end` on.
            valid: number of samples up to the end of the sound, 0 if the stream has none in this window.  Silence
                before a stream that starts late counts, since it is the true sound of that time.
        """
        samples = np.zeros(num_samples, dtype=np.float32)
        if self.stream is None or self._rate == 0:
            return samples, 0
        # Sample n of the window lies at index `first + n` of the resampled timeline.  Cutting the source at
        # multiples of its rate over the common divisor keeps every window on that one grid.
        first = round(start * self.sampling_rate)
        length = min(num_samples, round((end - start) * self.sampling_rate))
        divisor = gcd(self._rate, self.sampling_rate)
        step_in, step_out = self._rate // divisor, self.sampling_rate // divisor
        margin = round(RESAMPLE_MARGIN * self.sampling_rate)
        block = (first - margin) // step_out
        source_start = block * step_in
        source_end = -(-(first + length + margin) * step_in // step_out)
        source, source_valid = self._cut(source_start, source_end)
        if source_valid == 0:
            return samples, 0
        sound = resample(torch.from_numpy(source), self._rate, self.sampling_rate).numpy()
        skip = first - block * step_out
        sound = sound[skip : skip + length]
        valid = -(-source_valid * step_out // step_in) - skip
        valid = max(0, min(valid, len(sound)))
        samples[:valid] = sound[:valid]
        return samples, valid

    def read_through(self, end: float) -> np.ndarray:
        """All sound up to `end` seconds, (samples,) float32; of a long file nothing else is held but a few seconds."""
        pieces, start, heard = [], 0, 0
        total = round(end * self.sampling_rate)
        while start < total:
            count = min(30 * self.sampling_rate, total - start)
            samples, valid = self.read(start / self.sampling_rate, (start + count) / self.sampling_rate, count)
            pieces.append(samples)
            heard = start + valid if valid else heard
            start += count
        return np.concatenate(pieces)[:heard] if pieces else np.zeros(0, dtype=np.float32)

    def _cut(self, start: int, end: int) -> tuple[np.ndarray, int]:
        """Decoded samples start .. end as float32, and the number of them up to the end of the last real one."""
        while self._next is not None and self._next[0] < end:
            self._pieces.append(self._next)
            self._next = next(self._source, None)
        self._pieces = [(index, piece) for index, piece in self._pieces if index + len(piece) > start]
        sound = np.zeros(end - start, dtype=np.float32)
        valid = 0
        for index, piece in self._pieces:
            left, right = max(index, start), min(index + len(piece), end)
            if left < right:
                sound[left - start : right - start] = piece[left - index : right - index]
                valid = max(valid, right - start)
        return np.nan_to_num(sound, copy=False), valid

    def _decode(self) -> Iterator[tuple[int, np.ndarray]]:
        converter = layout = None
        position = None
        for frame in decode_frames(self.container, self.stream):
            if not frame.samples or not frame.rate:
                continue
            if not MIN_RATE <= frame.rate <= MAX_RATE:
                raise MediaError(f"a sampling rate beyond reason ({frame.rate} Hz, not {MIN_RATE} to {MAX_RATE})")
            if self._rate == 0:
                # The exact resampling filter has a row per phase: for rates with hardly a common divisor it would
                # fill the memory, and those are left to the converter.
                phases = frame.rate * self.sampling_rate // gcd(frame.rate, self.sampling_rate) ** 2
                self._rate = frame.rate if phases <= MAX_PHASES else self.sampling_rate
            if layout != (frame.format.name, frame.layout.name, frame.rate):  # may change within a stream
                layout = (frame.format.name, frame.layout.name, frame.rate)
                converter = av.AudioResampler(format="fltp", layout=frame.layout, rate=self._rate)
            if frame.time is not None:
                index = round((frame.time - self._origin) * self._rate)
                if position is None or abs(index - position) > LONGEST_DRIFT * self._rate:
                    position = index
            position = position or 0
            try:
                converted_frames = converter.resample(frame)
            except (av.FFmpegError, ValueError):
                continue  # as damaged as what cannot be decoded
            for converted in converted_frames:
                piece = converted.to_ndarray().mean(axis=0, dtype=np.float32)
                yield position, piece
                position += len(piece)
