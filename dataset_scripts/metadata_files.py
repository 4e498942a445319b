"""Metadata files: what each line of a metadata.jsonl or metadata.csv says of a file beside it."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset_scripts.media import MediaError
from dataset_scripts.transcripts import MAX_TEXT_BYTES, decode_text

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
MAX_METADATA_BYTES = 1_000_000_000
TEXT_COLUMNS = ("text", "caption", "transcription", "transcript", "sentence")


def metadata_among(names: Iterable[str]) -> list[str]:
    """The metadata files among some files, in the order in which they count; of one kind, as they come."""
    found = [name for name in names if os.path.basename(name) in METADATA_FILES]
    return sorted(found, key=lambda name: METADATA_FILES.index(os.path.basename(name)))


def read_entries(path: Path) -> Iterator[tuple[int, dict | None, str | None]]:
    """The rows of a metadata.jsonl or metadata.csv.

    Yields:
        number of the line, the row, and None; or the number, None and what is wrong with it.

    Raises:
        MediaError: the file cannot be read.
    """
    text = _read_text(path)
    if path.suffix == ".csv":
        yield from _csv_entries(text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        entry = None
        if len(line) <= 2 * MAX_TEXT_BYTES:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                pass
        good = isinstance(entry, dict)
        yield number, entry if good else None, None if good else "is not a JSON object, or too long"


def _csv_entries(text: str) -> Iterator[tuple[int, dict | None, str | None]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield reader.line_num, None, f"is not valid CSV ({error})"
            if reader.fieldnames is None:
                return
            continue
        if row is None:
            return
        if None in row:
            yield reader.line_num, None, "has more cells than the header"
        else:
            yield reader.line_num, {name: value or None for name, value in row.items()}, None


def text_entry(entry: dict, column: str | None) -> dict:
    """What `from_metadata` reads of an entry: its text, from one column or the first of `TEXT_COLUMNS`, and words."""
    columns = (column,) if column else TEXT_COLUMNS
    text = next((entry[name] for name in columns if entry.get(name) is not None), None)
    words = entry.get("words")
    return {"text": text, "words": None if isinstance(words, str) else words}  # CSV knows no lists: it is another text


def _read_text(path: Path) -> str:
    """The text of a metadata file.

    Raises:
        MediaError: it cannot be read or is too large.
    """
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise MediaError(f"more than {MAX_METADATA_BYTES // 10**6} megabytes of metadata")
        return decode_text(path.read_bytes())
    except OSError as error:
        raise MediaError(f"cannot be read ({error.strerror})") from error
