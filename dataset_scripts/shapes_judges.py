"""Judges that read the attributes of a ShapesWorld clip back from its picture, its sound or its sentence.

They are analytic: nothing is trained, and they know how the clips are rendered.  Each answers, for what a
model generated, questions such as "is this the sound of a red square that moves left?", and returns a dict
{"shape", "colour", "motion"} with values from `shapes_world.ATTRIBUTES`, or None for what cannot be told.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import torch
import torchaudio

from dataset_scripts.shapes_world import (
    ATTRIBUTES,
    COLOURS,
    DIRECTIONS,
    HUES,
    MOTIONS,
    SAMPLING_RATE,
    SHAPES,
    WORDS,
    shape_coverage,
    synthesise,
)

NOTHING = dict.fromkeys(ATTRIBUTES)

# ----------------------------------------------------------------------------------------------------------
# Picture

LEAST_CHROMA = 30.0  # grey levels; a clip without any more colourful region shows no shape
LEAST_AREA = 0.01  # of the picture
LEAST_TRAVEL = 0.10  # of the width, between the first and the last frame; less counts as still


def _template(shape: str, size: tuple[int, int], centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Coverage of one shape at the given centres (n, 2) and radii (n,): (n, height, width)."""
    x = np.arange(size[1]) + 0.5 - centres[:, 0, None, None]
    y = np.arange(size[0])[:, None] + 0.5 - centres[:, 1, None, None]
    return shape_coverage(shape, x, y, radii[:, None, None])


@lru_cache(maxsize=1)
def _unit_areas() -> dict[str, float]:
    """Area of each shape at radius 1."""
    radius = 100.0
    middle = np.array([[128.0, 128.0]])
    return {s: _template(s, (256, 256), middle, np.array([radius])).sum() / radius**2 for s in SHAPES}


def _blur(images: np.ndarray) -> np.ndarray:
    """Smooth (n, height, width) with weights 1 2 1 along both axes, so that ragged edges matter less."""
    for axis in (1, 2):
        ends = [(0, 0)] * 3
        ends[axis] = (1, 1)
        padded = np.pad(images, ends, mode="edge")
        length = images.shape[axis]
        before, after = (np.take(padded, range(k, k + length), axis=axis) for k in (0, 2))
        images = 0.5 * images + 0.25 * (before + after)
    return images


def judge_image(frames: Sequence | np.ndarray) -> dict[str, str | None]:
    """Read shape, colour and motion from the frames of a clip.

    The shape is the only colourful thing in the picture.  Its hue gives the colour and the path of its centre
    of mass the motion; the shape is the one whose outline, with the same area and centre, fits the mask best.

    Args:
        frames: a list of PIL images of one size, or a uint8 array (num_frames, height, width, 3), RGB, evenly
            spread over the clip.  A single frame has no motion to tell.

    Returns:
        {"shape", "colour", "motion"}, values None where no colourful region is found.
    """
    if not isinstance(frames, np.ndarray):
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    pixels = frames.astype(np.float64)
    count, height, width, _ = pixels.shape

    # Chroma against the background's own, because the background may be tinted a little.
    grey = np.median(pixels - pixels.mean(axis=-1, keepdims=True), axis=(0, 1, 2))
    tint = pixels - pixels.mean(axis=-1, keepdims=True) - grey
    chroma = tint.max(axis=-1) - tint.min(axis=-1)
    full = np.percentile(chroma, 97)
    mask = np.clip((chroma / max(full, 1e-9) - 0.25) / 0.5, 0, 1)
    areas = mask.sum(axis=(1, 2))
    seen = areas > LEAST_AREA * height * width
    if full < LEAST_CHROMA or not seen.any():
        return dict(NOTHING)

    # The mean hue as an angle in the plane of the colour circle, where colourful pixels weigh more.
    weighted = (tint * mask[..., None]).sum(axis=(0, 1, 2))
    angle = np.arctan2(np.sqrt(3) * (weighted[1] - weighted[2]), 2 * weighted[0] - weighted[1] - weighted[2])
    colour = min(COLOURS, key=lambda name: abs((np.degrees(angle) - HUES[name] + 180) % 360 - 180))

    mask, areas = mask[seen], areas[seen]
    centre_x = (mask * (np.arange(width) + 0.5)).sum(axis=(1, 2)) / areas
    centre_y = (mask * (np.arange(height) + 0.5)[:, None]).sum(axis=(1, 2)) / areas
    centres = np.stack([centre_x, centre_y], axis=1)

    motion = None
    if len(areas) > 1:
        times = np.flatnonzero(seen) / (count - 1)
        times = times - times.mean()
        travel = (times @ centres) / (times @ times) / width  # slope of the straight line through the centres
        if np.abs(travel).max() < LEAST_TRAVEL:
            motion = "still"
        else:
            motion = max(MOTIONS, key=lambda name: np.dot(DIRECTIONS[name], travel))

    observed = _blur(mask)
    observed = observed - observed.mean(axis=(1, 2), keepdims=True)
    fits = {}
    for shape, unit_area in _unit_areas().items():
        expected = _blur(_template(shape, (height, width), centres, np.sqrt(areas / unit_area)))
        expected = expected - expected.mean(axis=(1, 2), keepdims=True)
        norms = np.sqrt((observed**2).sum(axis=(1, 2)) * (expected**2).sum(axis=(1, 2)))
        fits[shape] = ((observed * expected).sum(axis=(1, 2)) / np.maximum(norms, 1e-9)).mean()
    return {"shape": max(fits, key=fits.get), "colour": colour, "motion": motion}


# ----------------------------------------------------------------------------------------------------------
# Sound

MEL_BINS, FFT_SIZE = 96, 1024  # at SAMPLING_RATE
TIME_STEPS = 48  # spread over every clip, so that its length in seconds does not matter
RANGE_DECIBELS = 30.0  # what lies further below the loudest band of its frame is noise
DETUNINGS = (-0.4, 0.0, 0.4)  # semitones


@lru_cache(maxsize=1)
def _mel_filters() -> np.ndarray:
    filters = torchaudio.functional.melscale_fbanks(
        FFT_SIZE // 2 + 1, 60.0, 7_800.0, n_mels=MEL_BINS, sample_rate=SAMPLING_RATE
    )
    return filters.numpy()


def _sound_features(waveform: np.ndarray) -> np.ndarray:
    """Describe which bands sound when: float32 (samples,) to a vector (TIME_STEPS * MEL_BINS,) of length one.

    Every frame is taken relative to its own loudest band, which removes level and envelope, and then weighted
    by how loud it is, so that fading ends and gaps count for little.  NumPy does it all: on such small
    inputs the threads of torch cost more than they bring as soon as anything else runs on the machine.
    """
    starts = np.linspace(0, len(waveform), TIME_STEPS).round().astype(int)  # of windows, with the padding
    padded = np.pad(waveform, FFT_SIZE // 2)
    windows = padded[starts[:, None] + np.arange(FFT_SIZE)] * np.hanning(FFT_SIZE).astype(np.float32)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2 @ _mel_filters()
    peak = np.maximum(power.max(axis=1, keepdims=True), 1e-9)
    decibels = 10 * np.log10(np.maximum(power / peak, 1e-9))
    heights = np.maximum(decibels + RANGE_DECIBELS, 0)
    heights -= heights.mean(axis=1, keepdims=True)
    heights /= np.maximum(np.linalg.norm(heights, axis=1, keepdims=True), 1e-6)
    heights *= (peak / peak.max()) ** 0.25
    return (heights / np.linalg.norm(heights)).ravel().astype(np.float32)


@lru_cache(maxsize=1)
def _sound_templates() -> tuple[list[dict[str, str]], np.ndarray]:
    """Attributes and features (number, TIME_STEPS * MEL_BINS) of all clean tones at a few detunings."""
    attributes, features = [], []
    for shape, colour, motion in product(SHAPES, COLOURS, MOTIONS):
        for detuning in DETUNINGS:
            attributes.append({"shape": shape, "colour": colour, "motion": motion})
            tone = synthesise(attributes[-1], detune_semitones=detuning)
            features.append(_sound_features(tone.astype(np.float32)))
    return attributes, np.stack(features)


def judge_audio(waveform: torch.Tensor | np.ndarray, sampling_rate: int) -> dict[str, str | None]:
    """Read shape, colour and motion from the sound of a clip: the likest of all clean tones.

    The first call renders the tones to compare with, which takes a second or two.

    Args:
        waveform: floats (samples,), or (1, samples) or (channels, samples), which are mixed; any level.
        sampling_rate: of the waveform, in Hz.

    Returns:
        {"shape", "colour", "motion"}; all None for silence, for a sound shorter than 0.1 s and for one
        that holds values that are not finite.
    """
    waveform = torch.as_tensor(waveform, dtype=torch.float32).detach().cpu().numpy()
    if waveform.ndim > 1:
        waveform = waveform.reshape(-1, waveform.shape[-1]).mean(axis=0)
    if len(waveform) < 0.1 * sampling_rate or not np.isfinite(waveform).all() or np.abs(waveform).max() < 1e-5:
        return dict(NOTHING)
    if sampling_rate != SAMPLING_RATE:
        resampled = torchaudio.functional.resample(torch.tensor(waveform), sampling_rate, SAMPLING_RATE)
        waveform = resampled.numpy()
    attributes, templates = _sound_templates()
    features = _sound_features(waveform / np.abs(waveform).max())
    return dict(attributes[int((templates * features).sum(axis=1).argmax())])


# ----------------------------------------------------------------------------------------------------------
# Sentence

# Single words that tell each motion; every phrase of the renderer holds one of them.
MOTION_WORDS = {
    "left": ("left", "leftward", "leftwards"),
    "right": ("right", "rightward", "rightwards"),
    "up": ("up", "upward", "upwards", "rises", "rising"),
    "down": ("down", "downward", "downwards", "sinks", "sinking", "falls", "falling"),
    "still": ("still", "rests", "resting", "not", "motionless"),
}


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, tuple[str, str]]:
    """Word to (attribute, value)."""
    table = {}
    for attribute, values in ATTRIBUTES.items():
        for value in values:
            phrases = MOTION_WORDS[value] if attribute == "motion" else WORDS[value]
            # "plus sign" is known by its first word.
            table.update({phrase.split()[0]: (attribute, value) for phrase in phrases})
    return table


def judge_text(text: str) -> dict[str, str | None]:
    """Read shape, colour and motion from a sentence by the words it contains, whatever their order.

    Returns:
        {"shape", "colour", "motion"}; None for an attribute that is not named, or is named with two values.
    """
    named = {attribute: set() for attribute in ATTRIBUTES}
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _vocabulary():
            attribute, value = _vocabulary()[word]
            named[attribute].add(value)
    return {attribute: values.pop() if len(values) == 1 else None for attribute, values in named.items()}


# ----------------------------------------------------------------------------------------------------------
# All of them


def judge(modality: str, value, sampling_rate: int | None = None) -> dict[str, str | None]:
    """Judge a value of any modality.

    Args:
        modality: "image", "audio" or "text".
        value: what `judge_image`, `judge_audio` or `judge_text` takes.
        sampling_rate: in Hz, needed for "audio".

    Raises:
        ValueError: another modality, or audio without a sampling rate.
    """
    if modality == "image":
        return judge_image(value)
    if modality == "text":
        return judge_text(value)
    if modality != "audio":
        raise ValueError(f"modality is {modality!r}; the judges know 'image', 'audio' and 'text'.")
    if sampling_rate is None:
        raise ValueError("sampling_rate is missing; the audio judge needs it (Hz).")
    return judge_audio(value, sampling_rate)


def accuracy(predictions: Sequence[dict], truths: Sequence[dict]) -> dict[str, float]:
    """Share of right values, from 0 to 1; None is never right.

    Returns:
        {"shape", "colour", "motion"}, "mean" over these three, and "all": all three right.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    if len(predictions) != len(truths) or not truths:
        raise ValueError(f"{len(predictions)} predictions for {len(truths)} truths; both must be as many and not 0.")
    right = np.array([[p[a] == t[a] for a in ATTRIBUTES] for p, t in zip(predictions, truths, strict=True)])
    result = {attribute: float(right[:, index].mean()) for index, attribute in enumerate(ATTRIBUTES)}
    return {**result, "mean": float(right.mean()), "all": float(right.all(axis=1).mean())}
