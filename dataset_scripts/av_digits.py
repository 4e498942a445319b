"""AVDigits: handwritten digits (MNIST), spoken digits (FSDD) and captions of the same digit, as rows of clips.

A picture, a recording and a sentence go together if they mean the same digit, and for no other reason (the
construction of AV-MNIST, Vielzeuf et al. 2018, arXiv:1808.07275). So every direction from any of them to any other
has an answer that can be checked, ten values against a chance of 10 %, and no answer can be known by heart. A row
pairs them at random within the digit; training on its tokens with `run_training.py --pair_by label` pairs them anew in
every epoch.

    builder = AVDigits(data_dir="digits")         # folder, or the data sets of the Hub without one
    clips = prepare_clips(builder, "my_digits")   # dataset_scripts.prepare

The folder holds `mnist/{split}-images-idx3-ubyte.gz`, `mnist/{split}-labels-idx1-ubyte.gz` for the splits `train` and
`validation`, and `fsdd/{digit}_{speaker}_{index}.wav`.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from PIL import Image
from torchaudio.functional import resample

from dataset_scripts.file_names import SOURCE_SEPARATOR
from dataset_scripts.video_clips import clip_features, png_bytes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "validation")
SAMPLING_RATE = 8_000  # Hz, of FSDD
MNIST_HUB, FSDD_HUB = "ylecun/mnist", "mteb/free-spoken-digit-dataset"
ROWS_PER_PART = 32  # a shard is up to 32 such parts
RECORDING_NAME = re.compile(r"([0-9])_([^_]+)_([0-9]+)\.wav")
# "{a digit}" is the digit's word after the article that fits it.
CAPTIONS = (
    "{digit}",
    "the digit {digit}",
    "{a digit}",
    "this is {a digit}",
    "the number {digit}",
    "here is the number {digit}",
    "somebody says {digit}",
    "{a digit} written by hand",
)


@dataclass
class AVDigitsConfig(datasets.BuilderConfig):
    """Settings of `AVDigits`.

    Args:
        data_dir: folder as described above; None takes MNIST and FSDD from the Hub.
        image_size: side of the pictures, pixels; the digit is scaled by `image_size / 32` of MNIST's 28 pixels.
        clip_seconds: length of the sound; longer recordings are cut, shorter ones filled up with silence.
        num_train: rows to make for training. The first ones take each picture and each recording as it is, later
            ones vary it (see `augment`).
        augment: vary pictures (turned, scaled, moved) and recordings (speed and pitch, beginning) of
            training rows beyond the first use. Pictures and recordings of validation are always as they are.
        num_validation_recordings: so many of each digit and speaker, of the lowest indices, are for validation.
        unseen_speaker: leave this speaker out of training; the validation rows then have nobody else.
        seed: of pairing, captions and variations.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    data_dir: str | None = None
    image_size: int = 32
    clip_seconds: float = 1.0
    num_train: int = 24_000
    augment: bool = True
    num_validation_recordings: int = 5
    unseen_speaker: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.data_dir is not None:
            self.data_dir = os.fspath(self.data_dir)
        super().__post_init__()
        for name, lowest in (("image_size", 8), ("num_train", 1), ("num_validation_recordings", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise ValueError(f"{name} must be a whole number from {lowest}, got {value!r}")
        if not 0.1 <= self.clip_seconds <= 10:
            raise ValueError(f"clip_seconds must lie between 0.1 and 10, got {self.clip_seconds!r}")

    @property
    def num_samples(self) -> int:
        """Samples of sound in a row."""
        return round(self.clip_seconds * SAMPLING_RATE)


@dataclass(frozen=True)
class Recording:
    """A spoken digit: `samples` (any length,) float32 at 8 kHz."""

    name: str
    digit: int
    speaker: str
    index: int
    samples: np.ndarray


class AVDigits(datasets.GeneratorBasedBuilder):
    """Builder of rows as `clip_features` describes them, with one frame, and two columns more: `label`, the digit, and
    `speaker`.

    `clip_id` is "{split}/{number}", `video` names picture and recording, "mnist/train/17 + 3_theo_12.wav".
    """

    VERSION = datasets.Version("1.3.0")
    BUILDER_CONFIG_CLASS = AVDigitsConfig
    DEFAULT_WRITER_BATCH_SIZE = 500

    def source_folder(self) -> Path | None:
        """`data_dir`; None if the data come from the Hub.

        Raises:
            ValueError: it is not a folder with MNIST and FSDD.
        """
        if self.config.data_dir is None:
            return None
        folder = Path(self.config.data_dir).expanduser().resolve()
        for part in ("mnist", "fsdd"):
            if not (folder / part).is_dir():
                raise ValueError(
                    f"data_dir {folder} has no folder {part!r}; see dataset_scripts/av_digits.py for both"
                )
        return folder

    scanned_folder = source_folder

    def fingerprint(self) -> str:
        """Changes with the settings, the version and names and contents of the source files."""
        folder = self.source_folder()
        settings = dataclasses.asdict(self.config)
        for name in ("data_dir", "data_files", "description", "version"):
            settings.pop(name)
        files = sorted((folder / "mnist").iterdir()) + sorted((folder / "fsdd").iterdir()) if folder else []
        state = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files] or [MNIST_HUB, FSDD_HUB]
        content = json.dumps([type(self).__name__, str(self.config.version), settings, state], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def download_and_prepare(self, *args, **kwargs):
        """As in the base class; the cache follows the source files."""
        self.config_id = f"{self.config.name}-{self.fingerprint()}"
        self._cache_dir = self._output_dir = self._build_cache_dir()
        return super().download_and_prepare(*args, **kwargs)

    def _info(self):
        features = clip_features(1, self.config.num_samples)
        features |= {"label": datasets.ClassLabel(names=list(DIGITS)), "speaker": datasets.Value("string")}
        return datasets.DatasetInfo(
            description="MNIST, FSDD and captions, paired by digit.", features=datasets.Features(features)
        )

    def _split_generators(self, dl_manager):
        folder = self.source_folder()
        recordings = read_recordings(folder / "fsdd") if folder else recordings_of_hub()
        generators = []
        held_out = self._held_out(recordings)
        for split in SPLITS:
            images, labels = read_mnist(folder / "mnist", split) if folder else mnist_of_hub(split)
            chosen = [r for r in recordings if (r.name in held_out) == (split == "validation")]
            for what, present in (("picture", set(labels.tolist())), ("recording", {r.digit for r in chosen})):
                if missing := set(range(10)) - present:
                    raise ValueError(f"the split {split} has no {what} of the digits {sorted(missing)}")
            pairs = self._pairs(split, labels, np.array([recording.digit for recording in chosen]))
            arguments = {
                # Lists are what processes share out.
                "rows": [
                    range(start, min(start + ROWS_PER_PART, len(pairs)))
                    for start in range(0, len(pairs), ROWS_PER_PART)
                ],
                "split": split,
                "images": images,
                "labels": labels,
                "recordings": tuple(chosen),
                "pairs": pairs,
            }
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=arguments))
        return generators

    def _held_out(self, recordings: list[Recording]) -> set[str]:
        """The names of the recordings that are for validation.

        Raises:
            ValueError: nobody is called `unseen_speaker`.
        """
        unseen, speakers = self.config.unseen_speaker, {r.speaker for r in recordings}
        if unseen is not None:
            if unseen not in speakers:
                raise ValueError(f"unseen_speaker: there is no {unseen!r}; known are {', '.join(sorted(speakers))}")
            return {r.name for r in recordings if r.speaker == unseen}
        groups = defaultdict(list)
        for recording in sorted(recordings, key=lambda recording: recording.index):
            groups[recording.digit, recording.speaker].append(recording.name)
        return {name for names in groups.values() for name in names[: self.config.num_validation_recordings]}

    def _pairs(self, split: str, labels: np.ndarray, digits: np.ndarray) -> np.ndarray:
        """Picture, recording, and whether either has been used before, of each row of a split, `(rows, 4)` int64."""
        draw = np.random.default_rng((self.config.seed, SPLITS.index(split)))
        number = self.config.num_train if split == "train" else len(labels)
        pictures, picture_again = _walk(np.arange(len(labels)), number, draw)
        pairs = np.stack([pictures, np.zeros_like(pictures), picture_again, np.zeros_like(pictures)], axis=1)
        for digit in range(10):
            rows = np.flatnonzero(labels[pictures] == digit)
            pairs[rows, 1], pairs[rows, 3] = _walk(np.flatnonzero(digits == digit), len(rows), draw)
        return pairs

    def _generate_examples(
        self,
        rows: list[range],
        split: str,
        images: np.ndarray,
        labels: np.ndarray,
        recordings: tuple[Recording, ...],
        pairs: np.ndarray,
    ):
        config, vary = self.config, split == "train" and self.config.augment
        for row in (row for part in rows for row in part):
            draw = np.random.default_rng((config.seed, SPLITS.index(split), row))
            picture, place, picture_again, recording_again = pairs[row].tolist()
            recording, digit = recordings[place], int(labels[picture])
            image = vary_picture(images[picture], draw) if vary and picture_again else images[picture]
            samples = vary_recording(recording.samples, draw) if vary and recording_again else recording.samples
            sound = np.zeros(config.num_samples, dtype=np.float32)
            valid = min(len(samples), len(sound))
            sound[:valid] = samples[:valid]
            yield (
                row,
                {
                    "clip_id": f"{split}/{row}",
                    "video": SOURCE_SEPARATOR.join([f"mnist/{split}/{picture}", recording.name]),
                    "start": 0.0,
                    "end": len(samples) / SAMPLING_RATE,
                    "frames": [{"bytes": png_bytes(square_digit(image, config.image_size)), "path": None}],
                    "audio": sound,
                    "audio_valid": valid,
                    "sampling_rate": SAMPLING_RATE,
                    "text": caption(DIGITS[digit], draw),
                    "cues": [],
                    "label": digit,
                    "speaker": recording.speaker,
                },
            )


def caption(word: str, draw: np.random.Generator) -> str:
    """A sentence about a digit, one of `CAPTIONS`."""
    with_article = f"an {word}" if word == "eight" else f"a {word}"
    return CAPTIONS[draw.integers(len(CAPTIONS))].format_map({"digit": word, "a digit": with_article})


def _walk(members: np.ndarray, number: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`number` of some members, each once, in random order, before any comes again; and which are not the first."""
    rounds = -(-number // len(members))
    order = np.concatenate([draw.permutation(members) for _ in range(rounds)])[:number] if number else members[:0]
    return order, np.arange(number) >= len(members)


def read_mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `(number, 28, 28)` and digits `(number,)`, uint8, from the gzipped IDX files of a split.

    Raises:
        ValueError: a file is missing or no IDX file, or the two differ in number.
    """
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(f"{folder}: {split} has pictures {images.shape} but labels {labels.shape}")
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file (its format: http://yann.lecun.com/exdb/mnist)."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    dimensions = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or not dimensions:
        raise ValueError(f"{path}: no IDX file of bytes")
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).astype(np.int64)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != shape.prod():
        raise ValueError(f"{path}: says it holds {'x'.join(map(str, shape))} bytes, but there are {len(values)}")
    return values.reshape(shape)


def read_recordings(folder: Path) -> list[Recording]:
    """All recordings of a folder, by name.

    Raises:
        ValueError: a sound cannot be read, or there is none.
    """
    recordings = []
    for path in sorted(folder.glob("*.wav")):
        match = RECORDING_NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: the name must be DIGIT_SPEAKER_INDEX.wav")
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
        recordings.append(Recording(path.name, int(match[1]), match[2], int(match[3]), at_8_khz(samples, rate)))
    if not recordings:
        raise ValueError(f"{folder}: holds no DIGIT_SPEAKER_INDEX.wav")
    return recordings


def mnist_of_hub(split: str) -> tuple[np.ndarray, np.ndarray]:
    """As `read_mnist`, from the Hub, where the pictures not for training are called "test"."""
    rows = datasets.load_dataset(MNIST_HUB, split="train" if split == "train" else "test")
    return np.stack([np.asarray(image) for image in rows["image"]]), np.array(rows["label"], dtype=np.uint8)


def recordings_of_hub() -> list[Recording]:
    """As `read_recordings`, from the Hub; digit, speaker and index follow from the names of the files."""
    recordings = []
    for split in datasets.load_dataset(FSDD_HUB).values():
        for row in split.cast_column("audio", datasets.Audio(decode=False)):
            match = RECORDING_NAME.fullmatch(Path(row["audio"]["path"] or "").name)
            if match is None:
                raise ValueError(f"{FSDD_HUB}: a recording is named {row['audio']['path']!r}, not as in FSDD")
            samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32", always_2d=True)
            name = match[0]
            recordings.append(Recording(name, int(match[1]), match[2], int(match[3]), at_8_khz(samples, rate)))
    return sorted(recordings, key=lambda recording: recording.name)


def at_8_khz(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Sound `(samples, channels)` as mono at 8 kHz."""
    mono = torch.from_numpy(samples.mean(axis=1))
    return resample(mono, sampling_rate, SAMPLING_RATE).numpy()


def square_digit(image: np.ndarray, image_size: int) -> Image.Image:
    """A picture `(28, 28)` of white on black as RGB of `image_size`, with MNIST's margin of 2 pixels in 32."""
    picture = Image.fromarray(np.pad(image, 2)).convert("RGB")
    return picture if image_size == 32 else picture.resize((image_size, image_size), Image.Resampling.BICUBIC)


def vary_picture(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The digit turned by up to 12 degrees, up to a tenth larger or smaller and slanted, moved by up to a pixel."""
    angle, slant = np.deg2rad(draw.uniform(-12, 12)), draw.uniform(-0.15, 0.15)
    across, down = draw.uniform(0.9, 1.1, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[across, slant], [0.0, down]])
    centre = (np.array(image.shape[::-1]) - 1) / 2
    offset = centre - matrix @ (centre + draw.uniform(-1, 1, 2))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    picture = Image.fromarray(image)
    return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC))


def vary_recording(samples: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Faster and higher or slower and lower by up to a fifth, begun up to 30 ms later.

    Playing faster moves pitch and formants alike, as shorter vocal tracts do: other speakers, so to speak.
    """
    # Rates in steps of 400 Hz have a large common divisor with 8 kHz, which keeps the resampling filter small.
    rate = 400 * int(draw.integers(17, 25))
    samples = resample(torch.from_numpy(samples), rate, SAMPLING_RATE).numpy()
    silence = np.zeros(draw.integers(0, SAMPLING_RATE * 30 // 1000), dtype=np.float32)
    return np.concatenate([silence, np.clip(samples, -1, 1)])
