"""Clips to token ids with `Dataset.map`, and the token folder that training reads.

A token folder is a `DatasetDict` on disk, or Parquet files named after their split, plus `tokens.json`, which says
which tokenizers made the ids. Each row has `clip_id`, `video`, `start`, `end`, the `label` if the clips have one, and
one list of ids per modality, `image_ids`, `audio_ids` and `text_ids`, without padding; the list is empty where a clip
lacks the modality (no pictures, no audio track, no text).
"""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute
import pyarrow.parquet
import torch
from datasets import DatasetDict
from datasets.fingerprint import Hasher

# Part of every cache key: change it when the ids change though data and tokenizers do not.
CODE_VERSION = "1"
TOKENS_FILE = "tokens.json"
ROWS_PER_SHARD = 1000
ROWS_PER_FILE = 10_000
KEPT_COLUMNS = ["clip_id", "video", "start", "end", "label"]  # those of them that the clips have
MEDIA_COLUMNS = {"image": "frames", "audio": "audio", "text": "text"}


def present_modalities(batch: dict) -> dict[str, np.ndarray]:
    """Which rows have each modality, bool `(rows,)`: a clip may lack frames, an audio track, or words."""
    return {
        "image": np.array([len(frames) > 0 for frames in batch["frames"]], dtype=bool),
        "audio": np.asarray(batch["audio_valid"]) > 0,
        "text": np.array([bool(str(text).strip()) for text in batch["text"]], dtype=bool),
    }


def modalities_of(clips: datasets.Dataset) -> dict[str, np.ndarray]:
    """As `present_modalities` for all rows of a data set; decodes nothing."""
    columns = clips.select_columns(["frames", "audio_valid", "text"]).with_format("arrow")
    parts = []
    for table in columns.iter(ROWS_PER_SHARD):
        numbers = {name: table[name].to_pylist() for name in ("audio_valid", "text")}
        lengths = pyarrow.compute.list_value_length(table["frames"]).to_pylist()
        parts.append(present_modalities({"frames": [range(length) for length in lengths], **numbers}))
    none = np.zeros(0, dtype=bool)
    return {name: np.concatenate([none, *(part[name] for part in parts)]) for name in MEDIA_COLUMNS}


def clips_with(clips: DatasetDict, modality: str) -> DatasetDict:
    """The clips that have a modality, without the splits that have none.

    Raises:
        ValueError: no clip of "train" has it.
    """
    chosen = {}
    for split, rows in clips.items():
        present = modalities_of(rows)[modality]
        if present.any():
            chosen[split] = rows if present.all() else rows.select(np.flatnonzero(present))
    if "train" not in chosen:
        raise ValueError(f"no clip has {modality}, so no {modality} tokenizer can be trained on them")
    return DatasetDict(chosen)


class TokenizeClips:
    """Turns a batch of rows of clips into rows of ids; what `Dataset.map` calls."""

    def __init__(self, tokenizers: dict):
        self.tokenizers = tokenizers

    @torch.inference_mode()
    def __call__(self, batch: dict) -> dict[str, list[np.ndarray]]:
        present = present_modalities(batch)
        return {
            f"{name}_ids": self._encode(tokenizer, batch[MEDIA_COLUMNS[name]], present[name])
            for name, tokenizer in self.tokenizers.items()
        }

    @staticmethod
    def _encode(tokenizer, media, present: np.ndarray) -> list[np.ndarray]:
        rows = [np.zeros(0, dtype=np.int64)] * len(present)
        chosen = [item for item, there in zip(media, present, strict=True) if there]
        if chosen:
            token_ids, valid_mask = tokenizer.encode_media(chosen)
            for row, ids, mask in zip(np.flatnonzero(present), token_ids.cpu(), valid_mask.cpu(), strict=True):
                rows[row] = ids[mask].numpy()
        return rows


def tokenize_clips(
    clips: DatasetDict,
    tokenizers: dict,
    output_dir: str | Path,
    batch_size: int = 64,
    num_proc: int | None = None,
    parquet: bool = False,
) -> DatasetDict:
    """Tokenize every clip and save ids and the tokenizers' identity to `output_dir`.

    Work is cut into shards of 1,000 rows whose cache key holds the data's fingerprint and the hash of the
    tokenizers' weights: after a kill only the unfinished shard is done again, and changed weights miss the cache.

    Args:
        clips: a prepared data set, as `datasets.load_from_disk` returns it.
        tokenizers: `name -> tokenizer`, the name being the modality.
        output_dir: where to save; reused if it already holds the same ids.
        batch_size: clips per forward pass.
        num_proc: processes; each shard is divided among them.
        parquet: save Parquet files of up to 10,000 rows, which training can stream, instead of Arrow files.

    Raises:
        ValueError: if `output_dir` holds something else than tokens, or the clips do not fit the tokenizers.
    """
    output_dir = Path(output_dir)
    metadata = {
        "code_version": CODE_VERSION,
        "source": {split: rows._fingerprint for split, rows in clips.items()},
        "modalities": {name: tokenizer.describe() for name, tokenizer in tokenizers.items()},
    }
    if output_dir.exists() and any(output_dir.iterdir()):
        if not (output_dir / TOKENS_FILE).exists():
            raise ValueError(f"{output_dir} exists and holds no tokens: choose another --output_dir or remove it")
        if read_tokens_metadata(output_dir) == metadata and parquet == bool(token_files(output_dir)):
            return load_tokens(output_dir)[0]
    _check_clips_fit(clips, tokenizers)
    made_by = [(name, described["fingerprint"]) for name, described in metadata["modalities"].items()]
    for tokenizer in tokenizers.values():
        tokenizer.eval()
    tokens = DatasetDict(
        {split: _map_split(split, rows, tokenizers, made_by, batch_size, num_proc) for split, rows in clips.items()}
    )
    temporary = output_dir.with_name(output_dir.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    if parquet:
        _save_parquet(tokens, temporary)
    else:
        tokens.save_to_disk(temporary)
    (temporary / TOKENS_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(output_dir, ignore_errors=True)
    temporary.rename(output_dir)
    return load_tokens(output_dir)[0]


def load_tokens(path: str | Path, streaming: bool = False) -> tuple[dict, dict]:
    """Read tokens: the splits, and for each modality what its tokenizer said of itself.

    Args:
        path: a token folder, or a pattern of Parquet files beside a `tokens.json`.
        streaming: return the split `train` as an `IterableDataset` that reads the Parquet files bit by bit.

    Raises:
        ValueError: if `path` is no token folder, or there are no Parquet files to stream.
    """
    files = token_files(path)
    if not files and streaming:
        raise ValueError(f"{path}: no Parquet files to stream; write them with tokenize_dataset.py --parquet true")
    if not files:
        return DatasetDict.load_from_disk(path), read_tokens_metadata(path)["modalities"]
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    described = read_tokens_metadata(folder)["modalities"]
    splits = {
        # What is evaluated on is read whole and in order, however large the training data are.
        split: datasets.load_dataset(
            "parquet", data_files=names, split="train", streaming=streaming and split == "train"
        )
        for split, names in files.items()
    }
    return (splits if streaming else DatasetDict(splits)), described


def token_files(path: str | Path) -> dict[str, list[str]]:
    """Parquet files in a folder or of a pattern, by split: those of `train` and `validation`, no others.

    The split is what comes before `-00000-of-00001` in a file's name. Of names without such numbers, `validation*` is
    for validation, `test*` for neither, all others for training.
    """
    path = Path(path)
    found = sorted(path.glob("*.parquet") if path.is_dir() else path.parent.glob(path.name))
    splits: dict[str, list[str]] = {}
    for file in found:
        numbered = re.fullmatch(r"(.+)-\d+-of-\d+", file.stem)
        if numbered:
            split = numbered[1]
        else:
            split = next((name for name in ("validation", "test") if file.stem.startswith(name)), "train")
        if file.suffix == ".parquet" and split in ("train", "validation"):
            splits.setdefault(split, []).append(str(file))
    return splits


def count_rows(files: list[str]) -> int:
    """Rows of Parquet files, from their footers."""
    return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)


def read_tokens_metadata(folder: str | Path) -> dict:
    path = Path(folder) / TOKENS_FILE
    if not path.exists():
        raise ValueError(f"{folder} is not a token folder: {TOKENS_FILE} is missing; make it with tokenize_dataset.py")
    return json.loads(path.read_text(encoding="utf-8"))


def check_tokenizers(described: dict, tokenizers: dict) -> None:
    """Raise ValueError unless the ids described in a token folder were made by exactly these tokenizers."""
    for name, expected in described.items():
        if name not in tokenizers:
            raise ValueError(f"the tokens have modality {name!r}, but there is no tokenizer for it")
        found = tokenizers[name].describe()
        for field in expected:
            if found.get(field) != expected[field]:
                raise ValueError(
                    f"the {name} tokenizer is not the one that made the tokens: {field} is {found.get(field)!r}, "
                    f"the tokens were made with {expected[field]!r}; run tokenize_dataset.py again"
                )


def _map_split(
    split: str, rows: datasets.Dataset, tokenizers: dict, made_by: list, batch_size: int, num_proc: int | None
) -> datasets.Dataset:
    rows = rows.with_format("numpy")
    num_shards = max(1, -(-len(rows) // ROWS_PER_SHARD))
    kept = [name for name in KEPT_COLUMNS if name in rows.column_names]
    identity = [rows._fingerprint, CODE_VERSION, num_shards, batch_size, *made_by]
    features = {name: rows.features[name] for name in kept}
    features |= {f"{name}_ids": datasets.List(datasets.Value("int32")) for name in tokenizers}
    shards = []
    for index in range(num_shards):
        shard = rows.shard(num_shards, index, contiguous=True)
        shards.append(
            shard.map(
                TokenizeClips(tokenizers),
                batched=True,
                batch_size=batch_size,
                num_proc=num_proc,
                remove_columns=[name for name in rows.column_names if name not in kept],
                features=datasets.Features(features),
                new_fingerprint=Hasher.hash([*identity, index]),
                desc=f"tokenize {split} {index + 1}/{num_shards}",
            )
        )
    return datasets.concatenate_datasets(shards).with_format(None)


def _save_parquet(tokens: DatasetDict, folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, rows in tokens.items():
        number = max(1, -(-len(rows) // ROWS_PER_FILE))
        for index in range(number):
            name = f"{split}-{index:05d}-of-{number:05d}.parquet"
            rows.shard(number, index, contiguous=True).to_parquet(folder / name)


def _check_clips_fit(clips: DatasetDict, tokenizers: dict) -> None:
    image, row = tokenizers.get("image"), _first_with(clips, "image")
    if image is not None and row is not None and len(row["frames"]) != image.config.num_frames:
        raise ValueError(
            f"the clips have {len(row['frames'])} frames, the image tokenizer takes num_frames="
            f"{image.config.num_frames}: prepare the data or train the tokenizer anew"
        )
    audio, row = tokenizers.get("audio"), _first_with(clips, "audio")
    if audio is None or row is None:
        return
    if row["sampling_rate"] != audio.config.sampling_rate or len(row["audio"]) != audio.config.num_samples:
        raise ValueError(
            f"the clips have {len(row['audio'])} samples at {row['sampling_rate']} Hz, the audio tokenizer takes "
            f"{audio.config.num_samples} at {audio.config.sampling_rate}: prepare the data or train it anew"
        )


def _first_with(clips: DatasetDict, modality: str) -> dict | None:
    for rows in clips.values():
        found = np.flatnonzero(modalities_of(rows)[modality])
        if len(found):
            return rows.with_format("numpy")[int(found[0])]
    return None
