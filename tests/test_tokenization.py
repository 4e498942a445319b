"""Tokens on disk: the right ids, cached across processes, resumed by shards, bound to their tokenizers."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from PIL import Image
from test_tokenizers import TEXTS, audio_tokenizer, image_tokenizer, text_tokenizer

from dataset_scripts import tokenization
from dataset_scripts.tokenization import (
    MEDIA_COLUMNS,
    check_tokenizers,
    count_rows,
    load_tokens,
    token_files,
    tokenize_clips,
)
from dataset_scripts.video_clips import clip_features
from tokenizers_4m import load_tokenizers

SCRIPTS = Path(__file__).parent.parent / "scripts"
ABSENT = {3: "audio", 5: "text"}  # rows that lack a modality


def make_clips(size: int) -> Dataset:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(size):
        frames = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
        silent = ABSENT.get(i) == "audio"
        audio = np.zeros(8000) if silent else rng.normal(size=8000) * 0.1
        rows.append(
            {
                "clip_id": f"{i}.mp4#0",
                "video": f"{i}.mp4",
                "start": 0.0,
                "end": 0.5,
                "frames": frames,
                "audio": audio.astype("float32"),
                "audio_valid": 0 if silent else 8000,
                "sampling_rate": 16000,
                "text": " " if ABSENT.get(i) == "text" else TEXTS[i % len(TEXTS)],
                "cues": [],
            }
        )
    return Dataset.from_list(rows, features=clip_features(2, 8000))


@pytest.fixture
def folders(tmp_path):
    """Clips and tokenizers as the earlier stages leave them."""
    DatasetDict({"train": make_clips(10), "validation": make_clips(4)}).save_to_disk(tmp_path / "clips")
    for name, tokenizer in (("image", image_tokenizer()), ("audio", audio_tokenizer()), ("text", text_tokenizer())):
        tokenizer.save_pretrained(tmp_path / "tokenizers" / name)
    return tmp_path


def tokenize_in_a_new_process(folders: Path, output: str) -> None:
    command = [sys.executable, SCRIPTS / "tokenize_dataset.py", "--dataset", folders / "clips"]
    command += ["--tokenizers", folders / "tokenizers", "--output_dir", folders / output]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def cache_files(folders: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folders.glob("clips/**/cache-*.arrow")}


def test_rows_hold_what_the_tokenizers_give(folders):
    clips, tokenizers = load_from_disk(folders / "clips"), load_tokenizers(folders / "tokenizers")
    tokens = tokenize_clips(clips, tokenizers, folders / "tokens", batch_size=3)
    assert tokens.num_rows == {"train": 10, "validation": 4}
    assert tokens["train"]["clip_id"][:] == clips["train"]["clip_id"][:]
    assert sorted(load_from_disk(folders / "tokens")) == ["train", "validation"]
    for i, row in enumerate(tokens["train"]):
        for name, tokenizer in tokenizers.items():
            if ABSENT.get(i) == name:
                assert row[f"{name}_ids"] == [], "an absent modality has no ids"
                continue
            item = clips["train"].with_format("numpy" if name == "audio" else None)[i][MEDIA_COLUMNS[name]]
            with torch.no_grad():
                token_ids, valid_mask = tokenizer.encode_media([item])
            assert row[f"{name}_ids"] == token_ids[valid_mask].tolist()


def test_another_process_hits_the_cache_until_the_weights_change(folders):
    tokenize_in_a_new_process(folders, "first")
    before = cache_files(folders)
    assert len(before) == 2
    tokenize_in_a_new_process(folders, "second")
    assert cache_files(folders) == before
    first, second = (load_from_disk(folders / name)["train"][:] for name in ("first", "second"))
    assert first == second

    changed = image_tokenizer()
    with torch.no_grad():
        changed.quantizer.codebooks.copy_(changed.quantizer.codebooks.flip(1))
    changed.save_pretrained(folders / "tokenizers" / "image")
    tokenize_in_a_new_process(folders, "second")
    assert len(cache_files(folders)) == 4
    third = load_from_disk(folders / "second")["train"][:]
    assert third["image_ids"] != first["image_ids"] and third["audio_ids"] == first["audio_ids"]


def test_processes_share_the_work_and_change_nothing(folders):
    clips, tokenizers = load_from_disk(folders / "clips"), load_tokenizers(folders / "tokenizers")
    alone = tokenize_clips(clips, tokenizers, folders / "alone", batch_size=2)
    for path in cache_files(folders):
        Path(path).unlink()
    shared = tokenize_clips(clips, tokenizers, folders / "shared", batch_size=2, num_proc=2)
    assert {split: rows[:] for split, rows in shared.items()} == {split: rows[:] for split, rows in alone.items()}


SLOW_RUN = """
import sys, time
from pathlib import Path
from datasets import load_from_disk
from dataset_scripts import tokenization
from tokenizers_4m import load_tokenizers

folder = Path(sys.argv[1])
tokenization.ROWS_PER_SHARD = 3
tokenizers = load_tokenizers(folder / "tokenizers")
tokenizers["image"].encoder.register_forward_hook(lambda *_: time.sleep(0.5))
tokenization.tokenize_clips(load_from_disk(folder / "clips"), tokenizers, folder / "tokens")
"""


def test_a_killed_run_keeps_its_finished_shards(folders, monkeypatch):
    monkeypatch.setattr(tokenization, "ROWS_PER_SHARD", 3)
    clips, tokenizers = load_from_disk(folders / "clips"), load_tokenizers(folders / "tokenizers")
    with subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(folders)], cwd=SCRIPTS.parent) as run:
        while len(cache_files(folders)) < 3:
            assert run.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        run.kill()
    assert not (folders / "tokens").exists()
    finished = cache_files(folders)
    assert len(finished) < 6  # four shards of 10 rows, two of 4
    tokens = tokenize_clips(clips, tokenizers, folders / "tokens")
    after = cache_files(folders)
    assert len(after) == 6 and finished.items() <= after.items(), "what was finished is not done again"
    for path in after:
        Path(path).unlink()
    whole = tokenize_clips(clips, tokenizers, folders / "whole")
    assert {split: rows[:] for split, rows in tokens.items()} == {split: rows[:] for split, rows in whole.items()}


def test_parquet_files_hold_the_same_rows(folders, monkeypatch):
    monkeypatch.setattr(tokenization, "ROWS_PER_FILE", 4)
    clips, tokenizers = load_from_disk(folders / "clips"), load_tokenizers(folders / "tokenizers")
    arrow = tokenize_clips(clips, tokenizers, folders / "tokens")
    parquet = tokenize_clips(clips, tokenizers, folders / "tokens", parquet=True)
    assert len(token_files(folders / "tokens")["train"]) == 3
    assert {split: rows[:] for split, rows in parquet.items()} == {split: rows[:] for split, rows in arrow.items()}
    streamed, described = load_tokens(folders / "tokens" / "train-*.parquet", streaming=True)
    assert list(streamed["train"]) == list(arrow["train"]) and "validation" not in streamed
    check_tokenizers(described, tokenizers)
    assert count_rows(token_files(folders / "tokens")["train"]) == 10


def test_only_train_and_validation_files_are_used(tmp_path):
    wanted = {
        "train": ["more.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "train.parquet"],
        "validation": ["validation-00000-of-00001.parquet", "validation.parquet"],
    }
    for name in [*sum(wanted.values(), []), "test-00000-of-00001.parquet", "test.parquet", "val-0-of-1.parquet"]:
        (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / "*.parquet"):
        found = token_files(path)
        assert {split: [Path(file).name for file in files] for split, files in found.items()} == wanted
    assert token_files(tmp_path / "test*") == {}


def test_tokens_are_bound_to_their_tokenizers(folders):
    clips, tokenizers = load_from_disk(folders / "clips"), load_tokenizers(folders / "tokenizers")
    tokenize_clips(clips, tokenizers, folders / "tokens")
    _, described = load_tokens(folders / "tokens")
    check_tokenizers(described, tokenizers)
    assert described["audio"]["token_axes"] == dict(tokenizers["audio"].config.token_axes)
    with torch.no_grad():
        next(tokenizers["audio"].parameters()).mul_(1.01)
    with pytest.raises(ValueError, match="audio tokenizer is not the one .* fingerprint"):
        check_tokenizers(described, tokenizers)
    with pytest.raises(ValueError, match="holds no tokens"):
        tokenize_clips(clips, tokenizers, folders / "clips")
    for name in ("num_crops", "batch_size", "num_proc"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            tokenize_clips(clips, tokenizers, folders / "other", **{name: 0})
    with pytest.raises(ValueError, match="2 frames, the image tokenizer takes num_frames=3"):
        tokenize_clips(clips, {**tokenizers, "image": image_tokenizer(num_frames=3)}, folders / "other")
    with pytest.raises(ValueError, match="not a token folder"):
        load_tokens(folders / "clips")
