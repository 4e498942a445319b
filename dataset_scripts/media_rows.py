"""MediaRows: pictures, sounds, videos and texts from anywhere as clips, of which each may lack a modality.

The columns are those of `VideoClips` and so are the rules for broken files, but a row has only what its sample has: an
image with a caption has no sound, a sound with a text has no frames.  What is absent is an empty list (`frames`,
`audio`) or an empty string (`text`).  Samples are, by what `data_dir` is,

- in a folder: the rows of each `metadata.jsonl` or `metadata.csv` (`file_name` and `*_file_name` relative to it, as in
  the folder layouts of `datasets`), all other media files by their stem ("dog.png", "dog.wav", "dog.txt" are one
  sample), and in .tar files the members of one stem (WebDataset);
- the rows of a data set that was saved by `save_to_disk`, of a folder of Parquet files, or of a data set on the Hub.

A still picture is repeated for every frame.  A video gives several rows and so does a sound without pictures of its
own; a text without times belongs to all of them.

    builder = MediaRows(data_dir="user/captioned_pictures", text_column="caption")
    dataset = prepare_clips(builder, "my_clips")  # dataset_scripts.prepare
"""

import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dataset_scripts.audio_reader import AudioReader
from dataset_scripts.media import (
    MediaError,
    NoVideoError,
    check_size,
    crop_square,
    cut_windows,
    probe,
    sound_seconds,
)
from dataset_scripts.media_sources import KINDS, scan_samples
from dataset_scripts.media_tables import Tables, is_data_set, open_tables
from dataset_scripts.metadata_files import text_entry
from dataset_scripts.transcripts import (
    MAX_TEXT_BYTES,
    NO_CUES,
    SUBTITLE_SUFFIXES,
    Transcript,
    embedded_transcript,
    from_metadata,
    read_transcript,
)
from dataset_scripts.video_clips import (
    SourceFolder,
    VideoClips,
    VideoClipsConfig,
    clip_features,
    png_bytes,
    read_windows,
)

# Others hand the file to another program (EPS) or are containers for anything.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
MAX_PICTURE_PIXELS = 70_000_000  # of four bytes: beside the libraries, a process then takes less than a gigabyte
COPIED_BYTES = 1 << 20
MAX_MEMBER_BYTES = 10**9  # of a file in a zip file, which may be a thousandth as large


@dataclass
class MediaRowsConfig(VideoClipsConfig):
    """Settings of `MediaRows`: those of `VideoClipsConfig` and where each modality is.

    Args:
        data_dir: a folder, or the name of a data set on the Hub.
        image_column, audio_column, video_column: column of the data set; column of metadata without its
            "_file_name"; suffix in tar files.  None takes the first that is of the kind, and of picture and video the
            video.
        text_column: column of the data set or metadata, key in .json files, suffix of text files; None takes the
            first of text, caption, transcription, transcript and sentence.  Of several texts the first counts.
        subset: which configuration of a data set on the Hub.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    image_column: str | None = None
    audio_column: str | None = None
    video_column: str | None = None
    text_column: str | None = None
    subset: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("image_column", "audio_column", "video_column", "text_column", "subset"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name} must be a name or None, got {value!r}")

    @property
    def columns(self) -> dict[str, str | None]:
        """The column of each kind of media and of the text."""
        return {kind: getattr(self, f"{kind}_column") for kind in (*KINDS, "text")}


class MediaRows(VideoClips):
    """Builder of the rows described at the top of this module."""

    VERSION = datasets.Version("1.2.0")
    BUILDER_CONFIG_CLASS = MediaRowsConfig
    _tables: Tables | None = None

    def read_source(self) -> SourceFolder:
        name = self.config.data_dir
        if name is None:
            raise ValueError("data_dir must be set to a folder or to the name of a data set on the Hub")
        folder = Path(name).expanduser().resolve()
        if is_data_set(folder, name):
            self._tables = open_tables(folder, name, self.config.subset, self.config.columns)
            return SourceFolder(self._tables.folder, self._tables.samples(), [], self._tables.state())
        if self.config.subset is not None:
            raise ValueError(f"subset={self.config.subset!r} is for data sets on the Hub, data_dir is {folder}")
        samples = scan_samples(folder, self.config.columns, self.config.language)
        for kind, column in self.config.columns.items():
            known = column is None or {column, column.lower()} & samples.columns
            if not known and not (kind == "text" and self._in_json(folder, samples.found, column)):
                found = ", ".join(sorted(samples.columns)) or "none"
                raise ValueError(f"{kind}_column: {folder} has no column {column!r}; there are {found}")
        return SourceFolder(folder, samples.found, samples.skipped, samples.state)

    def _info(self):
        return datasets.DatasetInfo(
            description="Clips of which each may lack frames, sound or text.", features=clip_features()
        )

    def _clips(self, folder: Path, name: str, sources: dict) -> Iterator[dict]:
        with ExitStack() as stack:
            sample = self._opened(stack, folder, name, sources)
            text = sources.get("transcript") or self._text_of(sample) or Transcript()
            empty = True
            for start, end, images, (samples, valid) in self._windows(sample):
                spoken = text.cut(start, end) if end else text
                if images or valid or spoken.text.strip():
                    empty = False
                    yield {
                        "start": start,
                        "end": end,
                        "frames": images,
                        "audio": samples if valid else samples[:0],
                        "audio_valid": valid,
                        "sampling_rate": self.config.sampling_rate,
                        **spoken.columns(),
                    }
            if empty:
                raise MediaError("has neither picture nor sound nor text")
            for file, reason in sample["dropped"].items():
                super()._skip(file, reason)

    def _skip(self, name: str, reason: str) -> None:
        super()._skip(name, reason)
        sample = self._source.videos.get(name, {}) if self._source else {}
        for file in {sample.get(kind) for kind in KINDS if isinstance(sample.get(kind), str)} - {name}:
            super()._skip(file, "belongs to a sample that cannot be used")

    def _drop(self, sample: dict, kind: str, error: MediaError) -> None:
        """Goes on without one file of a sample, to be noted down; raises `error` if no other medium is left."""
        if not any(sample[other] is not None for other in KINDS if other != kind):
            raise error
        sample["dropped"][sample["names"][kind]] = f"{error}; the other files of its sample are used"
        sample[kind] = None

    def _windows(self, sample: dict) -> Iterator[tuple]:
        """As `read_windows`, with the frames as PNG; a sample without times has one window that ends at 0."""
        config, windows = self.config, None
        if sample["video"] is not None:
            try:
                windows = read_windows(sample["video"], probe(sample["video"]), config)
                windows = chain([next(windows)], windows)  # the first shows whether pictures can be decoded
            except StopIteration:
                return
            except MediaError as error:
                windows = None
                if isinstance(error, NoVideoError) and sample["audio"] is None:
                    sample.update(audio=sample["video"], video=None)
                else:
                    self._drop(sample, "video", error)
        with ExitStack() as stack:
            reader, images = None, []
            if sample["audio"] is not None:
                try:
                    seconds = sound_seconds(sample["audio"], config.language)
                    reader = AudioReader(sample["audio"], config.sampling_rate, config.language)
                    stack.enter_context(reader)
                except MediaError as error:
                    self._drop(sample, "audio", error)
            if windows is not None:
                for start, end, images, own in windows:
                    heard = own if reader is None else reader.read(start, end, config.num_samples)
                    yield start, end, [_as_image(png_bytes(image)) for image in images], heard
                return
            if sample["image"] is not None:
                try:
                    image = _as_image(png_bytes(read_picture(sample["image"], config.image_size)))
                    images = [image] * config.num_frames
                except MediaError as error:
                    self._drop(sample, "image", error)
            if reader is None:
                yield 0.0, 0.0, images, (np.zeros(0, dtype=np.float32), 0)
                return
            for start, end in cut_windows(0.0, seconds, config.clip_seconds):
                yield start, end, images, reader.read(start, end, config.num_samples)

    def _text_of(self, sample: dict) -> Transcript | None:
        """The text that comes with a sample; None if there is none."""
        transcript = None
        if sample["metadata"] is not None:
            try:
                transcript = from_metadata(json.loads(sample["metadata"]))
            except ValueError as error:
                raise MediaError(f"{sample['metadata_place']}: {error}") from error
        if transcript is None and sample["sidecar"] is not None:
            transcript = self._read_text(sample["sidecar"])
            if transcript is None and sample["sidecar"].suffix.lower() in SUBTITLE_SUFFIXES:
                super()._skip(sample["names"]["sidecar"], NO_CUES)
        if transcript is None and sample["video"] is not None:
            with suppress(MediaError):  # `_windows` will say what is wrong
                transcript = embedded_transcript(sample["video"], self.config.language)
        return transcript

    def _in_json(self, folder: Path, samples: dict[str, dict], key: str) -> bool:
        """Whether any of the .json files beside media has a key; reads up to the first that does."""
        for reference in (sample["sidecar"] for sample in samples.values()):
            name = reference if isinstance(reference, str | None) else reference["name"]
            if name is not None and name.lower().endswith(".json"):
                with _local_file(folder, reference) as path, suppress(MediaError, ValueError, RecursionError, OSError):
                    if key in _read_json(path):
                        return True
        return False

    def _read_text(self, path: Path) -> Transcript | None:
        try:
            if path.suffix.lower() != ".json":
                return read_transcript(path)
            return from_metadata(text_entry(_read_json(path), self.config.text_column))
        except OSError as error:
            raise MediaError(f"the text beside it cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"the text beside it is not as it should be ({error})") from error

    def _written_or_sound(self, folder: Path, name: str, sources: dict) -> tuple[Transcript | None, np.ndarray]:
        with ExitStack() as stack:
            sample = self._opened(stack, folder, name, sources)
            written, sound, seconds = self._text_of(sample), sample["audio"] or sample["video"], 0.0
            if written is None and sound is not None:
                seconds = sound_seconds(sound, self.config.language)
            return written, self._sound(sound, seconds)

    def _opened(self, stack: ExitStack, folder: Path, name: str, sources: dict) -> dict:
        """The sample with paths in place of references, valid until `stack` is closed.

        "names" are what messages call them, "dropped" are those of files that turn out to be of no use, with reasons.
        """
        is_row = "row" in sources
        if is_row:
            sources = self._tables.sample(*sources["row"])
        sample = {**sources, "names": {}, "dropped": {}}
        for kind in (*KINDS, "sidecar"):
            reference = sources[kind]
            if reference is not None:
                sample[kind] = stack.enter_context(_local_file(folder, reference))
                file = reference if isinstance(reference, str) else f"{reference.get('tar')}/{reference['name']}"
                sample["names"][kind] = name if is_row else file
        return sample


def _read_json(path: Path) -> dict:
    """The entry in a .json file, empty if it is no dictionary."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise MediaError(f"more than {MAX_TEXT_BYTES // 10**6} megabytes of JSON beside it")
    entry = json.loads(path.read_text(encoding="utf-8-sig"))
    return entry if isinstance(entry, dict) else {}


@contextmanager
def _local_file(folder: Path, reference: str | dict) -> Iterator[Path]:
    """A file, a member of a tar or zip file or the content of a cell as a file on disk.

    Raises:
        MediaError: it is in a zip file, and damaged, missing or too large.
    """
    if isinstance(reference, str):
        yield folder / reference
        return
    # Copied because decoders read files at their own pace, some of them several times.
    with tempfile.TemporaryDirectory(prefix="media_rows_") as scratch:
        path = Path(scratch, "file").with_suffix(Path(reference["name"]).suffix[:10])
        with open(path, "wb") as copy:
            if "bytes" in reference:
                copy.write(reference["bytes"])
            elif "zip" in reference:
                for piece in _unpacked(reference["zip"], reference["member"]):
                    copy.write(piece)
            else:
                with open(folder / reference["tar"], "rb") as tar:
                    tar.seek(reference["offset"])
                    left = reference["size"]
                    while left and (piece := tar.read(min(left, COPIED_BYTES))):
                        copy.write(piece)
                        left -= len(piece)
        yield path


def _unpacked(archive: str, name: str) -> Iterator[bytes]:
    """The content of a file in a zip file, piece by piece."""
    try:
        with zipfile.ZipFile(archive) as opened:
            # No more than this is read of a member, whatever it unpacks to.
            if opened.getinfo(name).file_size > MAX_MEMBER_BYTES:
                raise MediaError(f"more than {MAX_MEMBER_BYTES // 10**6} megabytes in a zip file")
            with opened.open(name) as member:
                while piece := member.read(COPIED_BYTES):
                    yield piece
    except MediaError:
        raise
    except KeyError as error:
        raise MediaError("names a file that is missing in its zip file") from error
    except Exception as error:  # whatever comes of damage, encryption and odd compression
        raise MediaError(f"its zip file cannot be read ({type(error).__name__})") from error


def read_picture(path: str | Path, image_size: int) -> Image.Image:
    """A picture file as it is meant to be seen, reduced to a small square.

    Of a large one, hardly more memory is used than the picture itself takes, four bytes a pixel.

    Returns:
        RGB image of `image_size` x `image_size`: upright, the centre square, of animations the first frame.

    Raises:
        MediaError: the file is empty, no picture or too large a one.
    """
    if Path(path).stat().st_size == 0:
        raise MediaError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that we allow, and of damaged tags
            with Image.open(path, formats=PICTURE_FORMATS) as picture:
                check_size(*picture.size)
                if picture.width * picture.height > MAX_PICTURE_PIXELS:
                    picture.draft("RGB", (2 * image_size, 2 * image_size))  # JPEG can be decoded at a smaller size
                check_size(*picture.size, MAX_PICTURE_PIXELS)
                picture.load()
                if picture.mode.startswith("I;16"):  # 16 bits per pixel, which conversion would cut off at 255
                    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
                orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
                if picture.mode in ("RGB", "RGBA"):  # a whole copy, as of conversion, would be as large again
                    bands = [crop_square(picture.getchannel(band), image_size) for band in "RGB"]
                    small = Image.merge("RGB", bands)
                else:
                    small = crop_square(picture.convert("RGB"), image_size)
                small.getexif()[ExifTags.Base.Orientation] = orientation
                return ImageOps.exif_transpose(small)
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"the picture is too large ({error})") from error
    except UnidentifiedImageError as error:  # its message is the path
        raise MediaError("is no picture, or one of a kind that is not read") from error
    except Exception as error:  # whatever a decoder of a damaged picture may come upon
        reason = str(error).replace(str(path), "the file")  # the same of all files, to be counted
        raise MediaError(f"is no picture, or a damaged one ({type(error).__name__}: {reason})") from error


def _as_image(data: bytes) -> dict:
    return {"bytes": data, "path": None}
