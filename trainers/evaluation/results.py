"""results.json: written after each finished part, so that an interrupted evaluation goes on where it was."""

import hashlib
import json
from pathlib import Path

COLUMNS = {
    "accuracy": "accuracy",
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
    "r10": "R@10",
    "diversity": "diversity",
    "seconds_per_sample": "s per sample",
}


class Results:
    """A JSON file of parts, each with what it was made with.

    Args:
        path: of the file; what it holds is kept if it is of the same identity, else started over.
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

    def get(self, section: str, name: str, made_with) -> dict | None:
        """A part that is there already and was made with the same settings."""
        part = self.values.get(section, {}).get(name)
        return part if part and part["settings"] == json.loads(json.dumps(made_with)) else None

    def put(self, section: str, name: str, made_with, value: dict) -> dict:
        """Keep a part."""
        part = {"settings": json.loads(json.dumps(made_with)), **value}
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
        unfinished.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def fingerprint(path: str | Path) -> str:
    """Hash of a file, or of weights, configurations and vocabularies in a folder and in its components' folders.

    How to sample is not in it: that belongs to each part of the results.
    """
    path, digest = Path(path), hashlib.sha256()
    files = [path] if path.is_file() else []
    for name in ("*.safetensors", "config.json", "tokenizer.json"):
        files += sorted([*path.glob(name), *path.glob(f"*/{name}")])
    for file in files:
        digest.update(f"{file.relative_to(path)}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def main_figures(result: dict) -> dict[str, float]:
    """The figures of a direction that a table shows, those that there are."""
    retrieval, diversity = result.get("retrieval", {}), result.get("diversity", {})
    flat = {**result, **retrieval, "diversity": diversity.get("relative")}
    return {name: flat[name] for name in COLUMNS if flat.get(name) is not None}


def table(results: dict[str, dict]) -> str:
    """Main figures of directions as text, a line each."""
    rows = {name: main_figures(result) for name, result in results.items()}
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    first = max(map(len, rows), default=0)
    widths = {name: 2 + max(6, len(COLUMNS[name])) for name in columns}
    lines = [" " * first + "".join(f"{COLUMNS[name]:>{width}}" for name, width in widths.items())]
    for name, row in rows.items():
        cells = [f"{row[n]:{width}.3f}" if n in row else " " * width for n, width in widths.items()]
        lines.append(f"{name:{first}}" + "".join(cells) + f"  {results[name].get('skipped', '')}".rstrip())
    return "\n".join(lines)
