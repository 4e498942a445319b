"""From what `evaluate` hands over to tensors: `MetricInfo` allows no format for pictures and lists."""

import numpy as np
import torch


def stack_pictures(metric: str, predictions: list, references: list) -> tuple[torch.Tensor, torch.Tensor]:
    """PIL images to uint8 `(pictures, 3, height, width)` each.

    Raises:
        ValueError: naming the metric, for pictures of different sizes.
    """
    pictures = ([np.asarray(image.convert("RGB")) for image in images] for images in (predictions, references))
    found, true = _stack(metric, "pictures must have one size", *pictures)
    return found.movedim(-1, 1), true.movedim(-1, 1)


def stack_waveforms(metric: str, predictions: list, references: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of samples to float32 `(clips, samples)` each.

    Raises:
        ValueError: naming the metric, for waveforms of different lengths.
    """
    waveforms = ([np.asarray(item, dtype=np.float32) for item in items] for items in (predictions, references))
    return _stack(metric, "waveforms must have one length", *waveforms)


def _stack(metric: str, rule: str, *sides: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
    shapes = {array.shape for side in sides for array in side}
    if len(shapes) != 1:
        raise ValueError(f"{metric}: all {rule}, got {', '.join(map(str, sorted(shapes))) or 'none'}")
    return tuple(torch.from_numpy(np.stack(side)) for side in sides)
