"""AVDigits: what belongs together means the same digit, nothing of validation is trained on, bad files are named."""

import gzip
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import prepare_dataset
import pytest
import soundfile
import torch
from PIL import Image

from dataset_scripts import AVDigits, av_digits
from dataset_scripts.av_digits import DIGITS, SAMPLING_RATE, read_idx, read_mnist
from dataset_scripts.av_digits_judges import AVDigitsJudge, AVDigitsJudgeConfig
from dataset_scripts.prepare import prepare_clips

REAL = Path(os.environ.get("NANO4M_DATA", "../shared/data")) / "avdigits"
SPEAKERS = ("ann", "bob", "eve")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures as bright as their digit and tones as high as it, so that pairing can be seen."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "mnist").mkdir()
    (folder / "fsdd").mkdir()
    for split, number in (("train", 40), ("validation", 20)):
        labels = np.arange(number, dtype=np.uint8) % 10
        images = np.broadcast_to((20 * labels + 20)[:, None, None], (number, 28, 28)).astype(np.uint8)
        write_idx(folder / "mnist" / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / "mnist" / f"{split}-labels-idx1-ubyte.gz", labels)
    time = np.arange(SAMPLING_RATE // 4) / SAMPLING_RATE
    for digit in range(10):
        for speaker in SPEAKERS:
            for index in range(3, 10):
                tone = 0.3 * np.sin(2 * np.pi * (300 + 100 * digit) * time)
                soundfile.write(folder / "fsdd" / f"{digit}_{speaker}_{index}.wav", tone, SAMPLING_RATE)
    return folder


def copied(folder: Path, place: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(folder, place))


def prepare(folder: Path | None, output_dir: Path, **settings):
    settings = {"num_train": 60, "num_validation_recordings": 1, "augment": False, **settings}
    return prepare_clips(AVDigits(data_dir=folder, cache_dir=output_dir / "cache", **settings), output_dir / "clips")


def seen_and_heard(rows) -> tuple[list[int], list[int]]:
    pictures = [round((np.asarray(frames[0])[16, 16, 0] - 20) / 20) for frames in rows["frames"]]
    tones = []
    for row in rows.with_format("numpy"):
        spectrum = np.abs(np.fft.rfft(row["audio"][: row["audio_valid"]]))
        tones.append(round((np.argmax(spectrum) * SAMPLING_RATE / row["audio_valid"] - 300) / 100))
    return pictures, tones


def test_picture_sound_and_caption_of_a_row_mean_its_digit(folder, tmp_path):
    clips = prepare(folder, tmp_path)
    for rows in clips.values():
        pictures, tones = seen_and_heard(rows)
        assert pictures == tones == list(rows["label"])
        assert all(DIGITS[label] in text.split() for label, text in zip(rows["label"], rows["text"], strict=True))
    assert len(clips["train"]) == 60 and len(clips["validation"]) == 20
    assert set(sound.split("_")[-1] for sound in clips["validation"]["video"]) == {"3.wav"}
    assert "3.wav" not in set(sound.split("_")[-1] for sound in clips["train"]["video"])


def test_the_same_seed_gives_the_same_rows_and_another_one_others(folder, tmp_path):
    first, again, other = (
        prepare(folder, tmp_path / name, seed=seed, augment=True) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first["train"].to_dict() == again["train"].to_dict()
    assert list(first["train"]["video"]) != list(other["train"]["video"])


def test_an_unseen_speaker_is_only_in_validation(folder, tmp_path):
    clips = prepare(folder, tmp_path, unseen_speaker="eve")
    assert set(clips["validation"]["speaker"]) == {"eve"}
    assert set(clips["train"]["speaker"]) == {"ann", "bob"}


def test_every_speaker_has_recordings_in_both_splits_whatever_their_indices(folder, tmp_path):
    source = copied(folder, tmp_path / "source")
    for path in sorted((source / "fsdd").glob("*_eve_*.wav"), reverse=True):
        digit, speaker, index = path.stem.split("_")
        path.rename(path.with_name(f"{digit}_{speaker}_{int(index) + 20}.wav"))
    clips = prepare(source, tmp_path, num_validation_recordings=2)
    heard = {video.split(" + ")[1].split("_", 1)[1] for video in clips["validation"]["video"]}
    assert heard <= {"ann_3.wav", "ann_4.wav", "bob_3.wav", "bob_4.wav", "eve_23.wav", "eve_24.wav"}
    assert set(clips["validation"]["speaker"]) == set(SPEAKERS) == set(clips["train"]["speaker"])


def test_other_sounds_of_equal_size_are_prepared_anew(folder, tmp_path):
    source = copied(folder, tmp_path / "source")
    before = prepare(source, tmp_path)
    loudest = np.abs(before["train"].with_format("numpy")["audio"][:]).max()
    for path in (source / "fsdd").iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples / 2, rate)
    after = prepare(source, tmp_path)
    assert np.abs(after["train"].with_format("numpy")["audio"][:]).max() < 0.6 * loudest


def test_an_article_fits_its_digit(folder, tmp_path):
    texts = prepare(folder, tmp_path, num_train=400)["train"]["text"][:]
    assert {"an eight", "this is an eight", "a one"} <= set(texts) and not any("a eight" in text for text in texts)


def test_settings_can_be_given_on_the_command_line(folder, tmp_path):
    def make(name, *words):
        words = ["--builder", "av_digits", "--data_dir", str(folder), "--num_train", "80", *words]
        clips = prepare_dataset.main([*words, "--output_dir", str(tmp_path / name)])
        return clips, json.loads((tmp_path / name / "preparation.json").read_text())["config"]

    _, config = make("default")
    assert config["augment"] is True and config["seed"] == 0
    words = "--augment false --seed 3 --num_validation_recordings 2 --clip_seconds 0.5".split()
    clips, config = make("other", *words)
    assert [config[n] for n in ("augment", "seed", "num_validation_recordings", "clip_seconds")] == [False, 3, 2, 0.5]
    assert len(clips["train"][0]["audio"]) == 4000
    (tmp_path / "recipe.yaml").write_text(f"builder: av_digits\ndata_dir: {folder}\naugment: false\n")
    prepare_dataset.main([str(tmp_path / "recipe.yaml"), "--num_train", "30", "--output_dir", str(tmp_path / "yaml")])
    assert json.loads((tmp_path / "yaml" / "preparation.json").read_text())["config"]["augment"] is False


def test_data_sets_of_the_hub_give_the_same_rows(folder, tmp_path, monkeypatch):
    """Folders of Parquet files, laid out as the data sets of the Hub, stand in for these."""
    for split, name in (("train", "train"), ("validation", "test")):
        images, labels = read_mnist(folder / "mnist", split)
        digit = datasets.ClassLabel(names=list("0123456789"))
        features = datasets.Features({"image": datasets.Image(), "label": digit})
        columns = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        rows = datasets.Dataset.from_dict(columns, features=features)
        (tmp_path / "mnist").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "mnist" / f"{name}-00000-of-00001.parquet")
    paths = sorted((folder / "fsdd").iterdir())
    (tmp_path / "fsdd").mkdir()
    for name, some in (("train", paths[::2]), ("test", paths[1::2])):
        rows = datasets.Dataset.from_dict({"audio": [{"bytes": p.read_bytes(), "path": p.name} for p in some]})
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
        rows.to_parquet(tmp_path / "fsdd" / f"{name}-00000-of-00001.parquet")
    monkeypatch.setattr(av_digits, "MNIST_HUB", str(tmp_path / "mnist"))
    monkeypatch.setattr(av_digits, "FSDD_HUB", str(tmp_path / "fsdd"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    here, there = prepare(folder, tmp_path / "here"), prepare(None, tmp_path / "there")
    for split in av_digits.SPLITS:
        assert here[split].to_dict() == there[split].to_dict()


def test_varied_recordings_keep_their_length_and_range(folder, tmp_path):
    rows = prepare(folder, tmp_path, num_train=200, augment=True)["train"].with_format("numpy")
    assert len(set(np.asarray(rows["audio_valid"][:]).tolist())) > 10  # speeds differ
    assert all(np.abs(row["audio"]).max() <= 1 and not row["audio"][row["audio_valid"] :].any() for row in rows)


def test_bad_sources_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="no folder 'mnist'"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="num_train must be a whole number"):
        AVDigits(data_dir=folder, num_train=0)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="broken.gz: cannot be read"):
        read_idx(broken)
    broken.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + b"short"))
    with pytest.raises(ValueError, match="says it holds 9 bytes, but there are 5"):
        read_idx(broken)
    with pytest.raises(ValueError, match="unseen_speaker: there is no 'zoe'; known are ann, bob, eve"):
        prepare(folder, tmp_path / "nobody", unseen_speaker="zoe")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"real digits are not at {REAL} (set NANO4M_DATA)")
def test_real_digits_are_read(tmp_path):
    clips = prepare(REAL, tmp_path, num_train=100, num_validation_recordings=5)
    assert len(clips["validation"]) == 1000
    assert set(clips["validation"]["speaker"]) == {"george", "jackson", "lucas", "nicolas", "theo"}
    lengths = np.array(clips["train"]["audio_valid"])
    assert 2500 < np.median(lengths) < 4500  # 0.42 s


def test_the_judge_reads_a_caption_with_one_digit_only():
    judge = AVDigitsJudge(AVDigitsJudgeConfig(hidden_size=4))
    texts = ["this is a Three", "threesome", "one or two", "the digit zero, zero"]
    assert [found["digit"] for found in judge.read("text", texts)] == ["three", None, None, "zero"]


def test_the_judge_reads_media_of_any_number_alike(folder, tmp_path):
    rows = prepare(folder, tmp_path)["validation"]
    judge = AVDigitsJudge(AVDigitsJudgeConfig(hidden_size=4)).eval()
    judge.save_pretrained(tmp_path / "judge")
    loaded = AVDigitsJudge.from_pretrained(tmp_path / "judge")
    for modality, media in (("image", rows["frames"]), ("audio", rows["audio"])):
        together = judge.read(modality, list(media), SAMPLING_RATE)
        assert together[:3] == [loaded.read(modality, [item], SAMPLING_RATE)[0] for item in list(media)[:3]]
        assert judge.read(modality, [], SAMPLING_RATE) == []


def test_the_judge_reads_nothing_where_there_is_nothing():
    judge = AVDigitsJudge(AVDigitsJudgeConfig(hidden_size=4))
    noise = np.random.default_rng(0).normal(size=8000).astype("float32")
    found = judge.read("audio", [np.zeros(8000, "float32"), 1e-4 * noise / np.abs(noise).max(), 0.01 * noise], 8000)
    assert [reading["digit"] is None for reading in found] == [True, True, False]
    pictures = [Image.new("RGB", (32, 32), (level,) * 3) for level in (0, 20, 255)]
    assert [reading["digit"] is None for reading in judge.read("image", pictures)] == [True, True, False]
    with pytest.raises(ValueError, match="modality 'video': this judge reads image, audio and text"):
        judge.read("video", pictures)


def test_the_judge_hears_the_same_in_a_training_in_bfloat16():
    judge, sounds = AVDigitsJudge(AVDigitsJudgeConfig(hidden_size=4)), 0.1 * torch.randn(2, 8000)
    with torch.autocast("cpu", torch.bfloat16):
        trained_on = judge._spectrogram(sounds)
    assert trained_on.dtype == torch.float32 and trained_on.equal(judge._spectrogram(sounds))
