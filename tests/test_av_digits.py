"""AVDigits: what belongs together means the same digit, nothing of validation is trained on, bad files are named."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dataset_scripts import AVDigits
from dataset_scripts.av_digits import DIGITS, SAMPLING_RATE, read_idx
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


def prepare(folder: Path, output_dir: Path, **settings):
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
    with pytest.raises(ValueError, match="validation has no recording"):
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
