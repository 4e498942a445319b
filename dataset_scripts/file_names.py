"""Names of files in a source folder: which there are, which belong together, and which lead out of the folder."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset_scripts.transcripts import TRANSCRIPT_SUFFIXES, storable

# Only names that promise media are opened: the decoder would make a "video" of any text file, too.
VIDEO_SUFFIXES = frozenset(
    """.3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg
    .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m""".split()
)
AUDIO_SUFFIXES = frozenset(".aac .ac3 .aif .aiff .flac .m4a .mka .mp3 .oga .ogg .opus .wav .wma".split())
IMAGE_SUFFIXES = frozenset(".apng .avif .bmp .heic .jpeg .jpg .png .tif .tiff .webp".split())
MEDIA_SUFFIXES = VIDEO_SUFFIXES | AUDIO_SUFFIXES | IMAGE_SUFFIXES
_LANGUAGE = re.compile(r"(.+)\.[a-zA-Z]{2,3}(?:[-_][a-zA-Z0-9]{2,4})?")  # "name.en", "name.pt-BR"
SPLITS = ("train", "validation", "test")
SOURCE_SEPARATOR = " + "  # in `video`, between the names of what a row is made of
# What folders, tar files and Parquet files may be called, and the split that they then are.
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "val", "valid", "dev"), "validation")


@dataclass(frozen=True, order=True)
class SkippedFile:
    """A file that gave no row: its name relative to the source folder, and the reason in one line."""

    file: str
    reason: str

    def __post_init__(self):
        for name in ("file", "reason"):  # names from metadata may be anything
            object.__setattr__(self, name, shorten(storable(" ".join(getattr(self, name).split("\n")))))


def walk_folder(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Names of all files, relative and with "/", each with the reason not to look into it, or None."""
    unreadable = []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted(linked + [name for name in names if not name.startswith(".")]):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            readable = relative.encode("utf-8", "replace").decode()
            if readable != relative:
                yield readable, "the name is not valid UTF-8"
            elif path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(folder):
                yield relative, "symbolic link that leads out of the folder"
            elif path.is_symlink() and not path.exists():
                yield relative, "broken symbolic link"
            elif path.is_dir():
                yield relative, "symbolic link to a folder"
            else:  # reading from a pipe or device might never end
                yield relative, None if path.is_file() else "not a regular file"
    for error in unreadable:
        yield Path(error.filename).relative_to(folder).as_posix(), f"cannot be read ({error.strerror})"


def split_of(name: str) -> str | None:
    """The split that a file or a member of a tar file, "folder/file.tar/member", belongs to by its name, else None.

    The outermost folder says it, else the first such word on the way to the tar file or in its name: "val-000.tar".
    """
    *folders, _ = name.split("/")
    if folders and (split := SPLIT_NAMES.get(folders[0].lower())):
        return split
    for depth, folder in enumerate(folders, start=1):
        if folder.lower().endswith(".tar"):
            return split_in_words("/".join(folders[:depth]))
    return None


def split_in_words(name: str) -> str | None:
    """The split that the first word says that is the name of one, None if there is no such word."""
    words = re.findall("[a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def split_videos(names: list[str], validation_fraction: float) -> dict[str, list[str]]:
    """Divides videos into splits: by what folders and tar files are called if any is a split, else by name.

    By name means by a hash of it, so that a video stays in its split when others come and go.  At least one video
    is in "train", and if `validation_fraction` is not 0 and there are two, at least one in "validation".

    Raises:
        ValueError: folders are splits, none of them for training, and there are files in none of them.
    """
    own: dict[str | None, list[str]] = {}
    for name in names:
        own.setdefault(split_of(name), []).append(name)
    if own.keys() - {None}:
        if None in own and "train" not in own:
            found = ", ".join(split for split in SPLITS if split in own)
            raise ValueError(
                f"data_dir: nothing is left to train on: there are files for {found} by their folder, and "
                f"{len(own[None])} others, such as {shorten(own[None][0], 100)}; move these to a folder 'train'"
            )
        return {split: own[split] for split in SPLITS if split in own}
    places = {name: int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names}
    validation = {name for name in names if places[name] < validation_fraction}
    if validation_fraction > 0 and len(names) > 1:
        validation = validation or {min(names, key=places.get)}
    if names and len(validation) == len(names):
        validation.discard(max(names, key=places.get))
    splits = {"train": [name for name in names if name not in validation]}
    return {**splits, "validation": sorted(validation)} if validation else splits


def sidecar_names(stem: str, language: str | None) -> list[str]:
    """Names of the text files that may belong to a file, here without its suffix, from the most wanted on."""
    stems = [f"{stem}.{language}", stem] if language else [stem]
    return [stem + suffix for stem in stems for suffix in TRANSCRIPT_SUFFIXES]


class Sidecars:
    """Which text files belong to which other files, in a folder with these files.

    Case makes no difference: "name.SRT" belongs to "name.mp4" as well.
    """

    def __init__(self, names: list[str]):
        self._present = set(names)
        self._by_lower = {name.lower(): name for name in reversed(names)}
        others = {
            os.path.splitext(name)[0].lower() for name in names if not name.lower().endswith(TRANSCRIPT_SUFFIXES)
        }
        self._with_language: dict[str, list[str]] = {}
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            match = _LANGUAGE.fullmatch(stem)
            # "my.dog.txt" is no text of "my.mp4" if there is "my.dog.mp4".
            if match and suffix.lower() in TRANSCRIPT_SUFFIXES and stem.lower() not in others:
                self._with_language.setdefault(match[1].lower(), []).append(name)

    def of(self, name: str, language: str | None) -> list[str]:
        """Those that belong to a file, from the most wanted on.

        That are those in `language` and those of the file's name; if there are none, the first in any language, for
        "name.de.srt" is better than no text.
        """
        stem = os.path.splitext(name)[0]
        options = sidecar_names(stem, language)
        found = [option if option in self._present else self._by_lower.get(option.lower()) for option in options]
        return [option for option in found if option is not None] or self._with_language.get(stem.lower(), [])[:1]


def name_inside(base: str, file_name: str) -> str | None:
    """The name that metadata in the folder `base` gives a file, relative to the source folder.

    None if the file lies outside of `base`, where metadata must not lead.
    """
    inside = os.path.normpath(file_name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] == "..":
        return None
    return os.path.normpath(os.path.join(base, inside)).replace(os.sep, "/")


def shorten(text: str, longest: int = 1000) -> str:
    """A text cut to a length that can be shown."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
