"""How fast sound becomes token ids: the compact audio tokenizer, beside real time."""

import dataclasses
import time
from pathlib import Path

import torch
import yaml

from benchmarks.measures import Measure, Sizes
from tokenizers_4m import AudioTokenizer, AudioTokenizerConfig

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "tokenizers" / "audio_grid.yaml"


def encode_audio(sizes: Sizes) -> dict:
    """Waveforms at 16 kHz to ids, spectrogram included. Returns `audio_seconds_per_second`."""
    torch.manual_seed(0)
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    names = {field.name for field in dataclasses.fields(AudioTokenizerConfig)}
    config = AudioTokenizerConfig(**{name: value for name, value in recipe.items() if name in names})
    # What is not trained is as fast as what is.
    tokenizer = AudioTokenizer(config).eval().to(sizes.device)
    waveform = torch.randn(sizes.audio_clips, config.num_samples, device=sizes.device) * 0.1
    with torch.inference_mode():
        tokenizer.encode(waveform)
        start = _clock(sizes.device)
        for _ in range(sizes.audio_batches):
            tokenizer.encode(waveform)
        seconds = _clock(sizes.device) - start
    return {"audio_seconds_per_second": sizes.audio_batches * sizes.audio_clips * config.clip_seconds / seconds}


def real_time(sizes: Sizes) -> dict:
    """Listening: a second of sound takes a second."""
    return {"audio_seconds_per_second": 1.0}


def audio_measures() -> dict[str, Measure]:
    """By name, as `benchmarks.measures.measures`."""
    measure = Measure(
        "audio_encoding", "seconds of sound/s", "audio_seconds_per_second", encode_audio, real_time, must=100, aim=400
    )
    return {measure.name: measure}


def _clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
