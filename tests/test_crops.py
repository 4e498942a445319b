"""Several rows of tokens for one clip: aligned in all modalities, the same every time, small on disk."""

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from test_tokenization import ABSENT, make_clips
from test_tokenizers import TEXTS, audio_tokenizer, image_tokenizer, text_tokenizer

from dataset_scripts.crops import AREAS, ASPECTS, Crop
from dataset_scripts.tokenization import id_type, model_modalities, tokenize_clips
from dataset_scripts.video_clips import clip_features
from trainers import DrawnRows, MaskingCollator


@pytest.fixture
def tokenizers() -> dict:
    return {"image": image_tokenizer(), "audio": audio_tokenizer(), "text": text_tokenizer()}


def test_a_crop_follows_from_clip_and_number():
    crops = [Crop.draw(f"{clip}.mp4#0", number) for clip in range(50) for number in range(1, 5)]
    assert crops == [Crop.draw(f"{clip}.mp4#0", number) for clip in range(50) for number in range(1, 5)]
    assert len(set(crops)) == len(crops)
    boxes = np.array([crop.box for crop in crops])
    assert boxes.min() >= 0 and boxes.max() <= 1
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (width * height).min() >= AREAS[0] * 0.8 and ASPECTS[0] <= (width / height).min() <= (width / height).max()
    assert Crop.draw("a", 0) == Crop(), "the first crop is the clip"


def test_frames_share_the_box():
    """Each pixel says where it is, so the crop says where its box was."""
    ramp = np.arange(64, dtype=np.uint8) * 3
    frame = np.stack([*np.meshgrid(ramp, ramp), np.zeros((64, 64), np.uint8)], axis=-1)
    crop = Crop.draw("a.mp4#0", 1)
    found = crop.frames(np.stack([frame] * 4))
    assert found.shape == (4, 64, 64, 3) and (found == found[0]).all()
    left, top, right, bottom = crop.box
    centre = found[0].reshape(-1, 3).mean(0)[:2] / 3
    assert centre == pytest.approx([32 * (left + right) - 0.5, 32 * (top + bottom) - 0.5], abs=0.5)


@pytest.mark.parametrize("number", range(6))
def test_frames_and_sound_share_the_window(number):
    """A clip of 12 frames, 10 samples each, whose values are times; the tokenizers take 8 frames."""
    frames = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 8, 8, 3))
    samples = np.arange(120) / 10
    crop = Crop.draw("a.mp4#0", number)
    seen, heard = crop.frames(frames, 4)[:, 0, 0, 0], crop.samples(samples, 80, 4, 10.0)
    assert len(seen) == 8 and len(heard) == 80
    assert seen[0] == heard[0] and seen[-1] == heard[-10]
    assert number or seen[0] == 2, "the first crop is the middle"


def test_crops_are_rows_of_the_training_split(tokenizers, tmp_path):
    clips = DatasetDict({"train": make_clips(10), "validation": make_clips(4)})
    plain = tokenize_clips(clips, tokenizers, tmp_path / "plain")
    tokens = tokenize_clips(clips, tokenizers, tmp_path / "crops", batch_size=3, num_crops=3)
    assert tokens.num_rows == {"train": 30, "validation": 4}
    rows = tokens["train"].to_list()
    assert [row["crop"] for row in rows] == [0, 1, 2] * 10
    assert [row for row in rows if row["crop"] == 0] == plain["train"].to_list()
    assert tokens["validation"].to_list() == plain["validation"].to_list()
    for first, second, third in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert first["clip_id"] == second["clip_id"] == third["clip_id"]
        assert first["text_ids"] == second["text_ids"] and first["audio_ids"] == third["audio_ids"]
        assert len({tuple(row["image_ids"]) for row in (first, second, third)}) == 3
    for index, name in ABSENT.items():
        assert all(row[f"{name}_ids"] == [] for row in rows[3 * index : 3 * index + 3])
    again = tokenize_clips(clips, tokenizers, tmp_path / "again", batch_size=10, num_crops=3)
    assert again["train"].to_list() == rows
    with pytest.raises(ValueError, match="num_crops=0"):
        tokenize_clips(clips, tokenizers, tmp_path / "none", num_crops=0)


def test_longer_clips_give_windows_of_time(tokenizers, tmp_path):
    row = make_clips(1)[0]
    frames = [Image.new("RGB", (16, 16), (20 * i, 200 - 20 * i, 90)) for i in range(4)]
    row |= {"frames": frames, "audio": np.random.default_rng(0).normal(size=16000) * 0.1, "audio_valid": 16000}
    long = DatasetDict({"train": Dataset.from_list([row], features=clip_features(4, 16000))})
    tokens = tokenize_clips(long, tokenizers, tmp_path / "tokens", num_crops=4)
    rows = tokens["train"].to_list()
    assert all(len(row["image_ids"]) == 32 and len(row["audio_ids"]) == 14 for row in rows)
    starts = [Crop.draw("0.mp4#0", number).first_frame(2) for number in range(4)]
    assert all(row["text_ids"] == rows[0]["text_ids"] for row in rows), "nothing is known of its times"
    assert len({tuple(row["audio_ids"]) for row in rows}) == len(set(starts)) > 1
    with pytest.raises(ValueError, match="the clips have 4 frames"):
        tokenize_clips(long, tokenizers, tmp_path / "whole")


def test_longer_clips_of_one_kind_give_windows_of_time(tokenizers, tmp_path):
    """Pictures without sound, and sound without pictures, in which a word is said in each quarter."""
    row, words = make_clips(1)[0], TEXTS[0].split()[:4]
    row |= {"text": " ".join(words), "end": 1.0}
    row |= {"cues": [{"start": i / 4, "end": (i + 1) / 4, "text": word} for i, word in enumerate(words)]}
    frames = [Image.new("RGB", (16, 16), (20 * i, 200 - 20 * i, 90)) for i in range(4)]
    sound = np.random.default_rng(0).normal(size=16000) * 0.1
    for name, media in (
        ("image", {"frames": frames, "audio": [], "audio_valid": 0}),
        ("audio", {"frames": [], "audio": sound, "audio_valid": 16000}),
    ):
        clips = DatasetDict({"train": Dataset.from_list([row | media], features=clip_features())})
        for chosen in (tokenizers, {each: tokenizers[each] for each in (name, "text")}):
            rows = tokenize_clips(clips, chosen, tmp_path / f"{name}{len(chosen)}", num_crops=6)["train"].to_list()
            assert all(len(each[f"{name}_ids"]) == len(rows[0][f"{name}_ids"]) > 0 for each in rows)
            assert len({tuple(each["text_ids"]) for each in rows}) > 1
            assert name == "image" or len({tuple(each["audio_ids"]) for each in rows}) == 6


def test_words_share_the_window_where_their_times_are_known(tokenizers, tmp_path):
    """A word for each of the 4 frames, the last one missing; the tokenizers take 2 frames."""
    row, words = make_clips(1)[0], TEXTS[0].split()[:3]
    cues = [{"start": i / 4, "end": (i + 1) / 4, "text": word} for i, word in enumerate(words)]
    row |= {"frames": row["frames"] * 2, "audio": [0.1] * 16000, "audio_valid": 16000, "end": 1.0}
    row |= {"text": " ".join(words), "cues": cues}
    clips = DatasetDict({"train": Dataset.from_list([row] * 2, features=clip_features(4, 16000))})
    tokens = tokenize_clips(clips, tokenizers, tmp_path / "tokens", num_crops=6)["train"]
    starts = [Crop.draw("0.mp4#0", number).first_frame(2) for number in range(6)]
    assert len(set(starts)) > 1
    expected = [" ".join(words[start : start + 2]) for start in starts]
    token_ids, valid_mask = tokenizers["text"].encode_media(expected)
    assert tokens["text_ids"][:] == [ids[valid].tolist() for ids, valid in zip(token_ids, valid_mask, strict=True)] * 2


def test_ids_have_the_smallest_type_and_train_together_with_any_other(tokenizers, tmp_path):
    assert [id_type(size) for size in (256, 257, 65_536, 65_537)] == ["uint8", "uint16", "uint16", "int32"]
    clips = DatasetDict({"train": make_clips(6)})
    tokens = tokenize_clips(clips, tokenizers, tmp_path / "tokens")["train"]
    types = {name: tokens.features[f"{name}_ids"].feature.dtype for name in tokenizers}
    assert types == {"image": "uint8", "audio": "uint8", "text": "uint16"}
    wide = {
        name: datasets.List(datasets.Value("int64")) if name.endswith("_ids") else feature
        for name, feature in tokens.features.items()
    }
    modalities = model_modalities({name: tokenizer.describe() for name, tokenizer in tokenizers.items()})
    batches = []
    for rows in ([tokens], [tokens.cast(datasets.Features(wide))], [tokens, tokens.remove_columns("text_ids")]):
        batches.append(MaskingCollator(modalities)(DrawnRows(rows).__getitems__(list(range(6)))))
    assert all(batches[0][name].equal(batches[1][name]) for name in batches[0])
    assert batches[2]["target_ids"].numel()


def test_bf16_is_what_the_networks_compute_in_and_changes_few_ids(tokenizers, tmp_path):
    clips, seen = DatasetDict({"train": make_clips(6)}), []
    for name in ("image", "audio"):
        tokenizers[name].encoder.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    full, half = (
        tokenize_clips(clips, tokenizers, tmp_path / str(bf16), bf16=bf16)["train"] for bf16 in (False, True)
    )
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert full["text_ids"][:] == half["text_ids"][:]
    for name in ("image_ids", "audio_ids"):
        pairs = zip(np.concatenate(full[name][:]), np.concatenate(half[name][:]), strict=True)
        assert np.mean([one == other for one, other in pairs]) > 0.8


def test_sound_of_a_video_that_ends_early_begins_with_its_frames():
    """12 frames within the first 2 of 12 s, then silence; the tokenizers take 8 frames and 8 s."""
    samples = np.concatenate([np.arange(20) / 10, np.zeros(100)])
    for number in range(4):
        crop = Crop.draw("a.mp4#0", number)
        heard = crop.samples(samples, 80, 4, 20 / 12)
        assert heard[0] == pytest.approx(crop.first_frame(4) * 2 / 12, abs=0.06)
