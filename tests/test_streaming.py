"""Streams of rows: endless, mixed, numbered, and resumable exactly or at once."""

import json
from collections import Counter
from itertools import islice

import pytest
from datasets import Dataset, config, load_dataset
from test_masking import make_rows
from test_modeling_nano4m import make_model
from test_resuming import FailingTrainer, assert_equal
from test_trainer import arguments
from torch.utils.data import DataLoader

from trainers import MaskingCollator, StreamedRows, fit


@pytest.fixture(autouse=True)
def no_pause_between_passes(monkeypatch):
    """datasets sleeps for five seconds whenever it has read some files to their ends."""
    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def open_stream(tmp_path):
    def open_stream(name, size, num_files=3):
        files = []
        rows = Dataset.from_list([{f"{name}_ids": [i], "clip_id": f"{name}{i}"} for i in range(size)])
        for index in range(num_files):
            files.append(str(tmp_path / f"{name}{index}.parquet"))
            rows.shard(num_files, index).to_parquet(files[-1])
        return load_dataset("parquet", data_files=files, split="train", streaming=True)

    return open_stream


def test_a_stream_goes_on_without_end_in_ever_new_orders(open_stream):
    rows = list(islice(StreamedRows([open_stream("image", 12)], [1], buffer_size=6), 36))
    assert [row["draw"] for row in rows] == list(range(36))
    passes = [[row["image_ids"][0] for row in rows[i : i + 12]] for i in (0, 12, 24)]
    assert all(sorted(ids) == list(range(12)) for ids in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_streams_are_mixed_by_weight(open_stream):
    rows = list(islice(StreamedRows([open_stream("image", 40), open_stream("text", 7)], [3, 1]), 400))
    texts = Counter(row["text_ids"][0] for row in rows if row["text_ids"])
    assert 75 <= texts.total() <= 125 and max(texts.values()) - min(texts.values()) <= 1
    assert all(set(row) == {"image_ids", "text_ids", "draw"} for row in rows)


def test_workers_share_the_files_and_number_apart(open_stream):
    rows = StreamedRows([open_stream("image", 12, num_files=2)], [1])
    found = [row for batch in islice(DataLoader(rows, 3, collate_fn=list, num_workers=2), 4) for row in batch]
    assert sorted(row["draw"] for row in found) == list(range(12))
    assert sorted(row["image_ids"][0] for row in found) == list(range(12))
    rows = StreamedRows([open_stream("text", 4, num_files=1)], [1])
    with pytest.raises(ValueError, match="fewer files than there are DataLoader workers"):
        list(islice(DataLoader(rows, 2, num_workers=2), 4))


def test_a_stream_goes_on_from_its_state(open_stream):
    def stream():
        return StreamedRows([open_stream("image", 12), open_stream("text", 5)], [2, 1], buffer_size=1)

    whole = list(islice(stream(), 40))
    first = stream()
    iterator = iter(first)
    assert list(islice(iterator, 25)) == whole[:25]
    state = json.loads(json.dumps(first.state_dict()))
    resumed = stream()
    resumed.load_state_dict(state)
    # With buffers of one row, none is lost but those that were in them.
    after = list(islice(resumed, 12))
    assert [row["draw"] for row in after] == list(range(25, 37))
    assert [bool(row["text_ids"]) for row in after] == [bool(row["text_ids"]) for row in whole[25:37]]


@pytest.mark.parametrize("ignore_data_skip", [False, True])
def test_a_training_on_a_stream_resumes(tmp_path, ignore_data_skip):
    Dataset.from_list(make_rows(11)).to_parquet(tmp_path / "train.parquet")

    def train(folder, fails_at=None):
        stream = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train", streaming=True)
        training = arguments(folder, save_steps=3, ema_decay=0.8, ignore_data_skip=ignore_data_skip)
        training.fails_at = fails_at
        model = make_model(dropout=0.2, attention_dropout=0.2)
        rows = StreamedRows([stream], [1], buffer_size=4)
        return fit(FailingTrainer, model, training, {"train": rows}, MaskingCollator(model.config.modalities, 12, 9))

    whole = train(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(tmp_path / "resumed", fails_at=7)
    resumed = train(tmp_path / "resumed")
    assert resumed.state.global_step == 8
    if not ignore_data_skip:  # or else the rows in the buffer were lost
        assert_equal(whole.trained_model().state_dict(), resumed.trained_model().state_dict())
        assert whole.state.log_history[-2]["loss"] == resumed.state.log_history[-2]["loss"]
