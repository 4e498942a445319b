"""Noise on sounds that are conditions, to ask what another condition is worth where hearing alone does not do."""

import numpy as np


def with_noise(sound: np.ndarray, num_valid: int, decibels: float, seed: int | tuple[int, ...]) -> np.ndarray:
    """A sound with white noise, as long as it lasts.

    Args:
        sound: float32 `(samples,)`.
        num_valid: samples before the filling up with zeros; only they count and get noise.
        decibels: ratio of the sound's power to the noise's, e.g. 0 for as much noise as sound.
        seed: of the noise.

    Returns:
        float32 `(samples,)`, which may go beyond [-1, 1]; the same sound if it is silent.
    """
    noisy = np.array(sound, dtype=np.float32)
    noise = np.random.default_rng(seed).normal(size=num_valid)
    level = np.sqrt(np.mean(np.square(noisy[:num_valid], dtype=np.float64)) / np.mean(noise**2))
    noisy[:num_valid] += (noise * level * 10 ** (-decibels / 20)).astype(np.float32)
    return noisy
