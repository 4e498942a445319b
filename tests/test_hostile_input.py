"""Files made to do harm, or just very odd ones: each gives rows or a reason, and only those in the folder are read."""

import faulthandler
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import wave
import zipfile
import zlib
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image
from test_media_rows import prepare, summaries, write_picture, write_sound, write_tar
from test_video_clips import DATA, needs_data, write_video
from test_video_clips import prepare as prepare_videos

from dataset_scripts.media import MediaError, probe
from dataset_scripts.media_rows import read_picture
from dataset_scripts.metadata_files import read_entries
from dataset_scripts.transcripts import MAX_TEXT_BYTES, Transcript, from_metadata, parse_subtitles
from dataset_scripts.video_clips import VideoClipsConfig, read_windows


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_hang():
    """Whatever hangs inside of a library cannot be interrupted: the traceback is all there is."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def png(width: int, height: int, chunks: bytes = b"", data: bytes = bytes(1000)) -> bytes:
    """A PNG file whose header says any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + end


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@lru_cache
def picture_bomb() -> bytes:
    """12,000 x 12,000 black pixels in half a megabyte."""
    return png(12_000, 12_000, data=bytes((3 * 12_000 + 1) * 12_000))


@needs_data
def test_every_odd_file_gives_rows_or_a_reason(tmp_path):
    source = tmp_path / "odd"
    shutil.copytree(DATA / "odd", source)
    names = {path.name for path in source.iterdir()}
    clips, skipped = prepare(source, tmp_path / "out", num_frames=1, clip_seconds=3.0)
    used = set(clips["train"]["video"])
    # One sample: the sound of its own counts, and the video, which is but sound as well, is left out of it.
    assert skipped.pop("gen_audio_only.mp4") == "no video stream; the other files of its sample are used"
    assert used | set(skipped) | {"gen_audio_only.m4a"} == names and not used & set(skipped)
    assert all(reason and "\n" not in reason for reason in skipped.values())
    sound = next(row for row in clips["train"] if row["video"] == "gen_audio_only.mp4")
    assert sound["frames"] == [] and sound["audio_valid"] > 23_000
    mute = next(row for row in clips["train"] if row["video"] == "gen_no_audio.mp4")
    assert mute["audio"] == [] and len(mute["frames"]) == 1


@needs_data
def test_no_odd_file_holds_the_others_up():
    for path in sorted((DATA / "odd").iterdir()):
        start = time.monotonic()
        with suppress(MediaError):
            for _ in read_windows(path, probe(path), VideoClipsConfig()):
                pass
        assert time.monotonic() - start < 30, path.name


# ----------------------------------------------------------------------------------------------------------
# What leads out of the folder


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_metadata_that_leads_out_of_its_folder(tmp_path, suffix):
    source, outside = tmp_path / "in" / "sub", tmp_path / "outside"
    write_picture(outside / "secret.png", "lime")
    write_picture(tmp_path / "in" / "sibling.png", "red")
    write_picture(source / "good.png", "blue")
    (source / "link.png").symlink_to(outside / "secret.png")
    (source / "folder").symlink_to(outside)
    (source / "loop.png").symlink_to(source / "pool.png")
    (source / "pool.png").symlink_to(source / "loop.png")
    bad = ["../../outside/secret.png", "../../../../../../etc/passwd", "/etc/passwd", str(outside / "secret.png")]
    bad += ["file:///etc/passwd", "https://example.org/a.png", "link.png", "folder/secret.png", "loop.png", "no.png"]
    bad += ["../sibling.png", "..", ".", "good.png/../../../outside/secret.png", "~/.bashrc"]
    names = [*bad, "good.png", "good.png", "./good.png"]
    if suffix == "jsonl":
        lines = [json.dumps({"file_name": name, "text": name}) for name in [*names, "", None, 3, ["good.png"]]]
        lines.append('{"file_name": "\\ud800.png"}')
        lines.append('{"file_name": "nul\\u0000.png"}')
    else:
        lines = ["file_name,text", *(f"{name},{name}" for name in names), ","]
    (source / f"metadata.{suffix}").write_text("\n".join(lines))
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out")
    assert summaries(clips["train"]) == {
        "sub/good.png#0": ("blue", None, "good.png"),
        "sibling.png#0": ("red", None, None),
    }
    assert "outside of its folder" in skipped["../../outside/secret.png"]
    assert "outside of its folder" in skipped["/etc/passwd"] and "repeats" in skipped["sub/good.png"]
    assert "leads out" in skipped["sub/link.png"] and "missing" in skipped["sub/no.png"]
    # The builder of videos reads the same lines.
    with pytest.raises(ValueError, match="No usable clip"):
        prepare_videos(tmp_path / "in", tmp_path / "videos")


def test_playlists_named_like_videos(tmp_path):
    """FFmpeg opens what they name, if it is let to."""
    source, outside = tmp_path / "in", tmp_path / "outside"
    secret = write_video(outside / "secret.ts")
    write_video(source / "near.ts")
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:1.0,\n{secret}\n#EXT-X-ENDLIST\n"
    for name, text in {
        "hls.mp4": hls,
        "hls.ts": hls,
        "concat.mp4": "ffconcat version 1.0\nfile near.ts\n",
        "outside.mp4": f"ffconcat version 1.0\nfile {secret}\n",
        "network.mp4": hls.replace(str(secret), "http://127.0.0.1:9/secret.ts"),
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }.items():
        (source / name).write_text(text)
    write_picture(source / "frame%d.png")
    clips, skipped = prepare_videos(source, tmp_path / "out")
    assert clips["train"]["video"][:] == ["near.ts"] and len(skipped) == 7


def test_cells_that_name_files(tmp_path, monkeypatch):
    secret = write_picture(tmp_path / "secret.png")
    cells = [{"bytes": None, "path": str(secret)}, {"bytes": None, "path": "../secret.png"}]
    cells += [{"bytes": None, "path": "/etc/passwd"}, {"bytes": None, "path": None}]
    cells.append({"bytes": secret.read_bytes(), "path": "/etc/passwd"})  # read from the bytes
    struct_type = {"bytes": Value("binary"), "path": Value("string")}
    rows = Dataset.from_list([{"image": cell} for cell in cells], features=Features({"image": struct_type}))
    (tmp_path / "in").mkdir()
    rows.to_parquet(tmp_path / "in" / "train.parquet")
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out", image_column="image")
    assert summaries(clips["train"]) == {"4#0": ("red", None, None)}
    assert set(skipped) == {"0", "1", "2", "3"} and "missing or not of this data set" in skipped["0"]

    # Of members of zip files, each odd one costs its own row only.
    folder = tmp_path / "packed"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/good.png", secret.read_bytes())
        archive.writestr("bomb.png", bytes(2_000_000))
        archive.writestr("damaged.png", os.urandom(1000))
    data = bytearray((folder / "a.zip").read_bytes())
    data[data.index(b"damaged.png") + 50] ^= 255
    (folder / "a.zip").write_bytes(data)
    (folder / "no.zip").write_text("no zip file")
    shutil.copy(folder / "a.zip", tmp_path)
    names = [f"zip://{name}::{folder}/a.zip" for name in ("x/good.png", "bomb.png", "damaged.png", "none.png")]
    names += [f"zip://x/good.png::{folder}/no.zip", f"zip://x/good.png::{tmp_path}/a.zip", f"zip://::{folder}/a.zip"]
    names += [f"zip://x/good.png::zip://y.zip::{folder}/a.zip", "a" * 5_000, "a\0b.png", "::", "zip://::"]
    cells = [{"image": {"bytes": None, "path": name}} for name in names]
    Dataset.from_list(cells, features=rows.features).to_parquet(folder / "train.parquet")
    monkeypatch.setattr("dataset_scripts.media_rows.MAX_MEMBER_BYTES", 1_000_000)
    clips, skipped = prepare(folder, tmp_path / "unpacked", image_column="image")
    assert summaries(clips["train"]) == {"0#0": ("red", None, None)} and len(skipped) == len(names) - 1
    assert "more than 1 megabytes" in skipped["1"] and "cannot be read (BadZipFile)" in skipped["2"]
    assert "missing in its zip" in skipped["3"] and "cannot be read (BadZipFile)" in skipped["4"]
    assert all("missing" in skipped[str(row)] for row in range(5, len(names)))

    rows.select([4]).save_to_disk(tmp_path / "elsewhere")
    rows.select([4]).save_to_disk(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../elsewhere/data-00000-of-00001.arrow"}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="names a file outside of it"):
        prepare(tmp_path / "saved", tmp_path / "out2")
    (tmp_path / "saved" / "state.json").write_text("[]")
    with pytest.raises(ValueError, match="cannot be loaded"):
        prepare(tmp_path / "saved", tmp_path / "out2")


# ----------------------------------------------------------------------------------------------------------
# Tar files


def test_tar_files(tmp_path):
    source = tmp_path / "in"
    write_picture(tmp_path / "secret.png", "lime")
    good = write_picture(tmp_path / "good.png", "blue").read_bytes()
    source.mkdir()
    with tarfile.open(source / "members.tar", "w") as tar:
        for name, kind, target in (
            ("../secret.png", tarfile.REGTYPE, ""),
            ("/etc/passwd.png", tarfile.REGTYPE, ""),
            ("link.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")),
            ("hard.png", tarfile.LNKTYPE, "../secret.png"),
            ("device.png", tarfile.CHRTYPE, ""),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("a/./b/../good.png", tarfile.REGTYPE, ""),
            ("a/good.jpg", tarfile.REGTYPE, ""),
            ("bomb.png", tarfile.REGTYPE, ""),
            ("\udcff\udcfe.png", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            data = picture_bomb() if name == "bomb.png" else good if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo("long.txt"))
    whole = (source / "members.tar").read_bytes()
    write_tar(source / "cut.tar", {"a.png": good, "b.png": os.urandom(100_000)})
    (source / "cut.tar").write_bytes((source / "cut.tar").read_bytes()[:30_000])
    (source / "noise.tar").write_bytes(np.random.default_rng(0).bytes(5_000))
    (source / "empty.tar").touch()
    with tarfile.open(source / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "good.png", arcname="good.png")
    # A size below zero, by which reading would go round in a circle.
    info = tarfile.TarInfo("back.png").tobuf()
    size = b"\xff" * 10 + struct.pack(">h", -512)
    info = info[:124] + size + info[136:]
    checksum = sum(info[:148]) + 8 * 32 + sum(info[156:])
    (source / "circle.tar").write_bytes(info[:148] + f"{checksum:06o}\0 ".encode() + info[156:] + whole)
    clips, skipped = prepare(source, tmp_path / "out")
    assert (
        summaries(clips["train"]).items()
        >= {
            "cut.tar/a.png#0": ("blue", None, None),
            "members.tar/a/good.png#0": ("blue", None, None),
        }.items()
    )
    assert len(clips["train"]) == 3 and not any(summary[0] == "lime" for summary in summaries(clips["train"]).values())
    for name, part in {
        "members.tar/../secret.png": "leads out",
        "members.tar//etc/passwd.png": "leads out",
        "members.tar/link.png": "a link",
        "members.tar/hard.png": "a link",
        "members.tar/device.png": "a link",
        "members.tar/pipe.png": "a link",
        "members.tar/a/good.jpg": "a second image",
        "members.tar/bomb.png": "too large",
        "members.tar/long.txt": "without media",
        "cut.tar/b.png": "cut off",
        "noise.tar": "no tar file",
        "empty.tar": "no tar file",
        "packed.tar": "no tar file",
        "circle.tar/back.png": "negative",
    }.items():
        assert part in skipped[name], name


# ----------------------------------------------------------------------------------------------------------
# Too much of something


def test_pictures_that_would_fill_the_memory(tmp_path):
    source = tmp_path / "in"
    write_picture(source / "good.png", "blue")
    text = zlib.compress(bytes(100_000_000))
    files = {
        "wide.png": png(100_000, 100_000),
        "wide3.mp4": png(100_000, 100_000),
        "line.png": png(2**31 - 1, 1),
        "bomb.png": picture_bomb(),
        "text.png": png(4, 4, png_chunk(b"zTXt", b"k\0\0" + text), bytes(13 * 4)),
        "profile.png": png(4, 4, png_chunk(b"iCCP", b"k\0\0" + text), bytes(13 * 4)),
        "wide4.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;",
        "wide2.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 10**5, 10**5, 1, 24, 0, 0, 0, 0, 0, 0),
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n",
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    clips, skipped = prepare(source, tmp_path / "out")
    assert {"good.png"} <= set(clips["train"]["video"]) <= {"good.png", "profile.png", "text.png"}
    assert set(clips["train"]["video"]) | set(skipped) == {"good.png", *files}
    for name in ("wide.png", "line.png", "bomb.png", "wide2.bmp"):
        assert "too large" in skipped[name], name


def test_sound_and_times_beyond_reason(tmp_path):
    source = tmp_path / "in"
    write_sound(source / "good.wav")
    for name, rate, channels in (("fast.wav", 2_000_000_000, 1), ("slow.wav", 1, 1), ("many.wav", 1, 16_000)):
        with wave.open(str(source / name), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(b"\1\0" * 240_000)
    # Two pictures, years apart: a billion clips.
    with av.open(str(source / "years.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time in (0, 10**11):
            frame = av.VideoFrame(16, 16, "yuvj420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    # Days in some kilobytes.
    black = np.zeros((48, 64, 3), np.uint8)
    write_video(source / "days.mkv", times=[500 * index for index in range(700)], picture=black)
    clips, skipped = prepare(source, tmp_path / "out")
    assert "timestamps beyond reason" in skipped["days.mkv"]
    assert "timestamps beyond reason" in skipped["years.mkv"] and "sampling rate" in skipped["fast.wav"]
    assert "timestamps beyond reason" in skipped["slow.wav"]
    assert "good.wav" in clips["train"]["video"][:]
    assert "timestamps beyond reason" in prepare_reason(tmp_path, source / "years.mkv")


def test_a_large_picture_is_not_copied(tmp_path):
    Image.new("RGBA", (5_000, 4_000), (10, 20, 30, 255)).save(tmp_path / "large.png", compress_level=1)
    code = """
import resource, sys
from dataset_scripts.media_rows import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = read_picture(sys.argv[1], 16)
assert picture.size == (16, 16) and picture.getpixel((3, 3)) == (10, 20, 30)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    grown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert int(grown) * 1024 < 130_000_000  # the picture takes 80


def test_only_jpeg_may_be_larger_than_what_is_decoded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_scripts.media_rows.MAX_PICTURE_PIXELS", 500_000)
    picture = Image.new("RGB", (1_000, 600), "blue")
    picture.paste("red", (0, 0, 500, 600))
    for name in ("large.jpg", "large.png"):
        picture.save(tmp_path / name)
    small = np.asarray(read_picture(tmp_path / "large.jpg", 16)).astype(int)
    assert (small[:, :7, 0] > 240).all() and (small[:, 9:, 2] > 240).all()
    with pytest.raises(MediaError, match="too large .1000x600, limit 0 megapixels"):
        read_picture(tmp_path / "large.png", 16)


def prepare_reason(tmp_path: Path, file: Path) -> str:
    """Why the builder of videos does not take a file."""
    write_video(tmp_path / "videos" / "good.mp4")
    shutil.copy(file, tmp_path / "videos")
    return prepare_videos(tmp_path / "videos", tmp_path / "prepared")[1][file.name]


def test_texts_beyond_reason(tmp_path):
    source = tmp_path / "in"
    for name in "abcdefgh":
        write_picture(source / f"{name}.png")
    (source / "a.txt").write_text("x" * (MAX_TEXT_BYTES + 1))
    (source / "b.json").write_text("[" * 100_000)
    (source / "c.json").write_text('{"text": "\\ud83d half a pair"}')
    (source / "d.json").write_bytes(b"\xff\xfe\0junk")
    (source / "e.srt").write_text(f"{'9' * 6000}:00:00,000 --> {'9' * 6000}:00:01,000\nx\n")
    (source / "f.json").write_text('{"text": [3, "no", "string"]}')
    (source / "g.json").write_text('{"words": [{"start": 1' + "0" * 400 + ', "end": 2, "word": "x"}]}')
    (source / "h.txt").write_bytes(bytes(range(256)))
    clips, skipped = prepare(source, tmp_path / "out")
    texts = dict(zip(clips["train"]["video"], clips["train"]["text"], strict=True))
    assert texts["c.png"] == "? half a pair" and texts["e.png"] == "" and "ABC" in texts["h.png"]
    assert skipped.pop("e.srt") == "no subtitle can be read in it"
    assert set(skipped) == {"a.png", "b.png", "d.png", "f.png", "g.png"}
    assert all("text" in reason for reason in skipped.values())
    assert parse_subtitles("<a" * 200_000 + "\n00:01 --> 00:02\n" + "<b" * 200_000)[0].start == 1
    assert from_metadata({"text": "\ud800"}) == Transcript("?")


@pytest.mark.parametrize(
    ("text", "good", "wrong"),
    [
        ("", 0, 0),
        ("\n\n", 0, 0),
        ("file_name,text\na.png,x\na.png,x,y,z\n", 1, 1),
        ('file_name,text\na.png,"never closed\nb.png,y\n', 1, 0),
        ("file_name,text\na.png," + "x" * 200_000 + "\nb.png,y\n", 1, 1),
        ("file_name,file_name\na.png,b.png\n", 1, 0),
        ("file_name\n" + "\0" * 10 + "\n", 0, 0),
    ],
)
def test_csv_of_any_form(tmp_path, text, good, wrong):
    (tmp_path / "metadata.csv").write_text(text)
    problems = [problem for _, _, problem in read_entries(tmp_path / "metadata.csv")]
    assert (problems.count(None), len(problems) - problems.count(None)) == (good, wrong)


def test_jsonl_of_any_form(tmp_path):
    lines = [
        "{",
        "[]",
        "3",
        "null",
        "[" * 50_000,
        '{"a":' * 50_000,
        "9" * 5_000,
        '{"file_name": "a.png"}',
        "\x00",
        "NaN",
    ]
    lines.append('{"file_name": "' + "a" * (2 * MAX_TEXT_BYTES) + '"}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    entries = list(read_entries(tmp_path / "metadata.jsonl"))
    assert [entry for _, entry, _ in entries if entry] == [{"file_name": "a.png"}]
    assert len(entries) == len(lines) - 1  # NUL is removed, and nothing is left of its line


def test_damaged_copies_of_good_files(tmp_path):
    """Bytes overwritten at random: mostly rows, sometimes a reason."""
    source, draw = tmp_path / "in", np.random.default_rng(0)
    write_picture(source / "good.png")
    write_sound(source / "good.wav")
    write_video(source / "good.mp4", sound=np.full(8_000, 0.1))
    shutil.copy(source / "good.wav", tmp_path)
    Image.effect_noise((64, 64), 50).save(source / "noise.jpg")
    for path in sorted(source.iterdir()):
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for copy in range(12):
            damaged = data.copy()
            places = draw.integers(0, min(len(data), 2_000), 1 + copy)
            damaged[places] = draw.integers(0, 256, len(places))
            (source / f"{path.stem}{copy}{path.suffix}").write_bytes(damaged[: len(data) - copy * len(data) // 40])
    names = {path.name for path in source.iterdir()}
    clips, skipped = prepare(source, tmp_path / "out", num_frames=1)
    used = {name for name in names if any(name == Path(video).name for video in clips["train"]["video"])}
    # Files of one stem are one sample, named after one of them.
    stems = {Path(name).stem for name in (*used, *skipped)}
    assert {Path(name).stem for name in names} == stems
