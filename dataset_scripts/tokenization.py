"""Clips to token ids with `Dataset.map`, and the token folder that training reads.

A token folder is a `DatasetDict` on disk, or Parquet files named after their split, plus `tokens.json`, which says
which tokenizers made the ids. Each row has `clip_id`, `video`, `start`, `end`, the `label` if the clips have one, and
one list of ids per modality, `image_ids`, `audio_ids` and `text_ids`, without padding; the list is empty where a clip
lacks the modality (no pictures, no audio track, no text). Ids have the smallest type that holds the vocabulary. Of the
split `train` a clip may have several rows, its crops, told apart by `crop` (see `dataset_scripts.crops`).
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import datasets
import multiprocess  # what `datasets` starts its processes with
import numpy as np
import pyarrow.compute
import pyarrow.parquet
import torch
from datasets import DatasetDict
from datasets.fingerprint import Hasher

from dataset_scripts.crops import Crop

# Part of every cache key: change it when the ids change though data and tokenizers do not.
CODE_VERSION = "4"
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
    """As `present_modalities` for all rows of a data set; decodes nothing. Without its column a modality is absent."""
    needed = {"image": "frames", "audio": "audio_valid", "text": "text"}
    columns = {name: column for name, column in needed.items() if column in clips.column_names}
    present = {name: np.zeros(len(clips), dtype=bool) for name in MEDIA_COLUMNS}
    if not columns:
        return present
    place = 0
    for table in clips.select_columns(list(columns.values())).with_format("arrow").iter(ROWS_PER_SHARD):
        rows = slice(place, place := place + len(table))
        for name, column in columns.items():
            values = table[column]
            if name == "image":
                values = pyarrow.compute.list_value_length(values)
            elif name == "text":
                values = pyarrow.compute.utf8_length(pyarrow.compute.utf8_trim_whitespace(values))
            present[name][rows] = values.to_numpy() > 0
    return present


def rows_with(clips: datasets.Dataset, modalities: Iterable[str]) -> np.ndarray:
    """Numbers of the rows of a data set that have all of some modalities, int64 `(found,)`."""
    present = modalities_of(clips)
    return np.flatnonzero(np.all([present[name] for name in modalities], axis=0))


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


def id_type(vocab_size: int) -> str:
    """The smallest type for the ids of a vocabulary: uint8, uint16 or int32."""
    return next((name for name in ("uint8", "uint16") if vocab_size - 1 <= np.iinfo(name).max), "int32")


class TokenizeClips:
    """Turns a batch of rows of clips into rows of ids; what `Dataset.map` calls.

    Args:
        tokenizers: `name -> tokenizer`, the name being the modality.
        num_crops: rows that each clip becomes, one after the other.
        window: how long what the tokenizers take is, in frames (in samples if no pictures are tokenized).
        spare: by how many of them clips are longer.
        bf16: compute in bfloat16 where autocast does.
    """

    def __init__(self, tokenizers: dict, num_crops: int = 1, window: int = 0, spare: int = 0, bf16: bool = False):
        self.tokenizers = tokenizers
        self.num_crops = num_crops
        self.window = window
        self.spare = spare
        self.bf16 = bf16

    @torch.inference_mode()
    def __call__(self, batch: dict) -> dict[str, list]:
        if multiprocess.parent_process() is not None:
            # torch's threads do not survive the fork of a worker process, which would wait for them for ever.
            torch.set_num_threads(1)
        present = present_modalities(batch)
        rows = {name: list(np.repeat(batch[name], self.num_crops)) for name in KEPT_COLUMNS if name in batch}
        rows["crop"] = list(range(self.num_crops)) * len(batch["clip_id"])
        for name, tokenizer in self.tokenizers.items():
            crops = []
            for number in range(self.num_crops):
                # Without time to spare, text and sound are the same in every crop.
                alike = crops and name != "image" and not self.spare
                crops.append(crops[0] if alike else self._encode_crop(name, tokenizer, batch, number, present[name]))
            rows[f"{name}_ids"] = [ids for clip in zip(*crops, strict=True) for ids in clip]
        return rows

    def _encode_crop(self, name: str, tokenizer, batch: dict, number: int, present: np.ndarray) -> list[np.ndarray]:
        media = batch[MEDIA_COLUMNS[name]]
        if self.spare or (number and name == "image"):
            crops = [Crop.draw(str(clip_id), number) for clip_id in batch["clip_id"]]
            # From one frame to the next; of a video that ends within the clip they are closer together.
            seconds = (np.asarray(batch["end"]) - np.asarray(batch["start"])) / max(1, self.window + self.spare)
            if name == "image":
                clips = zip(crops, media, present, strict=True)
                media = [crop.frames(frames, self.spare) if there else None for crop, frames, there in clips]
            elif name == "audio":
                clips = zip(crops, media, seconds * np.asarray(batch["sampling_rate"]), strict=True)
                num_samples = tokenizer.config.num_samples
                media = [crop.samples(sound, num_samples, self.spare, spacing) for crop, sound, spacing in clips]
            else:
                clips = zip(crops, media, batch.get("cues", [()] * len(media)), seconds, strict=True)
                media = [
                    crop.text(text, cues, self.window, self.spare, spacing) for crop, text, cues, spacing in clips
                ]
                present = np.array([bool(text.strip()) for text in media], dtype=bool)
        with torch.autocast(tokenizer.device.type, torch.bfloat16, enabled=self.bf16):
            return self._encode(tokenizer, media, present)

    @staticmethod
    def _encode(tokenizer, media, present: np.ndarray) -> list[np.ndarray]:
        dtype = id_type(tokenizer.config.vocab_size)
        rows = [np.zeros(0, dtype)] * len(present)
        chosen = [item for item, there in zip(media, present, strict=True) if there]
        if chosen:
            token_ids, valid_mask = tokenizer.encode_media(chosen)
            for row, ids, mask in zip(np.flatnonzero(present), token_ids.cpu(), valid_mask.cpu(), strict=True):
                rows[row] = ids[mask].numpy().astype(dtype)
        return rows


def tokenize_clips(
    clips: DatasetDict,
    tokenizers: dict,
    output_dir: str | Path,
    batch_size: int = 64,
    num_proc: int | None = None,
    parquet: bool = False,
    num_crops: int = 1,
    bf16: bool = False,
) -> DatasetDict:
    """Tokenize every clip and save ids and the tokenizers' identity to `output_dir`.

    Work is cut into shards of 1,000 rows whose cache key holds the data's fingerprint and the hash of the
    tokenizers' weights: after a kill only the unfinished shard is done again, and changed weights miss the cache.

    Args:
        clips: a prepared data set, as `datasets.load_from_disk` returns it.
        tokenizers: `name -> tokenizer`, the name being the modality.
        output_dir: where to save; reused if it already holds the same ids.
        batch_size: clips per forward pass.
        num_proc: processes of one thread each; each shard is divided among them.
        parquet: save Parquet files of up to 10,000 rows, which training can stream, instead of Arrow files.
        num_crops: rows for each clip of the split "train", see `dataset_scripts.crops`; the others stay as they are.
            With several, clips may be longer than what the tokenizers take, sound and frames in proportion.
        bf16: encode in bfloat16, which GPUs do faster; some ids come out different.

    Raises:
        ValueError: if `output_dir` holds something else than tokens, the clips do not fit the tokenizers, or
            `num_crops`, `batch_size` or `num_proc` is not at least 1.
    """
    for name, value in {"num_crops": num_crops, "batch_size": batch_size, "num_proc": num_proc}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    output_dir = Path(output_dir)
    metadata = {
        "code_version": CODE_VERSION,
        "num_crops": num_crops,
        "bf16": bf16,
        "source": {split: rows._fingerprint for split, rows in clips.items()},
        "modalities": {name: tokenizer.describe() for name, tokenizer in tokenizers.items()},
    }
    if output_dir.exists() and any(output_dir.iterdir()):
        if not (output_dir / TOKENS_FILE).exists():
            raise ValueError(f"{output_dir} exists and holds no tokens: choose another --output_dir or remove it")
        if read_tokens_metadata(output_dir) == metadata and parquet == bool(token_files(output_dir)):
            return load_tokens(output_dir)[0]
    window, spare = _window_of_time(clips, tokenizers) if num_crops > 1 else (0, 0)
    if not spare:
        check_clips_fit(clips, tokenizers)
    made_by = [(name, described["fingerprint"]) for name, described in metadata["modalities"].items()]
    for tokenizer in tokenizers.values():
        tokenizer.eval()
    tokens = DatasetDict()
    for split, rows in clips.items():
        # What is evaluated on are the clips themselves.
        tokenize = TokenizeClips(tokenizers, num_crops if split == "train" else 1, window, spare, bf16)
        tokens[split] = _map_split(split, rows, tokenize, made_by, batch_size, num_proc)
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


def model_modalities(described: dict) -> dict:
    """What `Nano4MConfig.modalities` must know of each modality, from what its tokenizer said of itself."""
    keys = ("vocab_size", "token_axes", "bos_token_id", "eos_token_id", "pad_token_id")
    modalities = {name: {key: fields[key] for key in keys if key in fields} for name, fields in described.items()}
    for fields in modalities.values():
        # What has an end token is a sequence that grows towards it.
        fields["order"] = "left_to_right" if "eos_token_id" in fields else "any"
    return modalities


def _map_split(
    split: str, rows: datasets.Dataset, tokenize: TokenizeClips, made_by: list, batch_size: int, num_proc: int | None
) -> datasets.Dataset:
    rows = rows.with_format("numpy")
    num_shards = max(1, -(-len(rows) // ROWS_PER_SHARD))
    identity = [rows._fingerprint, CODE_VERSION, num_shards, batch_size, *made_by]
    identity += [tokenize.num_crops, tokenize.window, tokenize.spare, tokenize.bf16]
    features = {name: rows.features[name] for name in KEPT_COLUMNS if name in rows.column_names}
    features["crop"] = datasets.Value("int32")
    for name, tokenizer in tokenize.tokenizers.items():
        features[f"{name}_ids"] = datasets.List(datasets.Value(id_type(tokenizer.config.vocab_size)))
    shards = []
    for index in range(num_shards):
        shard = rows.shard(num_shards, index, contiguous=True)
        shards.append(
            shard.map(
                tokenize,
                batched=True,
                batch_size=batch_size,
                num_proc=num_proc,
                remove_columns=rows.column_names,
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


def _window_of_time(clips: DatasetDict, tokenizers: dict) -> tuple[int, int]:
    """How long what the tokenizers take is, and by how much clips are longer, in frames (or else in samples).

    Nothing is to spare where frames and sound are not so in proportion.
    """
    seen = _first_with(clips, "image") if "image" in tokenizers else None
    heard = _first_with(clips, "audio") if "audio" in tokenizers else None
    length = window = 0
    if heard is not None:
        audio = tokenizers["audio"].config
        length, window = len(heard["audio"]), audio.num_samples
        if heard["sampling_rate"] != audio.sampling_rate:
            return window, 0
    if seen is not None:
        num_samples, longer = window, length
        length, window = len(seen["frames"]), tokenizers["image"].config.num_frames
        if heard is not None and length * num_samples != window * longer:
            return window, 0
    return window, max(0, length - window)


def check_clips_fit(clips: DatasetDict, tokenizers: dict) -> None:
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
        found = rows_with(rows, [modality])
        if len(found):
            return rows.with_format("numpy")[int(found[0])]
    return None
