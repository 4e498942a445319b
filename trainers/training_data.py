"""Which clips a pipeline was trained on, kept in its folder so that nobody evaluates it on them unawares."""

import json
from pathlib import Path

from dataset_scripts.tokenization import read_tokens_metadata

FILE = "training_data.json"


def write_training_data(folder: str | Path, token_paths: list[str]) -> None:
    """Leave in a pipeline's folder which clips it was trained on.

    Args:
        folder: of the pipeline.
        token_paths: folders of tokens, or patterns of Parquet files in them, of which the split `train` was used.
    """
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in token_paths]
    sources = [
        {"name": tokens.resolve().parent.name, "split": split, "fingerprint": fingerprint}
        for tokens in folders
        for split, fingerprint in read_tokens_metadata(tokens).get("source", {}).items()
        if split == "train"
    ]
    (Path(folder) / FILE).write_text(json.dumps({"trained_on": sources}, indent=2) + "\n", encoding="utf-8")


def read_training_data(folder: str | Path) -> list[dict] | None:
    """The name, split and fingerprint of each set of clips a pipeline was trained on; None if it does not say."""
    path = Path(folder) / FILE
    return json.loads(path.read_text(encoding="utf-8"))["trained_on"] if path.is_file() else None
