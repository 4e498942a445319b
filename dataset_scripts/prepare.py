"""From a builder of clips to a folder that training reads: the rows, what was skipped and how it was made.

The rows are made in shards beside the output folder (dataset_scripts.shards); a run that was stopped finds them again.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections import Counter
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from filelock import FileLock

from dataset_scripts.shards import make_shards
from dataset_scripts.video_clips import SKIPPED_FILES, VideoClips, read_skipped

PREPARATION_FILE = "preparation.json"
SKIPPED_FILE = "skipped.jsonl"
BYTES_PER_FILE = 500 * 10**6  # of Parquet
ROWS_PER_GROUP = 50  # of Parquet, read at once when streaming

logger = logging.getLogger(__name__)


def prepare_clips(
    builder: VideoClips, output_dir: str | Path, num_proc: int | None = None, parquet: bool = False
) -> DatasetDict:
    """Builds the rows of `builder` and saves them, or loads them if they are there and nothing has changed.

    `output_dir` then holds a DatasetDict as of `save_to_disk` or Parquet files, skipped.jsonl with a line {"file",
    "reason"} for each file that gave no row, and preparation.json with the builder's name and version, the config, a
    fingerprint of settings and source files, the number of rows per split and of skipped files.  A former preparation
    from other settings or files is replaced.  Splits without a row are left out.  A run that was stopped goes on
    where it was, but for the shard of source files that was being read.

    Args:
        builder: of `VideoClips`, a subclass, or another builder with `fingerprint` and `scanned_folder`,
            as `make_shards` needs it.
        output_dir: folder to write.
        num_proc: processes that decode; the rows do not depend on it.
        parquet: write files named train-00000-of-00003.parquet, which `datasets` can stream, instead of Arrow files.

    Returns:
        The saved rows, memory-mapped; the columns are those of `clip_features`.

    Raises:
        ValueError: there is no usable clip at all, `output_dir` holds something else, or source and output folder
            lie within each other.
        UnusableFileError: a file cannot be used and the config says `strict`.
    """
    output_dir = Path(output_dir).expanduser().resolve()
    if num_proc is not None and (not isinstance(num_proc, int) or isinstance(num_proc, bool) or num_proc < 1):
        raise ValueError(f"num_proc must be a whole number from 1, or None, got {num_proc!r}")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Several processes of one training run may come here at once; one of them works.
    with FileLock(output_dir.parent / f".{output_dir.name}.lock"):
        former = read_preparation(output_dir)
        fingerprint = builder.fingerprint()
        if former is not None and former["fingerprint"] == fingerprint and parquet == bool(clip_files(output_dir)):
            logger.info("Reusing the clips in %s", output_dir)
            return load_clips(output_dir)
        if (folder := builder.scanned_folder()) is not None:
            _check_apart(folder, output_dir)

        folder = output_dir.parent / f".{output_dir.name}.shards"
        shards = make_shards(builder, folder, fingerprint, num_proc)
        clips = _join(shards, builder)
        skipped = read_skipped([*folder.glob(SKIPPED_FILES), *folder.glob(f"*/{SKIPPED_FILES}")])
        if not clips:
            reasons = Counter(file.reason for file in skipped).most_common(3)
            reasons = "; ".join(f"{reason} ({count}x)" for reason, count in reasons) or "it holds no files"
            raise ValueError(f"No usable clip in {builder.scanned_folder()}: {reasons}")

        unfinished = output_dir.parent / f".{output_dir.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was stopped
        if parquet:
            _save_parquet(clips, unfinished)
        else:
            clips.save_to_disk(str(unfinished))
        lines = (json.dumps(dataclasses.asdict(file), ensure_ascii=False) + "\n" for file in skipped)
        (unfinished / SKIPPED_FILE).write_text("".join(lines), encoding="utf-8")
        config = {**dataclasses.asdict(builder.config), "version": str(builder.config.version)}
        preparation = {
            "builder": type(builder).__name__,
            "version": config.pop("version"),
            "config": config,
            "fingerprint": fingerprint,
            "num_rows": clips.num_rows,
            "num_skipped": len(skipped),
        }
        text = json.dumps(preparation, indent=2, ensure_ascii=False, default=str)
        (unfinished / PREPARATION_FILE).write_text(text + "\n", encoding="utf-8")
        _replace(output_dir, unfinished)
        if getattr(builder.config, "validation_fraction", 0) and "validation" not in clips:
            logger.warning(
                "There is no clip for validation: no file was meant for it, or those that were gave no clip. Without "
                "it training cannot be watched; see %s, or prepare with other split folders or validation_fraction",
                output_dir / SKIPPED_FILE,
            )
        del clips, shards  # the saved copy is all that is needed
        shutil.rmtree(folder, ignore_errors=True)
    if skipped:
        logger.warning("%d files gave no clip, see %s", len(skipped), output_dir / SKIPPED_FILE)
    return load_clips(output_dir)


def load_clips(path: str | Path) -> DatasetDict:
    """The clips in a folder of `prepare_clips`, whichever way they were saved; or of `DatasetDict.save_to_disk`.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of the kind in it.
    """
    files = clip_files(path)
    if not files:
        return load_from_disk(str(path))
    clips = load_dataset("parquet", data_files=files)
    try:
        made = read_preparation(path)
    except ValueError:
        return clips  # of other origin
    for split, rows in clips.items():
        # That of `load_dataset` follows the times of the files, and would not know a copy for the same clips.
        rows._fingerprint = f"{made['fingerprint']}-{split}"
    return clips


def clip_files(path: str | Path) -> dict[str, list[str]]:
    """The Parquet files of prepared clips in a folder, by split and in order; empty if there are none."""
    files: dict[str, list[str]] = {}
    for file in sorted(Path(path).glob("*.parquet")):
        numbered = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", file.stem)
        if numbered:
            files.setdefault(numbered[1], []).append(str(file))
    return files


def read_preparation(output_dir: str | Path) -> dict | None:
    """The content of a preparation.json; None if the folder does not exist or is empty.

    Raises:
        ValueError: the folder, or file, is something else, which we must not replace.
    """
    output_dir = Path(output_dir)
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return None
    try:
        preparation = json.loads((output_dir / PREPARATION_FILE).read_text(encoding="utf-8"))
        if isinstance(preparation, dict) and "fingerprint" in preparation:
            return preparation
    except (OSError, ValueError):
        pass
    raise ValueError(f"{output_dir} exists and holds no clips that were prepared here; choose another output folder")


def _join(shards: dict[str, list[Dataset]], builder: VideoClips) -> DatasetDict:
    clips = DatasetDict({split: concatenate_datasets(parts) for split, parts in shards.items() if parts})
    # The share that was drawn for training may have been unusable files only.
    if "train" not in clips and "validation" in clips and not builder.has_own_splits():
        clips["train"] = clips.pop("validation")
    for rows in clips.values():
        rows.info.dataset_name = builder.dataset_name
    return clips


def _save_parquet(clips: DatasetDict, folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, rows in clips.items():
        count = max(1, -(-rows.data.nbytes // BYTES_PER_FILE))
        for index in range(count):
            part = rows.shard(count, index, contiguous=True)
            part.to_parquet(folder / f"{split}-{index:05d}-of-{count:05d}.parquet", batch_size=ROWS_PER_GROUP)


def _check_apart(source: Path, output_dir: Path) -> None:
    if output_dir.is_relative_to(source):
        raise ValueError(f"The output folder {output_dir} must not lie in the source folder {source}")
    if source.is_relative_to(output_dir):
        raise ValueError(f"The source folder {source} must not lie in the output folder {output_dir}")


def _replace(output_dir: Path, new: Path) -> None:
    """Puts the finished folder in place; at no moment is a half-written one there."""
    old = output_dir.parent / f".{output_dir.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output_dir.exists():
        os.rename(output_dir, old)
    os.rename(new, output_dir)
    shutil.rmtree(old, ignore_errors=True)
