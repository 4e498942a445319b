"""ShapesWorld: what is written to disk, which clips are held out, and whether the judges read it back."""

import hashlib
import json
import os
import time
from collections import Counter
from itertools import product

import av
import numpy as np
import pytest
from PIL import Image

from dataset_scripts.shapes_judges import accuracy, judge, judge_audio, judge_image, judge_text
from dataset_scripts.shapes_world import (
    ATTRIBUTES,
    MOTION_PHRASES,
    PARAMETERS_FILE,
    PATTERNS,
    ShapesWorld,
    attributes_from_name,
    clip_attributes,
    clip_name,
    combinations,
    describe,
    write_clip,
    write_shapes_world,
)

NUM_TRAIN, NUM_VALIDATION = 150, 50


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_shapes_world(tmp_path_factory.mktemp("shapes") / "world", NUM_TRAIN, NUM_VALIDATION)


@pytest.fixture(scope="module")
def clips(world):
    """(attributes, frames uint8 (4, 48, 48, 3), waveform float32 (samples,), sentence) of every clip."""
    return [
        (attributes_from_name(path.name), *read_clip(path), read_sentence(path))
        for path in sorted(world.glob("*/*.mp4"))
    ]


def read_clip(path, num_frames=4, image_size=48):
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    chosen = [frames[int((index + 0.5) / num_frames * len(frames))] for index in range(num_frames)]
    small = [np.asarray(frame.resize((image_size, image_size), Image.Resampling.BILINEAR)) for frame in chosen]
    return np.stack(small), sound


def read_sentence(path):
    return path.with_suffix(".srt").read_text().splitlines()[2]


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_files_and_counts(world):
    assert len(list((world / "train").glob("*.mp4"))) == NUM_TRAIN
    assert len(list((world / "validation").glob("*.mp4"))) == NUM_VALIDATION
    assert len(list(world.glob("*/*.srt"))) == NUM_TRAIN + NUM_VALIDATION
    assert not list(world.rglob("*.partial"))
    assert json.loads((world / PARAMETERS_FILE).read_text())["num_train"] == NUM_TRAIN


def test_files_are_h264_and_aac(world):
    path = world / clip_name("train", 0)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.width, video.height) == (
            "h264",
            "yuv420p",
            96,
            96,
        )
        assert (video.average_rate, video.frames) == (10, 20)
        assert (audio.codec_context.name, audio.rate, audio.layout.nb_channels) == ("aac", 16_000, 1)
        assert container.duration / av.time_base == pytest.approx(2.0, abs=0.1)
    number, times, sentence = path.with_suffix(".srt").read_text().splitlines()
    assert (number, times) == ("1", "00:00:00,000 --> 00:00:02,000")
    assert judge_text(sentence) == attributes_from_name(path)


def test_a_clip_depends_on_seed_split_and_index_only(world, tmp_path):
    again = write_shapes_world(tmp_path / "again", 6, 2, num_proc=1)
    before, after = digests(world), digests(again)
    videos = [name for name in after if name.endswith((".mp4", ".srt"))]
    assert len(videos) == 16
    assert all(before[name] == after[name] for name in videos)
    other = write_shapes_world(tmp_path / "other", 6, 2, seed=1, num_proc=1)
    assert not set(digests(other).values()) & {after[name] for name in videos if name.endswith(".mp4")}


def test_an_interrupted_run_goes_on(tmp_path):
    folder = write_shapes_world(tmp_path / "world", 6, 2, num_proc=2)
    complete = digests(folder)
    kept, no_video, no_subtitle = (folder / clip_name("train", index) for index in range(3))
    no_video.unlink()
    no_subtitle.with_suffix(".srt").unlink()
    leftover = folder / "train" / f".{no_video.stem}.1.partial"
    leftover.write_bytes(b"half a video")
    os.utime(leftover, (time.time() - 3600,) * 2)
    modified = kept.stat().st_mtime_ns
    write_shapes_world(folder, 6, 2, num_proc=2)
    assert digests(folder) == complete
    assert kept.stat().st_mtime_ns == modified
    assert not write_clip(folder, "train", 0)


def test_other_parameters_and_foreign_folders_are_refused(tmp_path):
    folder = write_shapes_world(tmp_path / "world", 1, 1, num_proc=1)
    with pytest.raises(ValueError, match="num_train=1.*num_train=2.*another folder"):
        write_shapes_world(folder, 2, 1)
    with pytest.raises(ValueError, match="seed=0.*seed=5"):
        write_shapes_world(folder, 1, 1, seed=5)
    with pytest.raises(ValueError, match="num_train is -1"):
        write_shapes_world(folder, -1, 1)
    (tmp_path / "mine" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="delete this one"):
        write_shapes_world(tmp_path / "mine", 1, 1)


def test_held_out_combinations_are_disjoint_and_balanced():
    train, validation = ({tuple(c.values()) for c in combinations(split)} for split in ("train", "validation"))
    assert (len(train), len(validation), len(train & validation)) == (100, 25, 0)
    assert train | validation == set(product(*ATTRIBUTES.values()))
    for split, times in (("train", 20), ("validation", 5)):
        for attribute in ATTRIBUTES:
            counts = Counter(combination[attribute] for combination in combinations(split))
            assert set(counts.values()) == {times}
    drawn = Counter(tuple(clip_attributes("train", index).values()) for index in range(300))
    assert set(drawn) == train and set(drawn.values()) == {3}
    with pytest.raises(ValueError, match="train and validation"):
        combinations("test")


def test_names_tell_attributes():
    expected = {"shape": "square", "colour": "red", "motion": "left"}
    assert attributes_from_name("train/00012_red_square_left.mp4#0") == expected
    assert attributes_from_name("/data/blue_ring_up/train/00012_red_square_left") == expected
    with pytest.raises(ValueError, match="not the name of a ShapesWorld clip"):
        attributes_from_name("train/holiday.mp4")


def test_sentences_vary_and_are_understood():
    rng = np.random.default_rng(0)
    for combination in combinations("train") + combinations("validation"):
        sentences = {describe(combination, rng) for _ in range(40)}
        assert len(sentences) > 20
        for sentence in sentences:
            assert 6 <= len(sentence.split()) <= 14
            assert sentence.replace(" ", "").isalpha() and sentence == sentence.lower()
            assert judge_text(sentence) == combination
    assert len(PATTERNS) >= 8
    assert all(len(phrases) == 3 for phrases in MOTION_PHRASES.values())


def test_text_judge_knows_what_it_does_not_know():
    nothing = {"shape": None, "colour": None, "motion": None}
    assert judge_text("") == nothing
    assert judge_text("a red or blue disc moves") == {**nothing, "shape": "disc"}
    assert judge_text("A crimson HOOP.") == {"shape": "ring", "colour": "red", "motion": None}


def test_judges_read_real_clips(clips):
    truths = [clip[0] for clip in clips]
    images = accuracy([judge_image(clip[1]) for clip in clips], truths)
    sounds = accuracy([judge("audio", clip[2], 16_000) for clip in clips], truths)
    texts = accuracy([judge_text(clip[3]) for clip in clips], truths)
    assert min(images[attribute] for attribute in ATTRIBUTES) >= 0.99
    assert min(sounds[attribute] for attribute in ATTRIBUTES) >= 0.99
    assert texts["all"] == 1.0


def test_builder_renders_and_reads_back(tmp_path):
    builder = ShapesWorld(data_dir=tmp_path / "world", cache_dir=tmp_path / "cache", num_train=10, num_validation=10)
    builder.download_and_prepare()
    splits = builder.as_dataset()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "validation": 10}
    for row in (row for rows in splits.values() for row in rows):
        truth = attributes_from_name(row["clip_id"])
        assert len(row["frames"]) == 4 and row["frames"][0].size == (48, 48)
        assert judge("image", row["frames"]) == truth
        assert len(row["audio"]) == 32_000 and row["audio_valid"] == 32_000
        assert judge("audio", np.asarray(row["audio"]), row["sampling_rate"]) == truth
        assert judge("text", row["text"]) == truth


def test_judges_do_not_mind_form(clips):
    truth, frames, sound, _ = clips[0]
    assert judge("image", [Image.fromarray(frame) for frame in frames]) == truth
    half_rate = sound[: len(sound) // 2 * 2].reshape(-1, 2).mean(axis=1)
    assert judge_audio(0.01 * sound, 16_000) == truth
    assert judge_audio(np.stack([sound, sound]), 16_000) == truth
    assert judge_audio(half_rate, 8_000)["colour"] == truth["colour"]
    assert judge_image(frames[:1])["motion"] is None
    with pytest.raises(ValueError, match="sampling_rate is missing"):
        judge("audio", sound)
    with pytest.raises(ValueError, match="'image', 'audio' and 'text'"):
        judge("smell", sound)


def test_noise_is_near_chance_and_nothing_is_nothing():
    rng = np.random.default_rng(0)
    truths = [clip_attributes("train", index) for index in range(100)]
    images = [judge_image(rng.integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)) for _ in truths]
    sounds = [judge_audio(rng.standard_normal(32_000).astype(np.float32), 16_000) for _ in truths]
    assert accuracy(images, truths)["mean"] < 0.35
    assert accuracy(sounds, truths)["mean"] < 0.35
    for nothing in (
        judge_image(np.full((4, 48, 48, 3), 128, dtype=np.uint8)),
        judge_audio(np.zeros(32_000), 16_000),
        judge_audio(np.full(32_000, np.nan), 16_000),
        judge_audio(np.zeros(0), 16_000),
    ):
        assert set(nothing.values()) == {None}


def test_accuracy():
    truth = {"shape": "disc", "colour": "red", "motion": "up"}
    result = accuracy([truth, {**truth, "motion": None}], [truth, truth])
    assert result == {"shape": 1.0, "colour": 1.0, "motion": 0.5, "mean": pytest.approx(5 / 6), "all": 0.5}
    with pytest.raises(ValueError, match="2 predictions for 1 truths"):
        accuracy([truth, truth], [truth])
