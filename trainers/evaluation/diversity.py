"""How varied generations are beside real media, and whether they come close to the true ones.

Pictures are compared by the root mean square of their pixels' differences (grey levels from 0 to 1), sounds by the
mean absolute difference of their log-mel spectrograms (nats) as far as both last, texts by whether they are the same.
"""

import numpy as np
import torch
import torchaudio

MELS, FFT_SIZE, LOG_FLOOR = 40, 512, 1e-3


def features(
    modality: str,
    media: list,
    sampling_rate: int | None,
    size: tuple[int, int] | None,
    seconds: np.ndarray | None = None,
) -> torch.Tensor:
    """Pictures or sounds as vectors `(media, values)` float32; NaN after the end of a sound.

    Args:
        modality: "image" or "audio".
        media: clips of PIL frames, or waveforms.
        sampling_rate: of the waveforms, Hz.
        size: width and height to bring pictures to.
        seconds: where each sound ends, `(media,)`; with its samples if not given.
    """
    if modality == "image":
        clips = [np.stack([np.asarray(frame.convert("RGB").resize(size)) for frame in clip]) for clip in media]
        return torch.from_numpy(np.stack(clips)).flatten(1).float() / 255
    waveforms = [torch.from_numpy(np.array(sound)).float() for sound in media]
    ends = torch.tensor([len(sound) for sound in waveforms])
    if seconds is not None:
        ends = torch.minimum(ends, torch.from_numpy(np.asarray(seconds) * sampling_rate))
    mel = torchaudio.transforms.MelSpectrogram(sampling_rate, FFT_SIZE, n_mels=MELS, power=1.0, f_min=40.0)
    frames = (mel(torch.nn.utils.rnn.pad_sequence(waveforms, True)) + LOG_FLOOR).log().transpose(1, 2)
    ended = torch.arange(frames.shape[1]) * mel.hop_length >= ends[:, None]
    return frames.masked_fill(ended[..., None], torch.nan).flatten(1)


def distances(modality: str, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Distance of each to each, `(first, second)`; see above for units."""
    if modality == "image":
        return (torch.cdist(first, second) / first.shape[1] ** 0.5).numpy()
    values = min(first.shape[1], second.shape[1])
    first, second = first[:, :values], second[:, :values]
    return torch.stack([(one - second).abs().nanmean(1) for one in first]).numpy()


def spread(between: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None) -> float | None:
    """Mean distance of two media of one class, from the distances of all; None if there are no two.

    Args:
        between: distances `(media, media)`.
        classes: `(media,)`; media of the class -1 are left out.
        groups: `(media,)`; two of one group, which may be the same recording twice, are left out.
    """
    groups = np.arange(len(classes)) if groups is None else groups
    pairs = (classes[:, None] == classes) & (classes >= 0) & (groups[:, None] != groups)
    return float(between[pairs].mean()) if pairs.any() else None


def relative_diversity(generated: float | None, real: float | None) -> dict:
    """Both spreads and their ratio, which is None where real media do not vary either."""
    ratio = generated / real if generated is not None and real else None
    return {"generated": generated, "real": real, "relative": ratio}


def closer_to_true(between: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray | None:
    """For each generation the share of other clips from whose true medium it is farther than from its own.

    Args:
        between: distances `(generated, true)`.
        groups: `(generated,)`; true media of its own group are not among the others.

    Returns:
        `(generated,)`, 0.5 on average by chance, 1 at best; None if one has no others.
    """
    groups = np.arange(len(between)) if groups is None else groups
    others = groups[:, None] != groups
    if not others.any(1).all():
        return None
    own = np.diagonal(between)[:, None]
    farther = (between > own) + 0.5 * (between == own)
    return (farther * others).sum(1) / others.sum(1)


def text_distances(texts: list[str]) -> np.ndarray:
    """1 for two texts that differ, 0 for the same."""
    _, numbers = np.unique(texts, return_inverse=True)
    return (numbers[:, None] != numbers).astype(float)
