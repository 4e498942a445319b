"""results.json: written after each finished part, so that an interrupted evaluation goes on where it was."""

import hashlib
import json
import logging
import re
from pathlib import Path

from huggingface_hub import snapshot_download

logger = logging.getLogger(__name__)

COLUMNS = {
    "accuracy": "accuracy",
    "relative_accuracy": "relative",
    "shuffled": "shuffled",
    "chance": "chance",
    "judge_on_real": "judge on real",
    "word_error": "WER",
    "character_error": "CER",
    "closer_to_true": "closer to true",
    "nats": "nats",
    "nats_unconditional": "nats uncond.",
    "information": "information",
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "diversity": "diversity",
    "seconds_per_sample": "s per sample",
}
# The others would not fit into the width of a terminal; the page has them.
IN_TERMINAL = "accuracy relative_accuracy shuffled chance word_error nats information r1 r5 r10 diversity".split()
LIST_OF_NUMBERS = re.compile(r"\[\n\s+[-+.\deE,\s]+?\n\s+\]")


class Results:
    """A JSON file of parts, each with what it was made with.

    Args:
        path: of the file; what it holds is kept if it is of the same identity, else moved to results.old.json.
        identity: what all parts follow from, of what JSON can hold.
    """

    def __init__(self, path: str | Path, identity: dict):
        self.path = Path(path)
        identity = json.loads(json.dumps(identity))
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            saved = {}
        self.values = saved if saved.get("identity") == identity else {"identity": identity}
        if self.values is not saved and self.path.exists():
            old = self.path.with_name(f"{self.path.stem}.old{self.path.suffix}")
            self.path.replace(old)
            logger.warning("%s was of another model, judge, data or options: moved to %s", self.path, old.name)

    def get(self, section: str, name: str, made_with) -> dict | None:
        """A part that is there already and was made with the same settings."""
        part = self.values.get(section, {}).get(name)
        return part if part and part["settings"] == json.loads(json.dumps(made_with)) else None

    def put(self, section: str, name: str, made_with, value: dict) -> dict:
        """Keep a part."""
        part = {**value, "settings": json.loads(json.dumps(made_with))}
        self.values.setdefault(section, {})[name] = part
        self.save()
        return part

    def keep(self, section: str, made_with: dict[str, object]) -> None:
        """Drop the parts of a section that were made with other settings than these, by name."""
        parts = self.values.get(section, {})
        self.values[section] = {name: part for name, part in parts.items() if self.get(section, name, made_with[name])}
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        # Numbers of each clip on a line of their own would hide the others.
        text = LIST_OF_NUMBERS.sub(lambda match: re.sub(r"\s+", " ", match[0]), json.dumps(self.values, indent=2))
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def local_folder(name: str) -> str:
    """Where a model or a judge lies on this machine: a repository of the Hub is downloaded, other names stay.

    Raises:
        ValueError: `USER/NAME` is neither here nor on the Hub, or cannot be read from there.
    """
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    try:
        return snapshot_download(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: there is no such folder, and the Hub gives none of this name ({error})") from error


def fingerprint(path: str | Path) -> str:
    """Hash of a file, or of weights, configurations and vocabularies in a folder and in its components' folders.

    How to sample is not in it: that belongs to each part of the results.

    Raises:
        ValueError: there is nothing of the kind.
    """
    path, digest = Path(path), hashlib.sha256()
    files = [path] if path.is_file() else []
    for name in ("*.safetensors", "config.json", "tokenizer.json"):
        files += sorted([*path.glob(name), *path.glob(f"*/{name}")])
    if not files:
        raise ValueError(f"{path}: no file, or folder with weights or configurations, to tell it from others by")
    for file in files:
        digest.update(f"{file.relative_to(path)}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def main_figures(result: dict) -> dict[str, float]:
    """The figures of a direction that a table shows, those that there are."""
    retrieval, diversity = result.get("retrieval", {}), result.get("diversity", {})
    flat = {**result, **retrieval, "diversity": diversity.get("relative")}
    return {name: flat[name] for name in COLUMNS if flat.get(name) is not None}


def table(results: dict[str, dict]) -> str:
    """Main figures of directions as text, a line each; those that fit beside each other."""
    rows = {name: main_figures(result) for name, result in results.items()}
    columns = [name for name in IN_TERMINAL if any(name in row for row in rows.values())]
    first = max(map(len, rows), default=0)
    widths = {name: 2 + max(5, len(COLUMNS[name])) for name in columns}
    lines = [" " * first + "".join(f"{COLUMNS[name]:>{width}}" for name, width in widths.items())]
    for name, row in rows.items():
        cells = [f"{row[n]:{width}.3f}" if n in row else " " * width for n, width in widths.items()]
        lines.append(f"{name:{first}}" + "".join(cells) + f"  {results[name].get('skipped', '')}".rstrip())
    return "\n".join(lines)


def gain_lines(gains: dict[str, dict]) -> str:
    """How much pairs of conditions gain over single ones (`trainers.evaluation.directions.gains`), a line each."""
    return "\n".join(
        f"{name}: {part['measure']} {part['gain']:+.3f} against {part['over']}"
        + (" [{:+.3f}, {:+.3f}]".format(*part["gain_interval"]) if part["gain_interval"] else "")
        for name, part in gains.items()
    )
