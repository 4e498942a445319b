"""What samples there are in a folder: rows of metadata files, files of one stem, members of tar files.

A sample is a dictionary with a reference to its "video", "image", "audio" and text file ("sidecar"), each the name of
a file or a `TarMember` as a dictionary, or None; and "metadata", its entry as JSON or None, with "metadata_place" for
messages.  Only metadata and the headers in tar files are read here.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dataset_scripts.file_names import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    SOURCE_SEPARATOR,
    VIDEO_SUFFIXES,
    Sidecars,
    SkippedFile,
    name_inside,
    sidecar_names,
    walk_folder,
)
from dataset_scripts.media import MediaError
from dataset_scripts.metadata_files import metadata_among, read_entries, text_entry
from dataset_scripts.transcripts import TRANSCRIPT_SUFFIXES

KINDS = ("video", "image", "audio")
TEXT_SUFFIXES = (*TRANSCRIPT_SUFFIXES, ".json")
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")


@dataclass(frozen=True)
class TarMember:
    """Where a file lies in an uncompressed tar file."""

    tar: str
    name: str
    offset: int
    size: int


@dataclass
class Samples:
    """What `scan_samples` collects.

    found: samples by name.
    skipped: files that are of no use whatever is in them.
    columns: names that a column mapping may use: columns of metadata, suffixes in tar files (in lower case) and of
        text files.
    state: JSON that differs after any edit in the folder.
    """

    found: dict[str, dict] = field(default_factory=dict)
    skipped: list[SkippedFile] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    state: list = field(default_factory=list)

    def skip(self, file: str, reason: str) -> None:
        self.skipped.append(SkippedFile(file, reason))

    def add(self, name: str, references: dict, metadata: dict | None = None, place: str | None = None) -> None:
        sample = dict.fromkeys((*KINDS, "sidecar")) | references
        sample["metadata"] = None if metadata is None else json.dumps(metadata)
        self.found[name] = {**sample, "metadata_place": place}


def kind_of(name: str) -> str | None:
    """The kind that a file's suffix promises: a member of `KINDS`, "sidecar" for texts, None for others."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in TEXT_SUFFIXES:
        return "sidecar"
    kinds = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), None)


def holds_media(name: str) -> bool:
    """Whether a file's suffix promises pictures, sound or video, or a tar file of them."""
    return kind_of(name) in KINDS or name.lower().endswith(".tar")


def scan_samples(folder: Path, columns: dict[str, str | None], language: str | None = None) -> Samples:
    """Lists a folder with all its subfolders.

    Args:
        folder: its path, with links resolved.
        columns: for each of `KINDS` the column of metadata (without "_file_name"), or the suffix in tar files, that
            is to be read; None takes the first that is of the kind.  For "text" the column of metadata, the key in
            .json files or the suffix of text files; None takes the first of `TEXT_COLUMNS` or of the suffixes.
        language: as of `scan_folder`.
    """
    samples, files = Samples(), []
    for name, reason in walk_folder(folder):
        if reason is None:
            status = (folder / name).stat()
            samples.state.append([name, status.st_size, status.st_mtime_ns])
            files.append(name)
        else:
            samples.skip(name, reason)
    samples.state += [[file.file, file.reason] for file in samples.skipped]
    named = _Named(set(files))
    metadata = metadata_among(files)
    for name in metadata:
        _add_entries(samples, folder, name, columns, named)
    done = named.used.union(metadata)
    rest = [name for name in files if name not in done]
    _add_stems(samples, rest, columns, language)
    for name in rest:
        suffix = os.path.splitext(name)[1].lower()
        if suffix == ".tar":
            _add_members(samples, folder, name, columns, language)
        elif suffix in COMPRESSED:
            samples.skip(name, "a compressed file; unpack it, or pack its files into a .tar")
        elif kind_of(name) is None:
            samples.skip(name, "not a media file")
    return samples


@dataclass
class _Named:
    """The files there are, and those that belong to a sample or were skipped."""

    present: set[str]
    used: set[str] = field(default_factory=set)
    places: dict[str, str] = field(default_factory=dict)  # which line of which metadata file made a sample


def _add_entries(samples: Samples, folder: Path, metadata: str, columns: dict, named: _Named) -> None:
    """Makes a sample of each row of a metadata file."""
    base = os.path.dirname(metadata)
    try:
        for number, entry, problem in read_entries(folder / metadata):
            place = f"{metadata} line {number}"
            if problem is not None:
                samples.skip(metadata, f"line {number} {problem}")
                continue
            samples.columns.update(name.removesuffix("_file_name") for name in entry)
            fields = {key: value for key, value in entry.items() if re.fullmatch(r"(.+_)?file_name", key) and value}
            if not fields or not all(isinstance(value, str) for value in fields.values()):
                samples.skip(metadata, f"line {number} has no text in file_name or in a column *_file_name")
                continue
            _add_entry(samples, place, base, entry, fields, columns, named)
    except MediaError as error:
        samples.skip(metadata, str(error))


def _add_entry(samples: Samples, place, base, entry: dict, fields: dict, columns: dict, named: _Named) -> None:
    references, problems = {}, []
    for key, file_name in fields.items():
        column, name = key.removesuffix("file_name").removesuffix("_"), name_inside(base, file_name)
        by_column = {wanted: kind for kind, wanted in columns.items() if wanted}
        kind = by_column.get(column) or (column if column in KINDS else kind_of(file_name))
        if name is None:
            problems.append((file_name, f"{place} names a file outside of its folder"))
        elif name not in named.present:
            problems.append((name, f"{place} names a file that is missing or hidden"))
        elif kind is None:
            problems.append((name, f"{place} names a file that is no media file"))
        elif columns.get(kind) in (None, column):
            references.setdefault(kind, name)
            continue
        if name is not None:
            named.used.add(name)
    found = sorted(references.values())
    named.used.update(found)
    if problems:
        problems += [(name, f"{place} names another file that cannot be used") for name in found]
    elif not found:
        problems.append((place, "names no file that is asked for"))
    name = SOURCE_SEPARATOR.join(found)
    if not problems and name in named.places:
        problems.append((name, f"{place} repeats {named.places[name]}, which counts"))
    for file, problem in problems:
        samples.skip(file, problem)
    if not problems:
        named.places[name] = place
        references = _one_picture(samples, references, columns)
        samples.add(name, references, text_entry(entry, columns.get("text")), place)


def _choose_text(by_suffix: dict, column: str | None, language: str | None = None):
    """The most wanted of some text files, by suffix without the dot in lower case; times are worth having."""
    wanted = [column.lower(), "json"] if column else []
    wanted += [name[1:].lower() for name in sidecar_names("", language)] + ["json"]
    # In any other language, as of `Sidecars`.
    wanted += sorted(suffix for suffix in by_suffix if suffix.endswith(TRANSCRIPT_SUFFIXES))
    return next((by_suffix[suffix] for suffix in wanted if suffix in by_suffix), None)


def _add_stems(samples: Samples, names: list[str], columns: dict, language: str | None) -> None:
    """Makes a sample of the media files of one stem, with the text file of the same name."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        kind = kind_of(name)
        if kind in KINDS:
            group = groups.setdefault(os.path.splitext(name)[0], {})
            if kind in group:
                samples.skip(name, f"a second {kind} of the same name; the first counts")
            group.setdefault(kind, name)
    lower = {name.lower(): name for name in reversed(names)}
    sidecars, texts = Sidecars(names), set()
    for stem, group in groups.items():
        by_suffix = {}
        found = sidecars.of(f"{stem}.", language) + [lower.get(f"{stem}.json".lower())]
        for name in filter(None, found):
            texts.add(name)
            by_suffix.setdefault(name.rpartition(".")[2].lower(), name)
        samples.columns.update(by_suffix)
        name = group.get("video") or group.get("image") or group["audio"]
        references = _one_picture(samples, group, {})
        samples.add(name, references | {"sidecar": _choose_text(by_suffix, columns.get("text"))})
    for name in names:
        if kind_of(name) == "sidecar" and name not in texts:
            samples.skip(name, "text file without a media file of the same name that needs it")


def _one_picture(samples: Samples, references: dict, columns: dict) -> dict:
    """The references without the picture beside a video, or without the video if only the picture is asked for."""
    if not ("video" in references and "image" in references):
        return references
    unwanted = "video" if columns.get("video") is None and columns.get("image") is not None else "image"
    left_out = references[unwanted]
    name = left_out if isinstance(left_out, str) else f"{left_out['tar']}/{left_out['name']}"
    samples.skip(name, "of a video and a picture in one sample only one can count; this is the other")
    return {kind: reference for kind, reference in references.items() if kind != unwanted}


def _add_members(samples: Samples, folder: Path, tar: str, columns: dict, language: str | None) -> None:
    """Makes a sample of the members of a tar file that share their name up to the first dot (WebDataset)."""
    groups: dict[str, dict[str, dict]] = {}
    texts: dict[str, dict[str, dict]] = {}
    unused = set()
    for member, problem in _tar_members(folder / tar, tar):
        if problem is not None:
            samples.skip(f"{tar}/{member.name}" if member.name else tar, problem)
            continue
        parent, base = os.path.split(member.name)
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        if base.startswith("."):
            continue
        samples.columns.add(suffix)
        by_column = {wanted.lower(): kind for kind, wanted in columns.items() if wanted}
        kind = by_column.get(suffix) or kind_of(base)
        if kind is None:
            unused.add(suffix)
        elif kind in ("sidecar", "text"):
            texts.setdefault(os.path.join(parent, stem), {}).setdefault(suffix, asdict(member))
        elif (columns.get(kind) or suffix).lower() == suffix:
            group = groups.setdefault(os.path.join(parent, stem), {})
            if kind in group:
                samples.skip(f"{tar}/{member.name}", f"a second {kind} of the same name; the first counts")
            group.setdefault(kind, asdict(member))
    for suffix in sorted(unused):
        samples.skip(tar, f"its members that end in .{suffix} are no media files")
    for stem, group in groups.items():
        name = next(group[kind]["name"] for kind in KINDS if kind in group)
        text = _choose_text(texts.pop(stem, {}), columns.get("text"), language)
        samples.add(f"{tar}/{name}", _one_picture(samples, group, columns) | {"sidecar": text})
    for group in texts.values():
        for member in group.values():
            samples.skip(f"{tar}/{member['name']}", "text without media of the same name")


def _tar_members(path: Path, tar: str) -> Iterator[tuple[TarMember, str | None]]:
    """The files in an uncompressed tar file, each with the reason not to use it, or None."""
    size, number = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                number += 1
                archive.members.clear()  # it would keep them all
                name = member.name.encode("utf-8", "backslashreplace").decode()  # it may be in any encoding
                found = TarMember(tar, os.path.normpath(name), member.offset_data, member.size)
                if member.size < 0:  # where the next one begins would be before this one
                    yield found, "of negative size"
                    return
                if member.isdir():
                    continue
                if name_inside("", member.name) is None:
                    yield found, "a member whose name leads out of the tar file"
                elif member.issparse() or not member.isreg():
                    yield found, "a link, device or file with holes in a tar file"
                elif member.offset_data + member.size > size:
                    yield found, "cut off"
                    return
                else:
                    yield found, None
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())
        yield TarMember(tar, "", 0, 0), f"no tar file, or damaged after {number} members ({reason})"
