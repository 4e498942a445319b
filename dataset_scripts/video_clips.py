"""VideoClips: a folder of videos, of any kind that turns up, as rows of frames, sound and text.

A row is one window of a video: `num_frames` pictures at the midpoints of equal slices of the window, the sound of
the window and the words spoken in it.  A video longer than `clip_seconds` gives several rows.  Every file in the
folder ends up in rows or in the list of skipped files with a reason, unless the config says `strict`.

    builder = VideoClips(data_dir="my_videos")
    dataset = prepare_clips(builder, "my_clips")  # dataset_scripts.prepare

Where text is taken from, the first that exists: `metadata.jsonl` or `metadata.csv` (in any folder: `file_name`
relative to it, `text`, `caption` or the like, and in .jsonl optionally `words` with times), a file of the same name
ending in .srt, .vtt or .txt, a stream of subtitles inside the video, speech recognition if `asr_model` is set.

Subclasses that make their videos themselves override `source_folder`.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError

from dataset_scripts.audio_reader import AudioReader
from dataset_scripts.file_names import (
    MEDIA_SUFFIXES,
    Sidecars,
    SkippedFile,
    name_inside,
    split_of,
    split_videos,
    walk_folder,
)
from dataset_scripts.media import (
    TINY,
    MediaError,
    MediaInfo,
    VideoReader,
    cut_windows,
    free_decoders,
    probe,
    slice_midpoints,
)
from dataset_scripts.metadata_files import metadata_among, read_entries, text_entry
from dataset_scripts.transcripts import (
    NO_CUES,
    TRANSCRIPT_SUFFIXES,
    Transcript,
    embedded_transcript,
    from_metadata,
    read_transcript,
    recognise_speech,
)

HEARD_FILES, HEARD_SECONDS = 16, 1200  # how much is handed to the speech recogniser at once
SKIPPED_FILES = "skipped-*.json"  # beside the Arrow files of the builder's cache, one per skipped file


@dataclass(frozen=True)
class SourceFolder:
    """What `scan_folder` finds.

    videos: by name relative to the folder, where its text comes from: "sidecar" (a name or None), "metadata" (its
        entry as JSON or None) and "metadata_place" (for messages).
    skipped: files that are of no use whatever is in them.
    state: JSON that differs after any edit in the folder.
    """

    folder: Path
    videos: dict[str, dict[str, str | None]]
    skipped: list[SkippedFile]
    state: list


class UnusableFileError(ValueError):
    """A file that gives no row, raised when the config says `strict`; the message has its name and the reason."""


@dataclass
class VideoClipsConfig(datasets.BuilderConfig):
    """Settings of `VideoClips`.

    Args:
        data_dir: folder with the videos.
        num_frames: pictures per clip.
        image_size: side of the square pictures, pixels.
        sampling_rate: of the sound, Hz.
        clip_seconds: length of a clip; shorter videos are filled up with silence.
        strict: raise on the first file that cannot be used instead of listing it.
        asr_model: name or folder of a speech recognition model for videos without text; None leaves them without.
        language: code such as "en": preferred among streams of sound and of subtitles, and told to the speech
            recogniser.
        validation_fraction: share of the videos that becomes "validation", unless the folder has subfolders train,
            validation (or val, valid, dev) or test, in any case, which then are the splits; so are tar files with
            such a word in their name.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    data_dir: str | None = None
    num_frames: int = 8
    image_size: int = 64
    sampling_rate: int = 16_000
    clip_seconds: float = 3.0
    strict: bool = False
    asr_model: str | None = None
    language: str | None = None
    validation_fraction: float = 0.1

    def __post_init__(self):
        if self.data_dir is not None:
            self.data_dir = os.fspath(self.data_dir)
            if not self.data_dir:  # would be the folder that we happen to be in
                raise ValueError("data_dir must be a folder or None, got ''")
        super().__post_init__()
        for name, lowest, highest in (
            ("num_frames", 1, 10_000),
            ("image_size", 1, 8_192),
            ("sampling_rate", 100, 768_000),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
                raise ValueError(f"{name} must be a whole number from {lowest} to {highest}, got {value!r}")
        for name, lowest, highest in (("clip_seconds", 0.01, 3600.0), ("validation_fraction", 0.0, 0.9)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            if not number or not lowest <= value <= highest:
                raise ValueError(f"{name} must be a number from {lowest} to {highest}, got {value!r}")
            setattr(self, name, float(value))
        if not isinstance(self.strict, bool):
            raise ValueError(f"strict must be true or false, got {self.strict!r}")
        for name in ("asr_model", "language"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name} must be a name or None, got {value!r}")

    @property
    def num_samples(self) -> int:
        """Samples of sound in a clip."""
        return round(self.clip_seconds * self.sampling_rate)


def clip_features(num_frames: int = -1, num_samples: int = -1) -> datasets.Features:
    """The columns of a clip; of any length, -1, are the frames and the sound of clips that may lack them.

    clip_id: name of the video and number of the window, "folder/name.mp4#0".  video: name of the video relative to
    the source folder, with "/".  start, end: seconds in the video; `end` is that of the video if it ends within the
    window.  frames: `num_frames` PNG images, RGB.  audio: `num_samples` values, mono, usually within -1 .. 1.
    audio_valid: number of its samples before the filling up with zeros, 0 for a video without sound.
    sampling_rate: of `audio`, Hz.  text: what is said, "" if unknown.  cues: its parts, words or phrases, with seconds
    from `start`, as far as is known when they are said.
    """
    return datasets.Features(
        {
            "clip_id": datasets.Value("string"),
            "video": datasets.Value("string"),
            "start": datasets.Value("float64"),
            "end": datasets.Value("float64"),
            "frames": datasets.List(datasets.Image(), length=num_frames),
            "audio": datasets.List(datasets.Value("float32"), length=num_samples),
            "audio_valid": datasets.Value("int32"),
            "sampling_rate": datasets.Value("int32"),
            "text": datasets.Value("string"),
            "cues": datasets.List(
                {
                    "start": datasets.Value("float64"),
                    "end": datasets.Value("float64"),
                    "text": datasets.Value("string"),
                }
            ),
        }
    )


class VideoClips(datasets.GeneratorBasedBuilder):
    """Builder of the rows described at the top of this module.

    The folder is looked at when the dataset is prepared, not when the builder is made.  The cache depends on the
    settings and on names, sizes and times of change of all files in the folder: after any edit the rows are made
    anew.
    """

    VERSION = datasets.Version("1.3.0")
    BUILDER_CONFIG_CLASS = VideoClipsConfig
    DEFAULT_WRITER_BATCH_SIZE = 50  # rows held in memory; one may be some hundred kilobytes
    _source: SourceFolder | None = None  # of the last scan

    def source_folder(self) -> Path:
        """The folder to read, `data_dir`.

        Subclasses override this, to write the videos first.  It is called before every scan of the folder, so videos
        that are there already must be left as they are.

        Raises:
            ValueError: `data_dir` is not set or not a folder.
        """
        if self.config.data_dir is None:
            raise ValueError("data_dir must be set to the folder with the videos")
        folder = Path(self.config.data_dir).expanduser()
        if not folder.is_dir():
            raise ValueError(f"data_dir is not a folder: {folder}")
        return folder

    def scan(self) -> SourceFolder:
        """What is in the source folder, and sets the cache folder accordingly."""
        source = self.read_source()
        self._source = source
        self.config_id = f"{self.config.name}-{self._fingerprint(source)}"
        self._cache_dir = self._output_dir = self._build_cache_dir()
        return source

    def read_source(self) -> SourceFolder:
        """Lists the source folder; opens nothing but what says which files there are."""
        return scan_folder(self.source_folder(), self.config.language)

    def fingerprint(self) -> str:
        """Changes with the settings, the version and the content of the source folder; scans the folder."""
        return self._fingerprint(self.scan())

    def scanned_folder(self) -> Path:
        """The source folder as it was found by the last scan, with links resolved."""
        return self._source.folder

    def has_own_splits(self) -> bool:
        """Whether the last scan found the source divided into splits, so that none may be made of another."""
        return any(map(split_of, self._source.videos))

    @property
    def files_at_once(self) -> int:
        """How many files are worth being given together: a speech recogniser hears several in one go."""
        return 1 if self.config.asr_model is None else HEARD_FILES

    def skipped_files(self) -> list[SkippedFile]:
        """Files that gave no row, by name; known once the dataset is prepared, also if it came from the cache."""
        return read_skipped(Path(self._output_dir).glob(SKIPPED_FILES))

    def download_and_prepare(self, *args, **kwargs):
        """As in the base class; looks at the source folder first, because the cache depends on what it holds."""
        self.scan()
        free_decoders()
        return super().download_and_prepare(*args, **kwargs)

    def _fingerprint(self, source: SourceFolder) -> str:
        settings = dataclasses.asdict(self.config)
        # The same videos in another place give the same rows.
        for name in ("data_dir", "data_files", "description", "version"):
            settings.pop(name)
        content = [type(self).__name__, str(self.config.version), settings, source.state]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _info(self):
        return datasets.DatasetInfo(
            description="Clips of videos: frames, sound and text.",
            features=clip_features(self.config.num_frames, self.config.num_samples),
        )

    def _split_generators(self, dl_manager):
        source = self._source or self.scan()
        for skipped in source.skipped:
            self._skip(skipped.file, skipped.reason)
        splits = split_videos(list(source.videos), self.config.validation_fraction)
        chosen = {name for names in splits.values() for name in names}
        for name in source.videos:
            if name not in chosen:
                self._skip(name, f"not in one of the splits by its name ({', '.join(sorted(splits))})")
        return [
            datasets.SplitGenerator(
                name=split,
                # Lists are what `num_proc` divides among processes.
                gen_kwargs={
                    "names": names,
                    "transcripts": [source.videos[name] for name in names],
                    "folder": str(source.folder),
                },
            )
            for split, names in splits.items()
            if names
        ]

    def _prepare_split_single(self, *args, **kwargs):
        # The base class hides what went wrong in an exception that does not say it, and worker processes would lose
        # the cause: let the one we raise on purpose through.
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, UnusableFileError):
                raise error.__cause__ from None
            raise

    def _generate_examples(self, names: list[str], transcripts: list[dict], folder: str):
        # torch's threads do not survive the fork of a worker process, and there is little for them to do.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for name, sources in self._hear_ahead(Path(folder), zip(names, transcripts, strict=True)):
                try:
                    for number, row in enumerate(self._clips(Path(folder), name, sources)):
                        clip_id = f"{name}#{number}"
                        yield clip_id, {"clip_id": clip_id, "video": name, **row}
                except MediaError as error:
                    self._skip(name, str(error))
        finally:
            torch.set_num_threads(num_threads)

    def _clips(self, folder: Path, name: str, sources: dict) -> Iterator[dict]:
        path = folder / name
        info = probe(path)
        transcript = sources.get("transcript") or self._written(folder, path, sources) or Transcript()
        for start, end, images, (samples, valid) in read_windows(path, info, self.config):
            yield {
                "start": start,
                "end": end,
                "frames": [{"bytes": png_bytes(image), "path": None} for image in images],
                "audio": samples,
                "audio_valid": valid,
                "sampling_rate": self.config.sampling_rate,
                **transcript.cut(start, end).columns(),
            }

    def _written(self, folder: Path, path: Path, sources: dict) -> Transcript | None:
        """The text that comes with a video; None if there is none."""
        if sources["metadata"] is not None:
            try:
                transcript = from_metadata(json.loads(sources["metadata"]))
            except ValueError as error:
                raise MediaError(f"{sources['metadata_place']}: {error}") from error
            if transcript is not None:
                return transcript
        if sources["sidecar"] is not None:
            try:
                transcript = read_transcript(folder / sources["sidecar"])
            except OSError as error:
                raise MediaError(f"its text file cannot be read ({error.strerror})") from error
            except MediaError as error:
                raise MediaError(f"its text file holds {error}") from error
            if transcript is not None:
                return transcript
            self._skip(sources["sidecar"], NO_CUES)
        return embedded_transcript(path, self.config.language)

    def _written_or_sound(self, folder: Path, name: str, sources: dict) -> tuple[Transcript | None, np.ndarray]:
        """The text that comes with a video, or its whole sound, (samples,) float32."""
        written = self._written(folder, folder / name, sources)
        return written, self._sound(folder / name, 0 if written else probe(folder / name).duration)

    def _sound(self, path: Path, seconds: float) -> np.ndarray:
        if not seconds:
            return np.zeros(0, dtype=np.float32)
        with AudioReader(path, self.config.sampling_rate, self.config.language) as reader:
            return reader.read_through(seconds)

    def _hear_ahead(self, folder: Path, files: Iterable[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        """The files, and with a speech recogniser the "transcript" of each, heard for several at once."""
        if self.config.asr_model is None:
            yield from files
            return
        files, rate = iter(files), self.config.sampling_rate
        while True:
            batch, sounds = [], []
            while len(batch) < HEARD_FILES and sum(map(len, sounds)) < HEARD_SECONDS * rate:
                name, sources = next(files, (None, None))
                if name is None:
                    break
                try:
                    written, sound = self._written_or_sound(folder, name, sources)
                except MediaError:
                    batch.append((name, sources, False, None))  # `_clips` will say what is wrong
                    sound = np.zeros(0, dtype=np.float32)
                else:
                    batch.append((name, sources, True, written))
                sounds.append(sound)
            if not batch:
                return
            heard = recognise_speech(sounds, rate, self.config.asr_model, self.config.language)
            for (name, sources, good, written), transcript in zip(batch, heard, strict=True):
                yield name, {**sources, "transcript": written or transcript} if good else sources

    def _skip(self, name: str, reason: str) -> None:
        if self.config.strict:
            raise UnusableFileError(f"{name}: {reason}")
        # One small file per record needs no lock between processes, and moves into the cache with the rows.
        cache = Path(self._output_dir)
        if cache.is_dir():  # not when streaming
            record = {"file": name, "reason": reason}
            key = hashlib.sha256(f"{name}\n{reason}".encode()).hexdigest()[:24]
            (cache / SKIPPED_FILES.replace("*", key)).write_text(json.dumps(record), encoding="utf-8")


def read_skipped(records: Iterable[Path]) -> list[SkippedFile]:
    """What a builder noted down about files that gave no row, by name; `records` are its SKIPPED_FILES."""
    return sorted(SkippedFile(**json.loads(path.read_text(encoding="utf-8"))) for path in records)


def read_windows(path: Path, info: MediaInfo, config: VideoClipsConfig) -> Iterator[tuple]:
    """The clips of one video.

    Yields:
        start and end in seconds, list of `num_frames` RGB images, (samples, valid) as `AudioReader.read`.

    Raises:
        MediaError: the file cannot be opened or no frame can be decoded.
    """
    windows = cut_windows(info.first_frame, info.duration, config.clip_seconds)
    times = [slice_midpoints(start, end, config.num_frames) for start, end in windows]
    video = VideoReader(path, config.image_size, info.packets, list(chain(*times)))
    try:
        with AudioReader(path, config.sampling_rate, config.language) as audio:
            for number, (start, end) in enumerate(windows):
                images = [video.frame_at(time) for time in times[number]]
                damaged = video.finished and video.end < end - 2 * info.frame_seconds
                if damaged:
                    # Decoding stopped before the headers say.  What is there counts like a shorter video.
                    end = video.end
                    if end - start < (config.clip_seconds / 2 if number else 2 * TINY):
                        return
                    video.close()
                    video = VideoReader(path, config.image_size)
                    images = [video.frame_at(time) for time in slice_midpoints(start, end, config.num_frames)]
                yield start, end, images, audio.read(start, end, config.num_samples)
                if damaged:
                    return
    finally:
        video.close()


def scan_folder(folder: Path, language: str | None = None) -> SourceFolder:
    """Lists a folder with all its subfolders; opens nothing but the metadata files.

    Hidden files are passed over, and links that lead out of the folder are not followed.  With a `language` such as
    "en", "name.en.srt" belongs to "name.mp4", before "name.srt"; one in another language only if there is no other.
    """
    folder = folder.resolve()
    skipped, files, state = [], [], []
    for name, reason in walk_folder(folder):
        if reason is None:
            status = (folder / name).stat()
            state.append([name, status.st_size, status.st_mtime_ns])
            files.append(name)
        else:
            skipped.append(SkippedFile(name, reason))
    state += [[file.file, file.reason] for file in skipped]
    videos = {name: {} for name in files if Path(name).suffix.lower() in MEDIA_SUFFIXES}
    present, sidecars = set(files), Sidecars(files)
    used = set()
    for name, sources in videos.items():
        found = sidecars.of(name, language)
        used.update(found)
        sources.update(sidecar=found[0] if found else None, metadata=None, metadata_place=None)
    for name in metadata_among(files):
        skipped += _read_metadata(folder, name, videos, present)
        used.add(name)
    for name in files:
        suffix = Path(name).suffix.lower()
        if name in used or suffix in MEDIA_SUFFIXES:
            continue
        if suffix in TRANSCRIPT_SUFFIXES:
            kind = "text" if suffix == ".txt" else "subtitle"
            skipped.append(SkippedFile(name, f"{kind} file without a video of the same name that needs it"))
        else:
            skipped.append(SkippedFile(name, "not a media file"))
    return SourceFolder(folder, videos, skipped, state)


def _read_metadata(folder: Path, metadata: str, videos: dict, present: set[str]) -> list[SkippedFile]:
    """Puts the entries of a metadata file into `videos` and returns those that name no video of ours."""
    skipped = []
    base = os.path.dirname(metadata)
    try:
        for number, entry, problem in read_entries(folder / metadata):
            place = f"{metadata} line {number}"
            file_name = None if entry is None else entry.get("file_name")
            if not isinstance(file_name, str) or not file_name:
                skipped.append(SkippedFile(metadata, f"line {number} {problem or 'has no text in file_name'}"))
                continue
            name = name_inside(base, file_name)
            if name is None:
                skipped.append(SkippedFile(file_name, f"{place} names a file outside of its folder"))
            elif name in videos and videos[name]["metadata"] is not None:
                skipped.append(SkippedFile(name, f"{place} repeats {videos[name]['metadata_place']}, which counts"))
            elif name in videos:
                videos[name].update(metadata=json.dumps(text_entry(entry, None)), metadata_place=place)
            elif name not in present:
                skipped.append(SkippedFile(name, f"{place} names a file that is missing or hidden"))
    except MediaError as error:
        skipped.append(SkippedFile(metadata, str(error)))
    return skipped


def png_bytes(image) -> bytes:
    """An image as a PNG file, which keeps every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
