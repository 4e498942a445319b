"""ShapesWorld: short rendered clips in which picture, sound and sentence tell the same story.

Every clip has three attributes of five values each.  A coloured shape moves from the middle of a plain
background to one of its sides; the timbre of the sound follows from the shape, its pitch from the colour and the
time when it glides up from the motion; a subtitle describes all three in varied words.  Everything else (exact
place and size, background, level, noise, wording) varies freely, so a model that goes from one modality to
another has to carry over the attributes and is free in the rest.

The picture is a grid of 3 by 3 cells, a shape fills one of them: with an image tokenizer whose tokens cover a cell
each, the same token means the same thing wherever it stands.

A fifth of the 125 combinations of attributes never occurs in the split "train" and makes up the whole of
"validation": a right answer there was composed, not remembered.

`write_shapes_world` renders ordinary .mp4 and .srt files, and `ShapesWorld` reads them back as `VideoClips`.
"""

import colorsys
import json
import multiprocessing
import os
import re
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from dataset_scripts.media import free_decoders
from dataset_scripts.video_clips import VideoClips, VideoClipsConfig

SHAPES = ("disc", "square", "triangle", "cross", "ring")
COLOURS = ("red", "yellow", "green", "blue", "magenta")
MOTIONS = ("left", "right", "up", "down", "still")
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "motion": MOTIONS}
SPLITS = ("train", "validation")

CLIP_SECONDS = 2.0
FRAME_RATE = 10  # frames per second
FRAME_SIZE = 96  # pixels, width and height
SAMPLING_RATE = 16_000  # Hz
PARAMETERS_FILE = ".shapes_world.json"  # hidden, so that a reader of the videos passes over it
FORMAT_VERSION = 2  # to be raised whenever the same seed would give other clips

HUES = {"red": 0, "yellow": 56, "green": 125, "blue": 225, "magenta": 305}  # degrees
# Steps along (x, y); y points down.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}

# Partials of each timbre: (multiple of the fundamental, amplitude).  The sets differ in which bands hold
# energy at all, because a coarse spectrogram keeps that and loses phase and fine spectral slope.
PARTIALS = {
    "disc": ((1, 1.0),),
    "square": tuple((n, 1 / n**0.7) for n in (1, 3, 5, 7, 9)),
    "triangle": ((1, 1.0), (2, 0.8), (4, 0.7), (8, 0.5)),
    "cross": tuple((n, 1 / n**0.25) for n in range(1, 13)),
    "ring": ((1, 0.5), (2.76, 1.0), (5.4, 0.8), (8.93, 0.4)),  # the overtones of a struck bar
}
# The five pitches of the colours, and above them the same five again, where the pitch glides to and back.
PITCHES = {colour: 220.0 * 2 ** (5 * index / 12) for index, colour in enumerate(COLOURS)}  # Hz
GLIDE_SEMITONES = 21.0
# Fifth of the clip in which the pitch is up there; a shape at rest makes no glide.
GLIDE_FIFTH = {"left": 1, "right": 2, "up": 3, "down": 4, "still": None}
HIGHEST_PARTIAL = 7_400.0  # Hz; partials fade out towards it, well clear of aliasing

WORDS = {
    "disc": ("disc", "circle"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "red": ("red", "crimson"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "magenta": ("magenta", "pink"),
}
MOTION_PHRASES = {
    "left": ("moves left", "drifts to the left", "slides left"),
    "right": ("moves right", "drifts to the right", "slides right"),
    "up": ("moves up", "floats up", "rises up"),
    "down": ("moves down", "sinks down", "falls down"),
    "still": ("stays still", "rests still", "keeps still"),
}
PARTICIPLES = {"moves": "moving", "drifts": "drifting", "slides": "sliding"}
PARTICIPLES |= {"rises": "rising", "floats": "floating", "sinks": "sinking", "falls": "falling"}
PARTICIPLES |= {"stays": "staying", "rests": "resting", "keeps": "keeping"}
# "{a colour}" is the colour word after the article that fits it.
PATTERNS = (
    "there is {a colour} {shape} and it {moves}",
    "{a colour} {shape} {moves} in this short clip",
    "in this clip {a colour} {shape} {moves}",
    "the {shape} is {colour} and it {moves}",
    "we see {a colour} {shape} that {moves}",
    "here a {shape} of {colour} colour {moves}",
    "a {shape} coloured {colour} {moves} before the camera",
    "what {moves} here is {a colour} {shape}",
    "the picture shows {a colour} {shape} {moving}",
    "watch the {colour} {shape} as it {moves}",
    "{moving} over the background is {a colour} {shape}",
    "on a plain background the {colour} {shape} {moves}",
)

NAME_PATTERN = re.compile(rf"_({'|'.join(COLOURS)})_({'|'.join(SHAPES)})_({'|'.join(MOTIONS)})(?![a-z])")


# ----------------------------------------------------------------------------------------------------------
# Which clip has which attributes


def combinations(split: str) -> list[dict[str, str]]:
    """The combinations of attributes that a split draws from, in a fixed order.

    "train" has 100 and "validation" the 25 others.  In both, every value of every attribute occurs equally
    often, and so does every pair of values: no pair is new in "validation", only the triples are.

    Raises:
        ValueError: `split` is neither "train" nor "validation".
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; ShapesWorld has {' and '.join(SPLITS)}.")
    held_out = split == "validation"
    return [
        {"shape": SHAPES[s], "colour": COLOURS[c], "motion": MOTIONS[m]}
        for s, c, m in product(range(5), repeat=3)
        if ((s + c + m) % 5 == 0) == held_out
    ]


def clip_attributes(split: str, index: int, seed: int = 0) -> dict[str, str]:
    """Attributes of clip `index` of a split: each 100 (or 25) clips have every combination once."""
    choices = combinations(split)
    rounds, place = divmod(index, len(choices))
    order = np.random.default_rng([seed, SPLITS.index(split), rounds, 1]).permutation(len(choices))
    return choices[order[place]]


def clip_name(split: str, index: int, seed: int = 0) -> str:
    """Path of a clip inside the folder, such as "train/00012_red_square_left.mp4"."""
    attributes = clip_attributes(split, index, seed)
    return f"{split}/{index:05d}_{attributes['colour']}_{attributes['shape']}_{attributes['motion']}.mp4"


def attributes_from_name(name: str) -> dict[str, str]:
    """Read the attributes back from a file name, a path or a clip id that contains one.

    Args:
        name: for example "train/00012_red_square_left.mp4#0".

    Returns:
        {"shape": "square", "colour": "red", "motion": "left"}.

    Raises:
        ValueError: the name does not end in colour, shape and motion.
    """
    found = NAME_PATTERN.findall(str(name))
    if not found:
        raise ValueError(f"{name!r} is not the name of a ShapesWorld clip (NUMBER_COLOUR_SHAPE_MOTION.mp4).")
    colour, shape, motion = found[-1]
    return {"shape": shape, "colour": colour, "motion": motion}


# ----------------------------------------------------------------------------------------------------------
# Picture


def ease(progress: np.ndarray | float) -> np.ndarray | float:
    """From 0 to 1 with rest at both ends; `progress` outside of them stays there."""
    progress = np.clip(progress, 0.0, 1.0)
    return progress * progress * (3 - 2 * progress)


def shape_coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """How much of each pixel a shape covers, from its signed distance to the outline: an antialiased mask.

    Args:
        shape: one of SHAPES.
        x, y: pixel centres relative to the centre of the shape, in pixels, broadcastable; y points down.
        radius: of the circle around the shape (the square and the cross stay a little inside it), in pixels.

    Returns:
        Float array of the broadcast shape, 0 outside and 1 inside.  The centre of mass is at the origin.
    """
    across, along = np.abs(x), np.abs(y)
    if shape == "disc":
        distance = np.hypot(x, y) - 0.92 * radius
    elif shape == "square":
        distance = np.maximum(across, along) - 0.84 * radius
    elif shape == "triangle":  # point up; the slanted sides have normals 30 degrees above the horizontal
        distance = np.maximum(y, 0.866 * across - 0.5 * y) - 0.56 * radius
    elif shape == "cross":
        long, thick = radius, 0.3 * radius
        distance = np.minimum(np.maximum(across - long, along - thick), np.maximum(along - long, across - thick))
    elif shape == "ring":
        distance = np.abs(np.hypot(x, y) - 0.76 * radius) - 0.24 * radius
    else:
        raise ValueError(f"shape is {shape!r}; known shapes are {', '.join(SHAPES)}.")
    return np.clip(0.5 - distance, 0.0, 1.0)


def render_frames(attributes: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """Render the picture of one clip: uint8 (CLIP_SECONDS * FRAME_RATE, FRAME_SIZE, FRAME_SIZE, 3), RGB."""
    count = round(CLIP_SECONDS * FRAME_RATE)
    hue = (HUES[attributes["colour"]] + rng.uniform(-5, 5)) / 360 % 1.0
    colour = 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.9, 1.0), rng.uniform(0.85, 1.0)))

    # Nearly grey.  Few draws are turned down: those too near the colour.
    while True:
        grey = rng.uniform(40, 55) if rng.random() < 0.5 else rng.uniform(200, 215)
        background = grey + rng.uniform(-2, 2, 3)
        if np.linalg.norm(background - colour) > 120:
            break
    pixel = np.arange(FRAME_SIZE) + 0.5

    radius = rng.uniform(0.145, 0.16) * FRAME_SIZE
    start = (0.5 + rng.uniform(-0.008, 0.008, 2)) * FRAME_SIZE
    direction = np.array(DIRECTIONS[attributes["motion"]], dtype=float)
    travel = rng.uniform(0.325, 0.341) * FRAME_SIZE
    noise = rng.uniform(0.5, 2.0)  # grey levels

    frames = np.empty((count, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)
    for index in range(count):
        seconds = (index + 0.5) / FRAME_RATE
        centre = start + direction * travel * ease((seconds - 0.3) / 0.4)
        mask = shape_coverage(attributes["shape"], pixel[None, :] - centre[0], pixel[:, None] - centre[1], radius)
        frame = background + mask[..., None] * (colour - background)
        frame += noise * rng.standard_normal((FRAME_SIZE, FRAME_SIZE, 1), dtype=np.float32)
        frames[index] = np.clip(np.rint(frame), 0, 255)
    return frames


# ----------------------------------------------------------------------------------------------------------
# Sound


def glide_contour(motion: str, progress: np.ndarray) -> np.ndarray:
    """Pitch above the colour's own in semitones, at `progress` from 0 to 1: up and back again, or zero."""
    fifth = GLIDE_FIFTH[motion]
    if fifth is None:
        return np.zeros_like(progress)
    up, down = (ease((progress - turn / 5) / 0.04 + 0.5) for turn in (fifth, fifth + 1))
    return GLIDE_SEMITONES * (up - down if fifth < 4 else up)


def synthesise(
    attributes: dict[str, str],
    detune_semitones: float = 0.0,
    partial_gains: np.ndarray | None = None,
    phases: np.ndarray | None = None,
) -> np.ndarray:
    """The bare tone of a clip: float64 (CLIP_SECONDS * SAMPLING_RATE,), its mean square is one.

    Args:
        attributes: shape, colour and motion.
        detune_semitones: shift of the pitch as a whole.
        partial_gains: factors on the amplitudes of the partials, one each.
        phases: starting phases of the partials in radians, one each.
    """
    count = round(CLIP_SECONDS * SAMPLING_RATE)
    progress = (np.arange(count) + 0.5) / count
    semitones = glide_contour(attributes["motion"], progress) + detune_semitones
    frequency = PITCHES[attributes["colour"]] * 2 ** (semitones / 12)
    turns = 2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE
    wave = np.zeros(count)
    for index, (multiple, amplitude) in enumerate(PARTIALS[attributes["shape"]]):
        gain = 1.0 if partial_gains is None else partial_gains[index]
        phase = 0.0 if phases is None else phases[index]
        audible = np.clip((HIGHEST_PARTIAL - multiple * frequency) / 400, 0, 1)
        wave += audible * amplitude * gain * np.sin(multiple * turns + phase)
    return wave / np.sqrt(np.mean(wave**2))


def render_sound(attributes: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """Render the sound of one clip: float32 (CLIP_SECONDS * SAMPLING_RATE,), mono, within -1 to 1."""
    partials = len(PARTIALS[attributes["shape"]])
    wave = synthesise(
        attributes,
        detune_semitones=rng.uniform(-0.1, 0.1),
        partial_gains=10 ** (rng.uniform(-0.5, 0.5, partials) / 20),
        phases=rng.uniform(0, 2 * np.pi, partials),
    )
    seconds = np.arange(len(wave)) / SAMPLING_RATE
    attack, release = rng.uniform(0.02, 0.12), rng.uniform(0.05, 0.25)
    envelope = np.minimum(1, seconds / attack) * np.minimum(1, (CLIP_SECONDS - seconds) / release)
    swell = 1 + rng.uniform(0, 0.1) * np.sin(2 * np.pi * rng.uniform(1, 4) * seconds + rng.uniform(0, 2 * np.pi))

    # Background noise between white and dull, 30 dB or so below the tone.
    white = rng.standard_normal(len(wave))
    noise = white + rng.uniform(0, 0.9) * np.convolve(white, 0.8 ** np.arange(24))[: len(wave)]
    noise *= 10 ** (rng.uniform(-34, -27) / 20) / np.sqrt(np.mean(noise**2))

    level = 10 ** (rng.uniform(-19, -17) / 20)
    return np.clip(level * (wave * envelope * swell + noise), -1, 1).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------
# Sentence


def describe(attributes: dict[str, str], rng: np.random.Generator) -> str:
    """A lower-case sentence of 6 to 14 words without punctuation that names all three attributes."""

    def pick(options):
        return options[rng.integers(len(options))]

    shape, colour = pick(WORDS[attributes["shape"]]), pick(WORDS[attributes["colour"]])
    moves = moving = pick(MOTION_PHRASES[attributes["motion"]])
    for finite, participle in PARTICIPLES.items():
        moving = moving.replace(finite, participle)
    with_article = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour}"
    return pick(PATTERNS).format_map(
        {"shape": shape, "colour": colour, "a colour": with_article, "moves": moves, "moving": moving}
    )


# ----------------------------------------------------------------------------------------------------------
# Files


def encode_clip(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """Write an .mp4 with H.264 video and AAC sound; the same input gives the same bytes.

    Args:
        path: the file to write.
        frames: uint8 (num_frames, height, width, 3), RGB, FRAME_RATE per second; height and width are even.
        sound: float32 (samples,), mono, SAMPLING_RATE per second.
    """
    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        # Threads, and x264's macroblock tree on pictures as small as these, give other bytes now and then.
        options = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLING_RATE, layout="mono")
        audio.bit_rate = 64_000
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, len(sound), 1024):  # the frame length of AAC
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLING_RATE, start, Fraction(1, SAMPLING_RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def _subtitle(sentence: str) -> str:
    milliseconds = round(CLIP_SECONDS * 1000)
    end = f"00:00:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"
    return f"1\n00:00:00,000 --> {end}\n{sentence}\n"


def write_clip(folder: Path, split: str, index: int, seed: int = 0) -> bool:
    """Render one clip and its subtitle into `folder` unless both are there.

    Both are written under a hidden name and then renamed, the video last: a visible video is a finished one.

    Returns:
        Whether anything was written.
    """
    path = Path(folder) / clip_name(split, index, seed)
    subtitle = path.with_suffix(".srt")
    if path.exists() and subtitle.exists():
        return False
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    attributes = clip_attributes(split, index, seed)
    sentence = describe(attributes, rng)
    frames, sound = render_frames(attributes, rng), render_sound(attributes, rng)

    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.partial")
    unfinished.write_text(_subtitle(sentence), encoding="utf-8")
    os.replace(unfinished, subtitle)
    encode_clip(unfinished, frames, sound)
    os.replace(unfinished, path)
    return True


def _check_parameters(folder: Path, parameters: dict) -> None:
    """Compare with what the folder was written with, or note it down in a new folder."""
    file = folder / PARAMETERS_FILE
    if file.exists():
        written = json.loads(file.read_text(encoding="utf-8"))
        for field, value in parameters.items():
            if written.get(field) != value:
                raise ValueError(
                    f"{folder} was written with {field}={written.get(field)!r}, but {field}={value!r} "
                    "is asked for. Ask for the same, name another folder, or delete this one."
                )
        return
    for split in SPLITS:
        if (folder / split).exists():
            raise ValueError(
                f"{folder / split} exists, but without the {PARAMETERS_FILE} of a ShapesWorld beside it. "
                "Name another folder, or delete this one."
            )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{PARAMETERS_FILE}.{os.getpid()}"
    unfinished.write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, file)


def _write_task(folder: Path, seed: int, task: tuple[str, int]) -> bool:
    return write_clip(folder, *task, seed=seed)


def write_shapes_world(
    folder: str | Path,
    num_train: int = 2500,
    num_validation: int = 200,
    seed: int = 0,
    num_proc: int | None = None,
) -> Path:
    """Render the data set as train/*.mp4, validation/*.mp4 and an .srt beside each.

    A clip depends on the seed, its split and its index only.  Finished clips are kept, so a run
    that was cut off goes on where it stopped.

    Args:
        folder: where to write; made if missing.
        num_train: clips of the split "train", drawn from 100 combinations of attributes.
        num_validation: clips of the split "validation", drawn from the 25 others.
        seed: of everything that varies.
        num_proc: processes to render with; all cores by default.

    Returns:
        The folder.

    Raises:
        ValueError: a number is negative, or the folder was written with other parameters
            or by something else.
    """
    folder = Path(folder)
    for field, value in (("num_train", num_train), ("num_validation", num_validation), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{field} is {value}; it must be 0 or more.")
    parameters = {
        "format_version": FORMAT_VERSION,
        "num_train": num_train,
        "num_validation": num_validation,
        "seed": seed,
    }
    _check_parameters(folder, parameters)

    tasks = []
    for split, count in zip(SPLITS, (num_train, num_validation), strict=True):
        (folder / split).mkdir(exist_ok=True)
        for leftover in (folder / split).glob(".*.partial"):
            if time.time() - leftover.stat().st_mtime > 60:  # a younger one may be in use
                leftover.unlink(missing_ok=True)
        present = {path.name for path in (folder / split).iterdir()}
        for index in range(count):
            name = Path(clip_name(split, index, seed))
            if name.name not in present or f"{name.stem}.srt" not in present:
                tasks.append((split, index))
    if not tasks:
        return folder

    processes = min(num_proc or os.cpu_count() or 1, len(tasks))
    write = partial(_write_task, folder, seed)
    progress = partial(tqdm, total=len(tasks), desc="Rendering ShapesWorld", unit="clip")
    if processes <= 1:
        for _ in progress(map(write, tasks)):
            pass
        return folder
    # Workers use NumPy and PyAV only, so that forking is safe; it saves them importing everything again.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    free_decoders()
    with multiprocessing.get_context(method).Pool(processes) as pool:
        for _ in progress(pool.imap_unordered(write, tasks, chunksize=4)):
            pass
    return folder


# ----------------------------------------------------------------------------------------------------------
# Data set builder


@dataclass
class ShapesWorldConfig(VideoClipsConfig):
    """VideoClipsConfig with a small default size, and the parameters of `write_shapes_world`."""

    num_frames: int = 4
    image_size: int = 48
    sampling_rate: int = SAMPLING_RATE
    clip_seconds: float = CLIP_SECONDS
    num_train: int = 2500
    num_validation: int = 200
    seed: int = 0


class ShapesWorld(VideoClips):
    """Writes the videos to `data_dir` where they are missing and reads them like any other videos."""

    BUILDER_CONFIG_CLASS = ShapesWorldConfig

    def source_folder(self) -> Path:
        """The folder with the videos, which are rendered first where they are missing.

        Raises:
            ValueError: no `data_dir` was given, or it was written with other parameters.
        """
        config = self.config
        if config.data_dir is None:
            raise ValueError("data_dir must be set to the folder that ShapesWorld writes its videos to")
        folder = Path(config.data_dir).expanduser()
        return write_shapes_world(folder, config.num_train, config.num_validation, config.seed)
