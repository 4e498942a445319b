"""Write one self-contained page on prepared clips: counts, durations, files left out, and some clips to see and hear.

preview_dataset.py --dataset OUT [--output OUT.html]
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from arguments import parse_args
from datasets import DatasetDict
from report import render

from dataset_scripts.prepare import SKIPPED_FILE, load_clips, read_preparation
from dataset_scripts.tokenization import modalities_of
from trainers.evaluation.embed import picture, player, plot

MOST_REASONS, MOST_FILES = 20, 5  # listed, of each reason


@dataclass
class PreviewArguments:
    dataset: str = field(metadata={"help": "prepared clips, the OUT of prepare_dataset.py"})
    output: str | None = field(default=None, metadata={"help": "the page to write; OUT.html if not given"})
    num_clips: int = field(default=12, metadata={"help": "clips to show of each split, evenly spread over it"})


def main(argv: list[str] | None = None) -> Path:
    (args,) = parse_args(PreviewArguments, description=__doc__, argv=argv)
    folder = Path(args.dataset)
    try:
        if args.num_clips < 0:
            raise ValueError(f"num_clips must be at least 0, got {args.num_clips}")
        preparation = prepared(folder)
        clips = load_clips(folder)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    path = Path(args.output or f"{folder.resolve()}.html")
    page = preview(clips, folder.resolve().name, preparation, read_skipped(folder), args.num_clips)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"error: output: {path} cannot be written ({error.strerror})") from error
    print(path)
    return path


def preview(clips: DatasetDict, title: str, preparation: dict, skipped: list[dict], num_clips: int) -> str:
    """The page as HTML.

    Args:
        clips: the columns are those of `clip_features`.
        title: of the page.
        preparation: of preparation.json.
        skipped: lines of skipped.jsonl.
        num_clips: to show of each split.
    """
    lengths = {split: durations(rows) for split, rows in clips.items()}
    counts = []
    for split, rows in clips.items():
        present = modalities_of(rows)
        counts.append(
            {
                "split": split,
                "clips": len(rows),
                "sources": len(rows.unique("video")),
                **{name: int(there.sum()) for name, there in present.items()},
                "minutes": float(lengths[split].sum() / 60),
            }
        )
    return render(
        "preview.html.j2",
        title=title,
        preparation=preparation,
        counts=counts,
        histogram=histogram(lengths),
        reasons=by_reason(skipped),
        num_skipped=len(skipped),
        samples={split: [sample(row) for row in spread(rows, num_clips)] for split, rows in clips.items()},
    )


def prepared(folder: Path) -> dict:
    """The content of preparation.json.

    Raises:
        ValueError: there is no such folder, or it is not of prepare_dataset.py.
    """
    try:
        preparation = read_preparation(folder)
    except ValueError:  # says what one who writes there should know
        preparation = None
    if preparation is None:
        raise ValueError(f"dataset: {folder} holds no clips of prepare_dataset.py")
    return preparation


def read_skipped(folder: Path) -> list[dict]:
    """The lines of skipped.jsonl; none if there is no such file."""
    path = folder / SKIPPED_FILE
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [json.loads(line) for line in lines if line]


def by_reason(skipped: list[dict]) -> list[dict]:
    """Reasons from the most frequent on, each with how many files it met and the first of them.

    Those that differ in their numbers only, as that of a line or a size, count as one, which has "…" for the numbers.
    """
    alike: dict[str, list[dict]] = {}
    for entry in skipped:
        alike.setdefault(re.sub(r"\d+", "…", entry["reason"]), []).append(entry)
    found = []
    for reason, entries in sorted(alike.items(), key=lambda item: -len(item[1]))[:MOST_REASONS]:
        exact = {entry["reason"] for entry in entries}
        files = [entry["file"] for entry in entries[:MOST_FILES]]
        found.append({"reason": exact.pop() if len(exact) == 1 else reason, "count": len(entries), "files": files})
    return found


def durations(rows) -> np.ndarray:
    """Seconds of each clip; 0 for a still picture without sound."""
    columns = rows.select_columns(["start", "end"]).with_format("numpy")[:]
    return np.asarray(columns["end"]) - np.asarray(columns["start"])


def histogram(lengths: dict[str, np.ndarray]) -> str:
    """How long the clips of each split are, as an embedded picture."""

    def draw(axis):
        axis.hist(list(lengths.values()), bins=30, label=list(lengths), stacked=True)
        axis.set(xlabel="seconds", ylabel="clips")

    return plot(draw, height=2.2)


def spread(rows, number: int):
    """So many rows, evenly spread."""
    return rows.select(np.unique(np.linspace(0, len(rows) - 1, min(number, len(rows))).round().astype(int)))


def sample(row: dict) -> dict:
    """A clip as the page shows it; what it lacks is None."""
    valid, rate = row["audio_valid"], row["sampling_rate"]
    return {
        "clip_id": row["clip_id"],
        "start": row["start"],
        "end": row["end"],
        "image": picture(row["frames"]) if row["frames"] else None,
        "audio": player(np.asarray(row["audio"][:valid]), rate) if valid else None,
        "text": row["text"] or None,
    }


if __name__ == "__main__":
    main()
