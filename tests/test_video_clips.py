"""Folders of videos as rows: real files where NANO4M_DATA has them, and videos written here for what is exact."""

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dataset_scripts.audio_reader import AudioReader
from dataset_scripts.file_names import split_videos
from dataset_scripts.media import VideoReader, cut_windows, probe
from dataset_scripts.prepare import prepare_clips
from dataset_scripts.video_clips import VideoClips, VideoClipsConfig

DATA = Path(os.environ.get("NANO4M_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real videos: {DATA} (NANO4M_DATA) is no folder")
SMALL = {"num_frames": 4, "image_size": 16, "sampling_rate": 8_000, "clip_seconds": 1.0, "validation_fraction": 0.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def grey_of_time(time: float) -> int:
    return 20 + round(time * 20)


def write_video(
    path: Path,
    times=None,
    seconds: float = 1.0,
    rate: int = 20,
    size=(64, 48),
    picture=None,
    sound=None,
    sound_start: float = 0.0,
    sound_rate: int = 8_000,
    ratio: Fraction | None = None,
    key_frames: int = 250,
    options: dict | None = None,
) -> Path:
    """A video whose grey level tells the time of each frame, with lossless sound if `sound` is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [index / rate for index in range(round(seconds * rate))] if times is None else times
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libx264", rate=rate, options={"qp": "4", "g": str(key_frames), **(options or {})}
        )
        video.width, video.height, video.pix_fmt = *size, "yuv444p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        if ratio:
            video.codec_context.sample_aspect_ratio = ratio
        if sound is not None:
            audio = container.add_stream("pcm_s16le" if path.suffix != ".mp4" else "aac", rate=sound_rate)
            audio.codec_context.layout = "mono"
        for time in times:
            shown = np.full((size[1], size[0], 3), grey_of_time(time), np.uint8) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            step = sound_rate // 50
            for begin in range(0, len(sound), step):
                piece = (sound[begin : begin + step] * 32767).astype(np.int16)[None]
                frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
                frame.sample_rate = sound_rate
                frame.pts, frame.time_base = begin + round(sound_start * sound_rate), Fraction(1, sound_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def prepare(folder: Path, output: Path, num_proc=None, **settings):
    clips = prepare_clips(VideoClips(data_dir=str(folder), **{**SMALL, **settings}), output, num_proc)
    skipped = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    return clips, {entry["file"]: entry["reason"] for entry in skipped}


def greys(row) -> list[int]:
    return [int(np.asarray(frame)[8, 8].mean().round()) for frame in row["frames"]]


# ----------------------------------------------------------------------------------------------------------
# Real files


@needs_data
def test_grid(tmp_path):
    source = DATA / "grid" / "validation"
    texts = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    clips = prepare_clips(VideoClips(data_dir=str(source), validation_fraction=0.0), tmp_path / "out")["train"]
    assert len(clips) == 50
    assert dict(zip(clips["video"], clips["text"], strict=True)) == {t["file_name"]: t["text"] for t in texts}
    for row in clips:
        assert len(row["frames"]) == 8 and row["frames"][0].size == (64, 64)
        assert len(row["audio"]) == 48_000 and 46_000 < row["audio_valid"] <= 48_000
        assert row["start"] == 0 and 2.95 < row["end"] <= 3.0
        assert 0.05 < np.abs(row["audio"]).max() < 2


@needs_data
def test_odd_files_are_rows_or_reasons(tmp_path):
    source = tmp_path / "odd"
    shutil.copytree(DATA / "odd", source)
    names = {path.name for path in source.iterdir()}
    clips, skipped = prepare(source, tmp_path / "out", num_frames=8, image_size=64, clip_seconds=3.0, num_proc=2)
    used = set(clips["train"]["video"])
    assert used | set(skipped) == names and not used & set(skipped)
    assert all(reason and "\n" not in reason for reason in skipped.values())
    texts = dict(zip(clips["train"]["video"], clips["train"]["text"], strict=True))
    assert texts["gen_movtext.mp4"] == texts["gen_subs.mkv"] == "lay white by S zero again"
    valid = dict(zip(clips["train"]["clip_id"], clips["train"]["audio_valid"], strict=True))
    assert valid["gen_no_audio.mp4#0"] == 0 and valid["gen_short_0p2s.mp4#0"] == 1600
    # Each of these lasts 3 s up to rounding and must not give a second clip of a few milliseconds.
    assert not {f"{name}#1" for name in ("gen_base.mp4", "gen_subs.mkv", "gen_mp3audio.mkv")} & set(valid)


@needs_data
@pytest.mark.parametrize("num_proc", [None, 2])
def test_strict_names_file_and_reason(tmp_path, num_proc):
    source = tmp_path / "odd"
    source.mkdir()
    for name in ("gen_base.mp4", "gen_zero_byte.mp4"):
        shutil.copy(DATA / "odd" / name, source)
    with pytest.raises(ValueError, match="gen_zero_byte.mp4: empty file"):
        prepare(source, tmp_path / "out", num_proc=num_proc, strict=True)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------
# Picture and sound


def test_frames_are_those_on_display(tmp_path):
    # Shown from 0, 0.1, 0.7 and 0.8 s; the last one as long as the average, so that the video ends near 1 s.
    path = write_video(tmp_path / "in" / "vfr.mkv", times=[0.0, 0.1, 0.7, 0.8])
    with VideoReader(path, 16) as reader:
        shown = [np.asarray(reader.frame_at(time))[8, 8].mean() for time in (0, 0.05, 0.1, 0.69, 0.7, 0.79, 5)]
        assert reader.finished
    assert np.allclose(shown, [grey_of_time(t) for t in (0, 0, 0.1, 0.1, 0.7, 0.7, 0.8)], atol=1)
    clips, _ = prepare(tmp_path / "in", tmp_path / "out")
    row = clips["train"][0]
    middles = [row["end"] * (index + 0.5) / 4 for index in range(4)]
    expected = [grey_of_time(max(t for t in (0.0, 0.1, 0.7, 0.8) if t <= middle)) for middle in middles]
    assert np.allclose(greys(row), expected, atol=1)


def corners(image) -> str:
    """Colours at the top left, the top right and the bottom left, "-" for black."""
    pixels = np.asarray(image)
    found = (pixels[y, x] for y, x in ((2, 2), (2, -3), (-3, 2)))
    return "".join("RGB"[int(pixel.argmax())] if pixel.max() > 127 else "-" for pixel in found)


def test_rotation_and_pixel_ratio(tmp_path):
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[:24, :24, 0] = picture[:24, 24:, 1] = picture[24:, :24, 2] = 255  # R G above B and black
    path = write_video(tmp_path / "plain.mp4", size=(48, 48), picture=picture)
    data = path.read_bytes()
    one, minus, zero = b"\0\1\0\0", b"\xff\xff\0\0", b"\0\0\0\0"
    plain = b"".join((one, zero, zero, zero, one))
    position = data.index(plain, data.index(b"tkhd"))  # the display matrix of the track
    for matrix, expected in (
        ((one, zero, zero, zero, one), "RGB"),
        ((zero, one, zero, minus, zero), "BR-"),  # 90 degrees clockwise
        ((zero, minus, zero, one, zero), "G-R"),  # 90 degrees the other way
        ((minus, zero, zero, zero, minus), "-BG"),
        ((minus, zero, zero, zero, one), "GR-"),  # mirrored
    ):
        turned = tmp_path / "turned.mp4"
        turned.write_bytes(data[:position] + b"".join(matrix) + data[position + len(plain) :])
        with VideoReader(turned, 16) as reader:
            assert corners(reader.frame_at(0.0)) == expected

    # A disc twice as high as wide on pixels twice as wide as high is round.
    y, x = np.mgrid[:96, :96]
    inside = ((x - 48) / 12) ** 2 + ((y - 48) / 24) ** 2 < 1
    picture = np.repeat((inside * 255).astype(np.uint8)[..., None], 3, axis=2)
    path = write_video(tmp_path / "wide.mp4", size=(96, 96), picture=picture, ratio=Fraction(2, 1))
    with VideoReader(path, 48) as reader:
        seen = np.asarray(reader.frame_at(0.0))[..., 0] > 127
    width, height = seen.any(axis=0).sum(), seen.any(axis=1).sum()
    assert abs(int(width) - 24) <= 1 and abs(int(height) - 24) <= 1


def test_sound_lies_at_its_time(tmp_path):
    rate = 44_100
    time = np.arange(2 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    path = write_video(tmp_path / "late.mkv", seconds=3, sound=tone, sound_start=0.5, sound_rate=rate)
    with AudioReader(path, 16_000) as reader:
        pieces = [reader.read(start, start + 1.0, 16_000) for start in (0.0, 1.0, 2.0)]
    assert [valid for _, valid in pieces][:2] == [16_000, 16_000] and abs(pieces[2][1] - 8_000) <= 20
    sound = np.concatenate([samples for samples, _ in pieces])
    assert sound.dtype == np.float32 and np.abs(sound[:7_900]).max() < 1e-3 and not sound[40_100:].any()
    expected = 0.5 * np.sin(2 * np.pi * 440 * (np.arange(48_000) / 16_000 - 0.5))
    # Across the seams of the windows as well; the container rounds the start to milliseconds at most.
    assert np.abs(sound[8_100:39_900] - expected[8_100:39_900]).max() < 0.02


def test_no_sound_and_short_video(tmp_path):
    write_video(tmp_path / "in" / "mute.mp4", seconds=0.4)
    write_video(tmp_path / "in" / "sound.mkv", seconds=0.4, sound=np.full(8_000, 0.5))
    rows = {row["video"]: row for row in prepare(tmp_path / "in", tmp_path / "out")[0]["train"]}
    mute, sound = rows["mute.mp4"], rows["sound.mkv"]
    assert mute["audio_valid"] == 0 and not any(mute["audio"]) and len(mute["audio"]) == 8_000
    assert mute["end"] == pytest.approx(0.4, abs=0.01)
    assert np.allclose(greys(mute), [grey_of_time(t) for t in (0.05, 0.15, 0.25, 0.35)], atol=1)
    assert sound["audio_valid"] == pytest.approx(3_200, abs=16) and not any(sound["audio"][sound["audio_valid"] :])


def test_damaged_end_counts_as_a_shorter_video(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "whole.mp4", seconds=4, picture=noise, key_frames=5)
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    middle = begin + (end - begin) * 45 // 100
    (tmp_path / "in").mkdir()
    # All packets are listed, those of the second half hold nothing: the headers still promise 4 s.
    data[middle:end] = bytes(end - middle)
    (tmp_path / "in" / "zeros.mp4").write_bytes(data)
    assert probe(tmp_path / "in" / "zeros.mp4").duration == pytest.approx(4, abs=0.06)
    # Cut off within the data, as a download that stopped; the index comes at the end of this one.
    data = write_video(tmp_path / "whole.mkv", seconds=4, picture=noise, key_frames=5).read_bytes()
    (tmp_path / "in" / "cut.mkv").write_bytes(data[: len(data) * 45 // 100])
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out")
    assert not skipped
    for name in ("zeros.mp4", "cut.mkv"):
        ends = [row["end"] for row in clips["train"] if row["video"] == name]
        assert len(ends) == 2 and 1.5 <= ends[-1] <= 2.0


@pytest.mark.parametrize(
    ("duration", "windows"),
    [
        (0.2, [(0, 0.2)]),
        (2.96, [(0, 2.96)]),
        (3.0004, [(0, 3.0)]),
        (3.1, [(0, 3.0)]),
        (4.5, [(0, 3.0), (3.0, 4.5)]),
        (5.9995, [(0, 3.0), (3.0, 5.9995)]),
        (7.0, [(0, 3.0), (3.0, 6.0)]),
    ],
)
def test_windows(duration, windows):
    assert cut_windows(0.0, duration, 3.0) == windows
    assert len(cut_windows(3.5, 7.0, 3.0)) == 1  # nothing is shown before 3.5 s


# ----------------------------------------------------------------------------------------------------------
# Text, files and splits


def test_long_video_is_cut_with_its_words(tmp_path):
    write_video(tmp_path / "in" / "long.mkv", seconds=2.6, sound=np.full(24_000, 0.25))
    words = [{"start": s, "end": s + 0.2, "word": w} for s, w in ((0.1, "one"), (0.95, "two"), (1.4, "three"))]
    entry = {"file_name": "long.mkv", "text": "One two, three", "words": words}
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(entry))
    rows = list(prepare(tmp_path / "in", tmp_path / "out")[0]["train"])
    assert [row["clip_id"] for row in rows] == ["long.mkv#0", "long.mkv#1", "long.mkv#2"]
    assert [row["text"] for row in rows] == ["one", "two three", ""]
    assert [row["end"] for row in rows] == pytest.approx([1, 2, 2.6], abs=0.01)
    assert [row["audio_valid"] for row in rows] == pytest.approx([8_000, 8_000, 4_800], abs=80)
    assert np.allclose(greys(rows[1]), [grey_of_time(t) for t in (1.1, 1.35, 1.6, 1.85)], atol=1)


@pytest.mark.parametrize("column", ["text", "caption"])
def test_metadata_in_a_table(tmp_path, column):
    """A second file of metadata only adds to the first."""
    for name in ("a.mp4", "sub/b.mp4"):
        write_video(tmp_path / "in" / name)
    table = f'file_name,{column}\r\na.mp4,"one, two"\r\nsub/b.mp4,three\r\nc.mp4,four\r\n'
    (tmp_path / "in" / "metadata.csv").write_bytes(table.encode("utf-8-sig"))
    (tmp_path / "in" / "sub" / "metadata.jsonl").write_text('{"file_name": "b.mp4", "text": "five"}\n')
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out")
    found = {row["video"]: row["text"] for rows in clips.values() for row in rows}
    assert found == {"a.mp4": "one, two", "sub/b.mp4": "five"}
    assert "repeats sub/metadata.jsonl line 1" in skipped["sub/b.mp4"] and "missing" in skipped["c.mp4"]


@needs_data
def test_metadata_before_subtitle_file_before_embedded(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a", "b", "c", "d"):
        shutil.copy(DATA / "odd" / "gen_movtext.mp4", source / f"{name}.mp4")
    shutil.copy(DATA / "odd" / "gen_movtext.mp4", source / "e.mp4")
    (source / "e.srt").write_text("nothing of the kind")
    for name in ("a", "b.de"):
        (source / f"{name}.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nfrom the file\n")
    (source / "b.en.SRT").write_text("1\n00:00:00,000 --> 00:00:02,000\nanother\n")
    (source / "d.txt").write_text("from the text\n")
    (source / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "from the metadata"}\n')
    clips, skipped = prepare(source, tmp_path / "out", clip_seconds=3.0)
    embedded = "lay white by S zero again"
    texts = ["from the metadata", "from the file", embedded, "from the text", embedded]
    assert [rows["text"] for rows in sorted(sum(map(list, clips.values()), []), key=lambda row: row["video"])] == texts
    assert set(skipped) == {"e.srt", "b.en.SRT"} and skipped["e.srt"] == "no subtitle can be read in it"


def test_what_leads_out_of_the_folder_or_is_no_video(tmp_path):
    source, outside = tmp_path / "in", tmp_path / "outside"
    write_video(source / "sub" / "good.mp4")
    write_video(outside / "secret.mp4")
    (outside / "secret.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nsecret\n")
    (source / "link.mp4").symlink_to(outside / "secret.mp4")
    (source / "folder").symlink_to(outside)
    (source / "sub" / "good.srt").symlink_to(outside / "secret.srt")
    (source / "broken.mp4").symlink_to(source / "nothing.mp4")
    os.mkfifo(source / "pipe.mp4")
    (source / "notes.md").write_text("notes")
    (source / ".hidden.mp4").write_text("hidden")
    (source / "alone.vtt").write_text("WEBVTT\n")
    entries = [
        {"file_name": "../outside/secret.mp4", "text": "x"},
        {"file_name": str(outside / "secret.mp4"), "text": "x"},
        {"file_name": "missing.mp4", "text": "x"},
        {"file_name": "sub/good.mp4", "text": "good"},
        {"file_name": "sub/../sub/good.mp4", "text": "again"},
    ]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n{\n")
    clips, skipped = prepare(source, tmp_path / "out")
    assert clips["train"]["text"][:] == ["good"]
    expected = {
        "../outside/secret.mp4": "outside of its folder",
        str(outside / "secret.mp4"): "outside of its folder",
        "missing.mp4": "missing",
        "sub/good.mp4": "repeats metadata.jsonl line 4",
        "metadata.jsonl": "line 6 is not",
        "link.mp4": "leads out",
        "folder": "leads out",
        "sub/good.srt": "leads out",
        "broken.mp4": "broken",
        "pipe.mp4": "not a regular file",
        "notes.md": "not a media file",
        "alone.vtt": "without a video",
    }
    assert skipped.keys() == expected.keys()
    for name, part in expected.items():
        assert part in skipped[name]


def test_splits_by_folder_and_by_name(tmp_path):
    for name in ("train/a.mp4", "train/b.mp4", "test/c.mp4", "loose.mp4"):
        write_video(tmp_path / "in" / name)
    (tmp_path / "in" / "validation").mkdir()
    (tmp_path / "in" / "validation" / "empty.mp4").touch()
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out")
    assert {split: rows["video"][:] for split, rows in clips.items()} == {
        "train": ["train/a.mp4", "train/b.mp4"],
        "test": ["test/c.mp4"],
    }
    assert set(skipped) == {"loose.mp4", "validation/empty.mp4"}

    assert split_videos(["Train/a", "val/b", "valid/c", "DEV/d", "test/e", "f"], 0.5) == {
        "train": ["Train/a"],
        "validation": ["val/b", "valid/c", "DEV/d"],
        "test": ["test/e"],
    }
    with pytest.raises(ValueError, match="nothing is left to train on.* for validation by .* 1 others, such as x/b"):
        split_videos(["val/a", "x/b"], 0.1)

    names = [f"{index}.mp4" for index in range(200)]
    splits = split_videos(names, 0.1)
    assert 8 <= len(splits["validation"]) <= 35 and sorted(sum(splits.values(), [])) == sorted(names)
    fewer = split_videos(names[:150], 0.1)
    assert set(fewer["validation"]) == set(splits["validation"]) & set(names[:150])
    assert split_videos(names, 0.0) == {"train": names}
    assert split_videos(names[:1], 0.9) == {"train": names[:1]}
    assert sorted(map(len, split_videos(names[:2], 0.1).values())) == [1, 1]


def test_no_usable_clip(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"No usable clip in .*in: empty file \(1x\)"):
        prepare(tmp_path / "in", tmp_path / "out")


# ----------------------------------------------------------------------------------------------------------
# Preparation


def test_processes_make_no_difference_and_work_is_reused(tmp_path):
    source = tmp_path / "in"
    torch.ones(600, 600) @ torch.ones(600, 600)  # starts torch's threads, which a forked process has to survive
    tone = 0.5 * np.sin(np.arange(44_100) / 10)
    for index in range(5):
        write_video(source / f"{index}.mkv", sound=tone, sound_rate=44_100)
    for name in ("1b.mp4", "4b.mp4"):
        (source / name).touch()
    one, skipped_one = prepare(source, tmp_path / "one")
    two, skipped_two = prepare(source, tmp_path / "two", num_proc=2)
    assert one["train"].to_dict() == two["train"].to_dict() and len(one["train"]) == 5
    assert skipped_one == skipped_two == {"1b.mp4": "empty file", "4b.mp4": "empty file"}

    written = (tmp_path / "one" / "preparation.json").stat().st_mtime_ns
    prepare(source, tmp_path / "one")
    assert (tmp_path / "one" / "preparation.json").stat().st_mtime_ns == written
    (source / "0.txt").write_text("new text")  # an edit of a text is one, too
    again, _ = prepare(source, tmp_path / "one")
    assert again["train"][0]["text"] == "new text"
    preparation = json.loads((tmp_path / "one" / "preparation.json").read_text())
    assert preparation["num_rows"] == {"train": 5} and preparation["num_skipped"] == 2
    assert preparation["config"]["num_frames"] == 4 and preparation["version"] == "1.3.0"


def test_builder_alone_knows_what_it_skipped(tmp_path):
    write_video(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "b.mp4").touch()
    for _ in range(2):  # the second time from the cache
        builder = VideoClips(data_dir=str(tmp_path / "in"), **SMALL)
        builder.download_and_prepare()
        assert [file.file for file in builder.skipped_files()] == ["b.mp4"]


def test_a_missing_validation_split_is_said(tmp_path, caplog):
    names = [f"{index}.mkv" for index in range(6)]
    drawn = split_videos(names, 0.1)["validation"]
    for name in names:
        write_video(tmp_path / "in" / name)
    clips, _ = prepare(tmp_path / "in", tmp_path / "good", validation_fraction=0.1)
    assert "validation" in clips and not caplog.records
    for name in drawn:
        (tmp_path / "in" / name).write_bytes(b"")
    clips, _ = prepare(tmp_path / "in", tmp_path / "out", validation_fraction=0.1)
    assert list(clips) == ["train"] and "There is no clip for validation" in caplog.text


def test_other_folders_are_left_alone(tmp_path):
    write_video(tmp_path / "in" / "a.mp4")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="choose another"):
        prepare(tmp_path / "in", tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").exists()
    with pytest.raises(ValueError, match="must not lie in"):
        prepare(tmp_path / "in", tmp_path / "in" / "out")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 0),
        ("image_size", 1.5),
        ("sampling_rate", "16000"),
        ("clip_seconds", float("nan")),
        ("validation_fraction", 1.0),
        ("strict", "yes"),
        ("asr_model", ""),
        ("language", 3),
    ],
)
def test_config_errors_name_the_field(name, value):
    with pytest.raises(ValueError, match=name):
        VideoClipsConfig(**{name: value})


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="data_dir"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="data_dir"):
        prepare_clips(VideoClips(), tmp_path / "out")
