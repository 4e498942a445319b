"""From a builder of clips to a folder that training reads: the rows, what was skipped and how it was made."""

import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path

from datasets import DatasetDict, load_from_disk
from filelock import FileLock

from dataset_scripts.video_clips import VideoClips

PREPARATION_FILE = "preparation.json"
SKIPPED_FILE = "skipped.jsonl"

logger = logging.getLogger(__name__)


def prepare_clips(builder: VideoClips, output_dir: str | Path, num_proc: int | None = None) -> DatasetDict:
    """Builds the rows of `builder` and saves them, or loads them if they are there and nothing has changed.

    `output_dir` then holds a DatasetDict as of `save_to_disk`, skipped.jsonl with a line {"file", "reason"} for each
    file that gave no row, and preparation.json with the builder's name and version, the config, a fingerprint of
    settings and source files, the number of rows per split and of skipped files.  A former preparation from other
    settings or files is replaced.  Splits without a row are left out.

    Args:
        builder: of `VideoClips`, a subclass, or another builder with its methods `fingerprint`, `scanned_folder` and
            `skipped_files`.
        output_dir: folder to write.
        num_proc: processes that decode; the rows do not depend on it.

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
        if former is not None and former["fingerprint"] == fingerprint:
            logger.info("Reusing the clips in %s", output_dir)
            return load_from_disk(str(output_dir))
        if (folder := builder.scanned_folder()) is not None:
            _check_apart(folder, output_dir)

        cached = Path(builder.cache_dir).exists()
        builder.download_and_prepare(num_proc=num_proc)
        clips, skipped = _load_splits(builder), builder.skipped_files()
        if not clips:
            reasons = Counter(file.reason for file in skipped).most_common(3)
            reasons = "; ".join(f"{reason} ({count}x)" for reason, count in reasons) or "it holds no files"
            raise ValueError(f"No usable clip in {builder.scanned_folder()}: {reasons}")

        unfinished = output_dir.parent / f".{output_dir.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was stopped
        clips.save_to_disk(str(unfinished), num_proc=None)
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
        if not cached:
            # The saved copy is all that is needed; a cache that was there before is its owner's.
            del clips
            shutil.rmtree(builder.cache_dir, ignore_errors=True)
    if skipped:
        logger.warning("%d files gave no clip, see %s", len(skipped), output_dir / SKIPPED_FILE)
    return load_from_disk(str(output_dir))


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


def _load_splits(builder: VideoClips) -> DatasetDict:
    splits = {str(name): info.num_examples for name, info in builder.info.splits.items()}
    clips = DatasetDict({name: builder.as_dataset(name) for name, count in splits.items() if count})
    # The share that was drawn for training may have been unusable files only.
    if "train" not in clips and "validation" in clips:
        if not any((builder.scanned_folder() / name).is_dir() for name in splits):
            clips["train"] = clips.pop("validation")
    return clips


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
