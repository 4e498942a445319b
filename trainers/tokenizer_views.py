"""Media beside what tokenizers make of them, for eyes and ears."""

import numpy as np
import torch
import torchaudio
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tokenizers_4m import TokenizerContract

WIDTH = 9  # inches


@torch.inference_mode()
def reconstructed(tokenizer: TokenizerContract, media: list) -> tuple[list, list]:
    """Media as the tokenizer gets them, and as it decodes them from their ids; both as `postprocess` gives them."""
    batch = tokenizer.preprocess(media)
    token_ids, _ = tokenizer.encode_media(media)
    return tokenizer.postprocess(batch), tokenizer.postprocess(tokenizer.decode(token_ids))


def picture_rows(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """A row of pictures under each title."""
    figure = Figure((WIDTH, 1.2 * len(rows)), layout="constrained")
    for part, (title, pictures) in zip(np.atleast_1d(figure.subfigures(len(rows))), rows.items(), strict=True):
        part.suptitle(title, fontsize="small")
        for axes, picture in zip(np.atleast_1d(part.subplots(1, len(pictures))), pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.axis("off")
    return _drawn(figure)


def log_mel(waveform: np.ndarray, sampling_rate: int) -> torch.Tensor:
    """Log-mel spectrogram `(80, frames)` of a waveform `(samples,)`, decibels, at most 80 below its highest value."""
    mel = torchaudio.transforms.MelSpectrogram(sampling_rate, n_fft=1024, hop_length=256, n_mels=80)
    return torchaudio.transforms.AmplitudeToDB("power", top_db=80)(mel(torch.as_tensor(waveform)))


def spectrograms(waveforms: dict[str, np.ndarray], sampling_rate: int) -> Image.Image:
    """Log-mel spectrograms of waveforms `(samples,)`, one above the other, on one scale of 80 dB."""
    values = {title: log_mel(waveform, sampling_rate) for title, waveform in waveforms.items()}
    highest = max(float(value.max()) for value in values.values())
    figure = Figure((WIDTH, 1.6 * len(values)), layout="constrained")
    for axes, (title, value) in zip(np.atleast_1d(figure.subplots(len(values))), values.items(), strict=True):
        seconds = value.shape[1] * 256 / sampling_rate
        axes.imshow(
            value, origin="lower", aspect="auto", vmin=highest - 80, vmax=highest, extent=(0, seconds, 0, len(value))
        )
        axes.set_title(title, fontsize="small")
        axes.set_ylabel("mel band")
    axes.set_xlabel("seconds")
    return _drawn(figure)


def _drawn(figure: Figure) -> Image.Image:
    """The figure as a picture, which a notebook shows whatever its plotting backend."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
