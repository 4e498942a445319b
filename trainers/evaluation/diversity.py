"""How varied generations are beside real media, and whether they come close to the true ones.

Pictures are compared by the root mean square of their pixels' differences (grey levels from 0 to 1), sounds by the
mean absolute difference of their log-mel spectrograms (nats), texts by whether they are the same.
"""

import numpy as np
import torch
import torchaudio

MELS, FFT_SIZE, LOG_FLOOR = 40, 512, 1e-3


def features(modality: str, media: list, sampling_rate: int | None, size: tuple[int, int] | None) -> torch.Tensor:
    """Pictures or sounds as vectors `(media, values)` float32.

    Args:
        modality: "image" or "audio".
        media: clips of PIL frames, or waveforms.
        sampling_rate: of the waveforms, Hz.
        size: width and height to bring pictures to.
    """
    if modality == "image":
        clips = [np.stack([np.asarray(frame.convert("RGB").resize(size)) for frame in clip]) for clip in media]
        return torch.from_numpy(np.stack(clips)).flatten(1).float() / 255
    waveforms = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(sound)) for sound in media], True).float()
    mel = torchaudio.transforms.MelSpectrogram(sampling_rate, FFT_SIZE, n_mels=MELS, power=1.0, f_min=40.0)
    return (mel(waveforms) + LOG_FLOOR).log().flatten(1)


def distances(modality: str, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Distance of each to each, `(first, second)`; see above for units."""
    if first.shape[1] != second.shape[1]:  # sounds of other lengths: as far as both go
        frames = min(first.shape[1], second.shape[1]) // MELS
        first, second = (part.unflatten(1, (MELS, -1))[..., :frames].flatten(1) for part in (first, second))
    if modality == "image":
        return (torch.cdist(first, second) / first.shape[1] ** 0.5).numpy()
    return (torch.cdist(first, second, p=1) / first.shape[1]).numpy()


def spread(between: np.ndarray, classes: np.ndarray) -> float | None:
    """Mean distance of two different media of one class, from the distances of all; None if no class has two."""
    pairs = (classes[:, None] == classes) & ~np.eye(len(classes), dtype=bool)
    return float(between[pairs].mean()) if pairs.any() else None


def relative_diversity(generated: float | None, real: float | None) -> dict:
    """Both spreads and their ratio, which is None where real media do not vary either."""
    ratio = generated / real if generated is not None and real else None
    return {"generated": generated, "real": real, "relative": ratio}


def closer_to_true(between: np.ndarray) -> np.ndarray | None:
    """For each generation the share of other clips from whose true medium it is farther than from its own.

    Args:
        between: distances `(generated, true)`.

    Returns:
        `(generated,)`, 0.5 on average by chance, 1 at best; None for a single clip.
    """
    if len(between) < 2:
        return None
    own = np.diagonal(between)[:, None]
    # Its own, equally far from itself, counts half.
    return ((between > own).sum(1) + 0.5 * ((between == own).sum(1) - 1)) / (len(between) - 1)


def text_distances(texts: list[str]) -> np.ndarray:
    """1 for two texts that differ, 0 for the same."""
    _, numbers = np.unique(texts, return_inverse=True)
    return (numbers[:, None] != numbers).astype(float)
