"""Data sets with columns of media, on disk or on the Hub, as samples of `MediaRows`."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow.parquet
from datasets import Audio, ClassLabel, DatasetDict, Image, Value, Video
from datasets.exceptions import DatasetsError

from dataset_scripts.file_names import SPLIT_NAMES, split_in_words, walk_folder
from dataset_scripts.media import MediaError
from dataset_scripts.media_sources import KINDS, holds_media
from dataset_scripts.metadata_files import TEXT_COLUMNS, text_entry

FEATURES = {"image": Image, "audio": Audio, "video": Video}
SAVED_FILES = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


@dataclass
class Tables:
    """The splits of a data set with the columns that are read, media not decoded.

    folder: where its files lie; a cell that names a file may name one in here only.
    columns: in each split, of each of `KINDS` and of "text", None where there is none.
    """

    splits: DatasetDict
    columns: dict[str, dict[str, str | None]]
    folder: Path

    def samples(self) -> dict[str, dict]:
        """A reference to each row, by name: "train/12", or "12" if there is only one split, which can be divided."""
        several = len(self.splits) > 1
        return {
            f"{split}/{index}" if several else str(index): {"row": [split, index]}
            for split, rows in self.splits.items()
            for index in range(len(rows))
        }

    def state(self) -> list:
        """Differs between data sets, and between their versions."""
        return [[split, rows._fingerprint, len(rows)] for split, rows in self.splits.items()]

    def sample(self, split: str, index: int) -> dict:
        """A row as a sample of `dataset_scripts.media_sources`.

        Of its files some are {"name", "bytes"}, and some {"name", "zip", "member"}, in a zip file.

        Raises:
            MediaError: a cell names a file that lies elsewhere, or cannot exist.
        """
        features, columns = self.splits[split].features, self.columns[split]
        row = self.splits[split][index] if any(columns.values()) else {}  # of which other columns would be decoded
        sample = dict.fromkeys((*KINDS, "sidecar", "metadata"))
        for kind in KINDS:
            value = row.get(columns[kind])
            if value is not None:
                sample[kind] = self._file(value)
        column = columns["text"]
        if column is not None:
            if isinstance(features[column], ClassLabel) and row[column] is not None and row[column] >= 0:
                row[column] = features[column].int2str(row[column])
            sample["metadata"] = json.dumps(text_entry(row, column))
        return {**sample, "metadata_place": f"row {index}, column {column!r}"}

    def _file(self, value: bytes | dict) -> dict | str:
        value = {"bytes": value, "path": None} if isinstance(value, bytes) else value
        name = value.get("path") or ""
        if value.get("bytes") is not None:
            return {"name": os.path.basename(name), "bytes": value["bytes"]}
        member, _, archive = name.partition("::")  # as "zip://a.png::/folder/train.zip"
        packed = bool(archive) and member.startswith("zip://")
        try:
            path = Path(os.path.realpath(self.folder / (archive if packed else name)))
            found = path.is_relative_to(self.folder) and path.is_file()
        except (OSError, ValueError):  # the name is too long, or not one that a file can have
            found = False
        if not found:
            raise MediaError("names a file that is missing or not of this data set")
        member = member.removeprefix("zip://")
        return {"name": os.path.basename(member), "zip": str(path), "member": member} if packed else str(path)


def is_data_set(folder: Path, name: str) -> bool:
    """Whether `data_dir` is a data set of rows and no folder of media, in which Parquet files are of other use.

    Raises:
        ValueError: there is no such folder, and the name cannot be one on the Hub.
    """
    if folder.is_dir():
        if any((folder / file).is_file() for file in SAVED_FILES):
            return True
        return bool(_parquet_files(folder)) and not any(holds_media(file) for file, _ in walk_folder(folder))
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ValueError(f"data_dir is not a folder: {folder}")
    return True


def open_tables(folder: Path, name: str, subset: str | None, columns: dict[str, str | None]) -> Tables:
    """Opens a data set that was saved by `save_to_disk`, a folder of Parquet files or a data set on the Hub.

    Args:
        folder, name: `data_dir` as a path and as it was given.
        subset: as `name` of `datasets.load_dataset`.
        columns: of each of `KINDS` and of "text"; None takes the first that fits.

    Raises:
        ValueError: there is no such data set, or no such column, or one of another type, or a file is damaged.
    """
    if not folder.is_dir():
        try:
            splits = datasets.load_dataset(name, subset)
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"data_dir: {name!r} is no folder here and no data set on the Hub ({reason})") from error
        folder = Path(huggingface_hub.constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    elif parquet := _parquet_files(folder):
        # Each by itself, since all that are loaded together must have the same columns.
        splits = DatasetDict({split: _load_parquet(folder, files) for split, files in parquet.items()})
    else:
        try:
            splits = datasets.load_from_disk(str(folder))
        except Exception as error:  # its JSON files may hold anything
            raise ValueError(f"data_dir: {folder} cannot be loaded ({type(error).__name__}: {error})") from error
        splits = splits if isinstance(splits, DatasetDict) else DatasetDict({"train": splits})
        for rows in splits.values():
            for file in rows.cache_files:
                if not Path(os.path.realpath(file["filename"])).is_relative_to(folder):
                    raise ValueError(f"data_dir: {folder} names a file outside of it: {file['filename']}")
    known = dict.fromkeys(column for rows in splits.values() for column in rows.column_names)
    for kind, column in columns.items():
        if column is not None and column not in known:
            raise ValueError(f"{kind}_column: there is no column {column!r}; there are {', '.join(known)}")
    splits, chosen = _by_split(splits), {}
    for split, rows in splits.items():
        chosen[split] = _choose_columns(rows.features, columns)
        splits[split] = _with_columns(rows, chosen[split])
    if not any(column for by_kind in chosen.values() for column in by_kind.values()):
        raise ValueError(f"data_dir: {name} has no column of pictures, sound, video or text that can be read")
    return Tables(splits, chosen, Path(os.path.realpath(folder)))


def _load_parquet(folder: Path, files: list[str]) -> datasets.Dataset:
    try:
        return datasets.load_dataset("parquet", data_files=files, split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        for file in files:
            try:
                pyarrow.parquet.read_schema(file)
            except (OSError, ValueError) as damage:
                name = Path(file).relative_to(folder)
                raise ValueError(f"data_dir: {name} is no Parquet file, or a damaged one ({damage})") from damage
        names = ", ".join(str(Path(file).relative_to(folder)) for file in files[:5])
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"data_dir: of the Parquet files {names} one cannot be read ({reason})") from error


def _with_columns(rows: datasets.Dataset, chosen: dict[str, str | None]) -> datasets.Dataset:
    """The columns that are read, and no others, with media not decoded."""
    wanted = [column for column in chosen.values() if column is not None]
    if chosen["text"] is not None and isinstance(getattr(rows.features.get("words"), "feature", None), dict):
        wanted.append("words")  # with times
    # A table without a column has no rows: of which nothing can be read there are empty ones.
    rows = rows.with_format(None).select_columns(list(dict.fromkeys(wanted)) or rows.column_names)
    for kind, feature in FEATURES.items():
        if chosen[kind] is not None and isinstance(rows.features[chosen[kind]], feature):
            rows = rows.cast_column(chosen[kind], feature(decode=False))
    return rows


def _by_split(splits: DatasetDict) -> DatasetDict:
    """Splits under the names that we know, those of one name joined: "train.100" and "train.360", "dev" and "val"."""
    parts: dict[str, list] = {}
    for split, rows in splits.items():
        first = re.match(r"[a-z]*", split.lower())[0]
        name = SPLIT_NAMES.get(first, split)
        parts.setdefault(name, []).append(rows)
    return DatasetDict({name: datasets.concatenate_datasets(rows) for name, rows in parts.items()})


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """Parquet files by split: that which a folder or file is named after, else "train"; none that are hidden."""
    splits: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and path.name != "metadata.parquet" and Path(os.path.realpath(path)).is_relative_to(folder):
            split = split_in_words(name) or "train"
            splits.setdefault(split, []).append(str(path))
    return splits


def _choose_columns(features: datasets.Features, columns: dict[str, str | None]) -> dict[str, str | None]:
    chosen = {}
    for kind, column in columns.items():
        if column is not None and column not in features:  # another split has it
            chosen[kind] = None
        elif column is not None:
            if kind == "text":
                good = _is_text(features[column])
            else:
                good = isinstance(features[column], FEATURES[kind]) or _is_binary(features[column])
            if not good:
                wanted = "strings" if kind == "text" else f"{kind} files"
                raise ValueError(f"{kind}_column: column {column!r} holds {features[column]}, not {wanted}")
            chosen[kind] = column
        elif kind == "text":
            names = [name for name in TEXT_COLUMNS if name in features and _is_text(features[name])]
            chosen[kind] = names[0] if names else None
        else:
            found = [name for name, feature in features.items() if isinstance(feature, FEATURES[kind])]
            chosen[kind] = found[0] if found else None
    if chosen["video"] is not None and chosen["image"] is not None:
        unwanted = "video" if columns["video"] is None and columns["image"] is not None else "image"
        chosen[unwanted] = None
    return chosen


def _is_text(feature) -> bool:
    if isinstance(feature, (datasets.List, datasets.LargeList)):  # several captions of one picture
        feature = feature.feature
        return not isinstance(feature, ClassLabel) and _is_text(feature)
    return isinstance(feature, ClassLabel) or (
        isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    )


def _is_binary(feature) -> bool:
    if isinstance(feature, dict):  # as Image and Audio store their files, but not declared as one of them
        return "bytes" in feature
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
