"""What a pipeline was trained on, kept in its folder so that nobody evaluates it on that unawares.

A row is known by its sources: the parts of its `video` between " + ", as "mnist/train/17 + 3_theo_12.wav" is
made of a picture and a recording. Names stay the same however often rows are prepared, cropped or paired anew; two
data sets that use the same names for different things are not told apart.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet

from dataset_scripts.file_names import SOURCE_SEPARATOR
from dataset_scripts.tokenization import load_tokens, token_files

FILE = "training_data.json"


def sources_of(video: str) -> list[str]:
    """What a row is made of, from its `video`."""
    return [part for part in video.split(SOURCE_SEPARATOR) if part] or [video]


def source_hashes(videos: Iterable[str]) -> np.ndarray:
    """Hashes of all sources of some rows, `(sources,)` uint64, sorted, each once."""
    sources = {source for video in set(videos) for source in sources_of(video)}
    digests = b"".join(hashlib.blake2b(source.encode(), digest_size=8).digest() for source in sources)
    return np.unique(np.frombuffer(digests, "<u8"))


def write_training_data(folder: str | Path, token_paths: list[str]) -> None:
    """Leave in a pipeline's folder the hashes of the sources it was trained on, base64 of 8 bytes each.

    Args:
        folder: of the pipeline.
        token_paths: folders of tokens, or patterns of Parquet files in them, of which the split `train` was used.
    """
    trained_on = []
    for path in token_paths:
        videos = _training_videos(path)
        tokens = Path(path) if Path(path).is_dir() else Path(path).parent
        source = {"name": tokens.resolve().parent.name, "split": "train", "num_sources": None, "source_hashes": None}
        if videos is not None:
            hashes = source_hashes(videos)
            source |= {"num_sources": len(hashes), "source_hashes": base64.b64encode(hashes.tobytes()).decode()}
        trained_on.append(source)
    (Path(folder) / FILE).write_text(json.dumps({"trained_on": trained_on}, indent=2) + "\n", encoding="utf-8")


def read_training_data(folder: str | Path) -> tuple[np.ndarray, bool]:
    """Hashes of the sources that a pipeline was trained on, sorted, and whether these are all there were.

    They are not if the pipeline does not say what it was trained on, or one of its data sets named no sources.
    """
    path = Path(folder) / FILE
    trained_on = json.loads(path.read_text(encoding="utf-8"))["trained_on"] if path.is_file() else []
    found = [source["source_hashes"] for source in trained_on if source.get("source_hashes") is not None]
    hashes = [np.frombuffer(base64.b64decode(text), "<u8") for text in found]
    known = np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, "<u8")
    return known, bool(trained_on) and len(found) == len(trained_on)


def _training_videos(path: str) -> Iterable[str] | None:
    """The `video` of all rows for training; None if they have none."""
    if files := token_files(path).get("train"):
        # Read column by column: the ids of a large data set need not pass through memory.
        if any("video" not in pyarrow.parquet.read_schema(file).names for file in files):
            return None
        columns = (pyarrow.parquet.read_table(file, columns=["video"])["video"] for file in files)
        return (video for column in columns for video in column.unique().to_pylist())
    rows = load_tokens(path)[0]["train"]
    return rows.unique("video") if "video" in rows.column_names else None
