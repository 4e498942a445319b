"""Rows from metadata, files of one stem, tar files and data sets, of which each may lack a modality."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from loopback_hub import loopback_hub
from PIL import Image
from test_hub import run_script
from test_video_clips import SMALL, write_video

from dataset_scripts.media_rows import MediaRows, MediaRowsConfig, read_picture
from dataset_scripts.prepare import load_clips, prepare_clips

COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_picture(path: Path, colour: str = "red", size=(40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_sound(path: Path, seconds: float = 1.0, level: float = 0.25, rate: int = 8_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * rate), level), rate)
    return path


def prepare(folder, output: Path, num_proc=None, **settings):
    clips = prepare_clips(MediaRows(data_dir=str(folder), **{**SMALL, **settings}), output, num_proc)
    skipped = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    return clips, {entry["file"]: entry["reason"] for entry in skipped}


def summary(row) -> tuple:
    """Colour of the frames, level of the sound, text; None where the row has none."""
    colours = {tuple(np.asarray(frame)[8, 8] // 128 * 255) for frame in row["frames"]}
    assert len(row["frames"]) in (0, SMALL["num_frames"]) and len(colours) <= 1
    name = next((name for name, value in COLOURS.items() if value in colours), None)
    assert len(row["audio"]) in (0, 8_000) and (len(row["audio"]) > 0) == (row["audio_valid"] > 0)
    level = round(float(np.mean(row["audio"][: row["audio_valid"]])), 2) if row["audio"] else None
    return name, level, row["text"] or None


def summaries(rows) -> dict:
    return {row["clip_id"]: summary(row) for row in rows}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_names_the_files_of_a_row(tmp_path, kind):
    source = tmp_path / "in"
    write_picture(source / "a.png")
    write_picture(source / "sub" / "b.jpg", "blue")
    write_picture(source / "mask.png")
    write_sound(source / "a.wav")
    write_sound(source / "c.flac", 2.0, 0.5)
    write_picture(source / "free.png", "lime")
    rows = [
        {"image_file_name": "a.png", "audio_file_name": "a.wav", "caption": "both, and a text", "words": "any"},
        {"image_file_name": "sub/b.jpg", "mask_file_name": "mask.png", "caption": "only a picture"},
        {"audio_file_name": "c.flac", "caption": "a sound of two clips"},
        {"image_file_name": "a.png", "audio_file_name": "c.flac"},
    ]
    if kind == "csv":
        with open(source / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, sorted(set().union(*rows)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips, skipped = prepare(source, tmp_path / "out", image_column="image")
    assert summaries(clips["train"]) == {
        "a.png + a.wav#0": ("red", 0.25, "both, and a text"),
        "sub/b.jpg#0": ("blue", None, "only a picture"),
        "c.flac#0": (None, 0.5, "a sound of two clips"),
        "c.flac#1": (None, 0.5, "a sound of two clips"),
        "a.png + c.flac#0": ("red", 0.5, None),
        "a.png + c.flac#1": ("red", 0.5, None),
        "free.png#0": ("lime", None, None),
    }
    assert not skipped
    ends = {row["clip_id"]: (row["start"], row["end"]) for row in clips["train"]}
    assert ends["sub/b.jpg#0"] == (0, 0) and ends["c.flac#1"] == (1, 2)


def test_file_name_alone_is_of_the_kind_of_its_suffix(tmp_path):
    source = tmp_path / "in"
    write_video(source / "a.mp4")
    write_sound(source / "b.wav")
    write_picture(source / "c.png")
    entries = [{"file_name": name, "text": name} for name in ("a.mp4", "b.wav", "c.png")]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    clips, skipped = prepare(source, tmp_path / "out", num_proc=2)
    found = summaries(clips["train"])
    assert found["b.wav#0"] == (None, 0.25, "b.wav") and found["c.png#0"] == ("red", None, "c.png") and not skipped
    video = next(row for row in clips["train"] if row["video"] == "a.mp4")
    assert len({frame.tobytes() for frame in video["frames"]}) == 4 and video["text"] == "a.mp4"


def test_files_of_one_stem_are_a_sample(tmp_path):
    source = tmp_path / "in"
    write_picture(source / "dog.png")
    write_sound(source / "dog.wav", 0.5)
    (source / "dog.txt").write_text("a dog")
    write_picture(source / "cat.jpeg", "blue")
    (source / "cat.json").write_text('{"caption": "a cat", "size": 3}')
    write_video(source / "film.mkv", sound=np.full(8_000, 0.1))
    write_sound(source / "film.wav", 1.0, 0.5)
    write_picture(source / "film.png")
    (source / "film.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n")
    (source / "lonely.txt").write_text("x")
    (source / "pack.zip").write_text("x")
    clips, skipped = prepare(source, tmp_path / "out")
    found = summaries(row for row in clips["train"] if row["video"] != "film.mkv")
    assert found == {"dog.png#0": ("red", 0.25, "a dog"), "cat.jpeg#0": ("blue", None, "a cat")}
    film = next(row for row in clips["train"] if row["video"] == "film.mkv")
    assert np.mean(film["audio"]) == pytest.approx(0.5, abs=0.01) and film["text"] == "words"
    assert "only one can count" in skipped.pop("film.png")
    assert "without a media file" in skipped.pop("lonely.txt") and "unpack" in skipped.pop("pack.zip")
    assert not skipped


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_members_of_one_stem_in_a_tar_file_are_a_sample(tmp_path):
    picture = write_picture(tmp_path / "a.png").read_bytes()
    blue = write_picture(tmp_path / "b.jpg", "blue").read_bytes()
    sound, flac = (write_sound(tmp_path / name).read_bytes() for name in ("a.wav", "a.flac"))
    film = write_video(tmp_path / "a.mp4").read_bytes()
    members = {
        "0/x.png": picture,
        "0/x.wav": sound,
        "0/x.txt": b"all three",
        "1/x.jpg": blue,
        "1/x.json": b'{"text": "a picture"}',
        "y.seg.png": blue,
        "y.flac": flac,
        "y.cls": b"3",
        "z.mp4": film,
        "alone.txt": b"text",
    }
    write_tar(tmp_path / "in" / "train" / "000.tar", members)
    write_tar(tmp_path / "in" / "validation" / "000.tar", {"v.jpg": blue, "v.txt": b"held out"})
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out", num_proc=2)
    found = summaries(row for row in clips["train"] if "z.mp4" not in row["video"])
    assert found == {
        "train/000.tar/0/x.png#0": ("red", 0.25, "all three"),
        "train/000.tar/1/x.jpg#0": ("blue", None, "a picture"),
        "train/000.tar/y.seg.png#0": ("blue", 0.25, None),
    }
    assert "train/000.tar/z.mp4" in clips["train"]["video"][:]
    assert summaries(clips["validation"]) == {"validation/000.tar/v.jpg#0": ("blue", None, "held out")}
    assert "without media" in skipped["train/000.tar/alone.txt"] and ".cls" in skipped["train/000.tar"]
    chosen, _ = prepare(tmp_path / "in", tmp_path / "chosen", image_column="jpg", audio_column="flac")
    assert summaries(chosen["train"])["train/000.tar/y.flac#0"] == (None, 0.25, None)
    with pytest.raises(ValueError, match="image_column: .* no column 'jpog'; there are .*jpg"):
        prepare(tmp_path / "in", tmp_path / "other", image_column="jpog")


def test_names_of_tar_files_and_folders_are_splits(tmp_path):
    picture = write_picture(tmp_path / "a.png").read_bytes()
    for name in ("train-000", "val-000", "x/my_test_1"):
        write_tar(tmp_path / "in" / f"{name}.tar", {"0.png": picture, "train/1.png": picture})
    write_picture(tmp_path / "in" / "Dev" / "b.png")
    write_picture(tmp_path / "in" / "loose.png")
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out", num_frames=1)
    videos = {split: sorted(rows["video"]) for split, rows in clips.items()}
    assert videos == {
        "train": ["train-000.tar/0.png", "train-000.tar/train/1.png"],
        "validation": ["Dev/b.png", "val-000.tar/0.png", "val-000.tar/train/1.png"],
        "test": ["x/my_test_1.tar/0.png", "x/my_test_1.tar/train/1.png"],
    }
    assert set(skipped) == {"loose.png"}


def encoded(path: Path) -> dict:
    return {"bytes": path.read_bytes(), "path": path.name}


@pytest.fixture
def table(tmp_path) -> Dataset:
    picture, blue = write_picture(tmp_path / "a.png"), write_picture(tmp_path / "b.png", "blue")
    sound = write_sound(tmp_path / "a.wav")
    features = Features(
        {
            "thumbnail": ImageFeature(),
            "picture": ImageFeature(),
            "speech": {"bytes": Value("binary"), "path": Value("string")},
            "raw": Value("binary"),
            "label": ClassLabel(names=["cat", "dog"]),
            "caption": Value("string"),
        }
    )
    rows = [
        {"picture": encoded(picture), "speech": encoded(sound), "label": 0, "caption": "one"},
        {"picture": encoded(blue), "label": 1, "caption": "two"},
        {"speech": encoded(sound), "raw": blue.read_bytes(), "label": 1},
        {"caption": "only words", "label": 0},
        {"thumbnail": {"bytes": b"no picture", "path": None}, "label": 0},
    ]
    rows = Dataset.from_list([{**dict.fromkeys(features), **row} for row in rows], features=features)
    return rows.cast_column("speech", Audio(decode=False))  # a row would be encoded by a library that is not here


def test_a_data_set_and_a_column_mapping(tmp_path, table):
    expected = {
        "0#0": ("red", 0.25, "one"),
        "1#0": ("blue", None, "two"),
        "2#0": (None, 0.25, None),
        "3#0": (None, None, "only words"),
    }
    table.save_to_disk(tmp_path / "saved")
    clips, skipped = prepare(tmp_path / "saved", tmp_path / "out", num_proc=2, image_column="picture")
    assert summaries(clips["train"]) == expected and skipped == {"4": "has neither picture nor sound nor text"}
    written = (tmp_path / "out" / "preparation.json").stat().st_mtime_ns
    prepare(tmp_path / "saved", tmp_path / "out", image_column="picture")
    assert (tmp_path / "out" / "preparation.json").stat().st_mtime_ns == written, "nothing has changed"

    clips, _ = prepare(tmp_path / "saved", tmp_path / "raw", image_column="raw", text_column="label")
    assert summaries(clips["train"])["2#0"] == ("blue", 0.25, "dog")
    assert summaries(clips["train"])["0#0"] == (None, 0.25, "cat")
    _, skipped = prepare(tmp_path / "saved", tmp_path / "first")
    assert "is no picture" in skipped["4"], "the first column of pictures is taken"
    with pytest.raises(ValueError, match="image_column: column 'caption' holds"):
        prepare(tmp_path / "saved", tmp_path / "other", image_column="caption")

    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    table.select([1]).to_parquet(tmp_path / "files" / "val-00000-of-00001.parquet")
    clips, _ = prepare(tmp_path / "files", tmp_path / "parquet", image_column="picture")
    assert list(summaries(clips["train"]).values()) == list(expected.values())
    assert summaries(clips["validation"]) == {"validation/0#0": ("blue", None, "two")}


def test_a_data_set_of_the_hub_by_its_name(tmp_path, table):
    table.to_parquet(tmp_path / "rows.parquet")
    with loopback_hub() as hub:
        files = {"data/train-00000-of-00001.parquet": (tmp_path / "rows.parquet").read_bytes()}
        hub.repositories["someone/pictures"] = {".gitattributes": b"", **files}
        words = "--builder media_rows --data_dir someone/pictures --image_column picture --text_column label"
        words += " --output_dir out --num_frames 4 --image_size 16 --sampling_rate 8000 --clip_seconds 1"
        done = run_script("prepare_dataset.py", f"{words} --validation_fraction 0", tmp_path, **hub.environment())
    assert done.returncode == 0, done.stderr
    found = summaries(load_clips(tmp_path / "out")["train"])
    assert found == {
        "0#0": ("red", 0.25, "cat"),
        "1#0": ("blue", None, "dog"),
        "2#0": (None, 0.25, "dog"),
        "3#0": (None, None, "cat"),
        "4#0": (None, None, "cat"),
    }


def test_parquet_files_beside_media_are_no_data_set(tmp_path, table):
    (tmp_path / "in" / ".cache").mkdir(parents=True)
    table.to_parquet(tmp_path / "in" / ".cache" / "train.parquet")
    (tmp_path / "in" / "a.txt").write_text("a text")
    with pytest.raises(ValueError, match="No usable clip"):
        prepare(tmp_path / "in", tmp_path / "out")
    table.to_parquet(tmp_path / "in" / "features.parquet")
    write_picture(tmp_path / "in" / "a.png")
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out")
    assert summaries(clips["train"]) == {"a.png#0": ("red", None, "a text")}
    assert skipped == {"features.parquet": "not a media file"}
    with pytest.raises(ValueError, match="data_dir must be a folder"):
        MediaRowsConfig(data_dir="")


def test_splits_have_their_own_columns(tmp_path, table):
    source, rows = tmp_path / "in", table.select([0, 1])
    source.mkdir()
    rows.to_parquet(source / "train.parquet")
    rows.select_columns(["picture"]).to_parquet(source / "test.parquet")
    rows.select_columns(["label"]).to_parquet(source / "validation.parquet")
    clips, skipped = prepare(source, tmp_path / "out", image_column="picture", text_column="caption")
    assert summaries(clips["train"])["train/1#0"] == ("blue", None, "two")
    assert summaries(clips["test"])["test/1#0"] == ("blue", None, None)
    assert set(skipped) == {"validation/0", "validation/1"}
    with pytest.raises(ValueError, match="audio_column: there is no column 'sound'; there are picture, "):
        prepare(source, tmp_path / "other", audio_column="sound")
    (source / "test.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="data_dir: test.parquet is no Parquet file, or a damaged one"):
        prepare(source, tmp_path / "other")
    rows.select_columns(["picture"]).to_parquet(source / "test.parquet")
    rows.select_columns(["label"]).to_parquet(source / "test-2.parquet")
    with pytest.raises(ValueError, match="of the Parquet files test-2.parquet, test.parquet one cannot be read"):
        prepare(source, tmp_path / "other")


def test_a_name_that_is_neither_folder_nor_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no folder here and no data set on the Hub"):
        prepare("nobody/nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="data_dir is not a folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="data_dir must be set"):
        prepare_clips(MediaRows(), tmp_path / "out")
    with pytest.raises(ValueError, match="text_column"):
        MediaRowsConfig(text_column="")


def test_broken_files_are_listed_or_raised(tmp_path):
    source = tmp_path / "in"
    write_picture(source / "good.png")
    for name in ("a.png", "b.wav", "c.mp4"):
        (source / name).write_bytes(b"nothing of the kind" * 10)
    (source / "d.jpg").touch()
    clips, skipped = prepare(source, tmp_path / "out")
    assert clips["train"]["video"][:] == ["good.png"] and set(skipped) == {"a.png", "b.wav", "c.mp4", "d.jpg"}
    with pytest.raises(ValueError, match="a.png: is no picture"):
        prepare(source, tmp_path / "strict", strict=True)


def test_a_broken_file_costs_its_sample_no_other(tmp_path):
    source, noise = tmp_path / "in", b"nothing of the kind" * 10
    source.mkdir()
    for name in ("a.png", "b.wav", "c.mp4", "d.png", "d.wav", "e.png"):
        (source / name).write_bytes(noise)
    write_sound(source / "a.wav")
    write_picture(source / "b.png")
    write_sound(source / "c.wav")
    for name in "abcde":
        (source / f"{name}.txt").write_text(name)
    write_tar(source / "t.tar", {"f.jpg": noise, "f.wav": (source / "a.wav").read_bytes()})
    with av.open(str(source / "g.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8_000)
        frame = av.AudioFrame.from_ndarray(np.full((1, 8_000), 0.25, np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clips, skipped = prepare(source, tmp_path / "out", validation_fraction=0.0)
    assert clips["train"]["video"][:] == ["a.png", "b.png", "c.mp4", "g.mp4", "t.tar/f.jpg"]
    found = summaries(row for row in clips["train"] if row["video"] != "g.mp4")
    assert found == {
        "a.png#0": (None, 0.25, "a"),
        "b.png#0": ("red", None, "b"),
        "c.mp4#0": (None, 0.25, "c"),
        "t.tar/f.jpg#0": (None, 0.25, None),
    }
    sound = clips["train"][3]
    assert not sound["frames"] and np.mean(sound["audio"][1_000:7_000]) == pytest.approx(0.25, abs=0.1)
    assert set(skipped) == {"a.png", "b.wav", "c.mp4", "d.png", "d.wav", "e.png", "t.tar/f.jpg"}
    others = [file for file, reason in skipped.items() if reason.endswith("the other files of its sample are used")]
    assert others == ["a.png", "b.wav", "c.mp4", "t.tar/f.jpg"]
    assert skipped["e.png"] == skipped["d.png"] == "is no picture, or one of a kind that is not read"


SUBTITLE = "1\n00:00:00,000 --> 00:00:01,000\n{}\n"


@pytest.mark.parametrize("language", [None, "de"])
def test_texts_in_tar_files_and_in_languages(tmp_path, language):
    source, picture = tmp_path / "in", write_picture(tmp_path / "a.png").read_bytes()
    subtitles = {f"c.{code}.srt": SUBTITLE.format(code).encode() for code in ("en", "de")}
    members = {"a.PNG": picture, "a.TXT": b"upper", "b.png": picture, "b.json": b'{"text": ["first", "second"]}'}
    write_tar(source / "t.tar", {**members, "c.png": picture, **subtitles})
    for name in ("c.png", "my.png", "my.dog.png"):
        (source / name).write_bytes(picture)
    for name, data in {**subtitles, "my.dog.txt": b"dog"}.items():
        (source / name).write_bytes(data)
    clips, skipped = prepare(source, tmp_path / "out", language=language, validation_fraction=0.0)
    chosen = language or ("de" if language is None else None)
    assert dict(zip(clips["train"]["video"], clips["train"]["text"], strict=True)) == {
        "c.png": chosen,
        "my.png": "",
        "my.dog.png": "dog",
        "t.tar/a.PNG": "upper",
        "t.tar/b.png": "first",
        "t.tar/c.png": chosen,
    }
    assert list(skipped) == ["c.en.srt"] and "without a media file" in skipped["c.en.srt"]
    clips, _ = prepare(source, tmp_path / "chosen", image_column="png", language="en", validation_fraction=0.0)
    assert "t.tar/a.PNG" in clips["train"]["video"][:] and clips["train"]["text"].count("en") == 2


def test_a_text_column_that_is_nowhere(tmp_path, table):
    source, picture = tmp_path / "in", write_picture(tmp_path / "a.png").read_bytes()
    write_tar(source / "t.tar", {"a.png": picture, "a.json": b'{"title": "a"}', "b.png": picture, "b.json": b"[no"})
    for name in ("c", "d"):
        (source / f"{name}.png").write_bytes(picture)
    (source / "c.json").write_text('{"other": ["c"]}')
    (source / "d.txt").write_text("d")
    for column, texts in (("title", ["d", "a"]), ("other", ["c", "d"]), ("txt", ["d"]), ("TXT", ["d"])):
        clips, _ = prepare(source, tmp_path / "out", text_column=column, validation_fraction=0.0)
        assert [text for text in clips["train"]["text"] if text] == texts, column
    with pytest.raises(ValueError, match="text_column: .* no column 'nope'; there are json, png, txt"):
        prepare(source, tmp_path / "out", text_column="nope")
    table.add_column("lists", [["x", "y"], [], None, ["z"], []]).save_to_disk(tmp_path / "saved")
    clips, _ = prepare(
        tmp_path / "saved", tmp_path / "out", image_column="picture", text_column="lists", validation_fraction=0.0
    )
    assert clips["train"]["text"][:] == ["x", "", "", "z"]


def test_pictures_are_upright_and_of_any_mode(tmp_path):
    picture = Image.new("RGB", (30, 20), "blue")
    picture.paste("red", (0, 0, 30, 10))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = np.asarray(read_picture(tmp_path / "turned.jpg", 16)).astype(int)
    assert (pixels[:, 12, 0] > 200).all() and (pixels[:, 3, 2] > 200).all()
    for mode, value in (("L", 128), ("I;16", 128 << 8), ("RGBA", (128, 128, 128, 255)), ("LA", (128, 255))):
        Image.new(mode, (20, 20), value).save(tmp_path / "grey.png")
        assert (np.abs(np.asarray(read_picture(tmp_path / "grey.png", 8)).astype(int) - 128) <= 1).all(), mode
    Image.new("1", (20, 20), 1).save(tmp_path / "white.tif")
    assert (np.asarray(read_picture(tmp_path / "white.tif", 8)) == 255).all()


def test_the_same_videos_give_the_same_rows_as_video_clips(tmp_path):
    from dataset_scripts.video_clips import VideoClips

    source = tmp_path / "in"
    write_video(source / "a.mkv", seconds=2.0, sound=np.linspace(-0.5, 0.5, 16_000))
    entry = {"file_name": "a.mkv", "text": "x y", "words": [{"start": 0.1, "end": 0.2, "word": "x"}]}
    (source / "metadata.jsonl").write_text(json.dumps(entry))
    rows, _ = prepare(source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert rows["train"].features["frames"].length == -1
    same = prepare_clips(VideoClips(data_dir=str(source), **SMALL), tmp_path / "out")
    assert list(same["train"]) == list(rows["train"])


def test_splits_of_other_names_are_joined_and_none_is_made_of_another(tmp_path, table):
    rows = table.select([0, 1])
    DatasetDict({"train.100": rows, "train.360": rows, "dev": rows}).save_to_disk(tmp_path / "several")
    clips, skipped = prepare(tmp_path / "several", tmp_path / "a", image_column="picture")
    assert clips.num_rows == {"train": 4, "validation": 2} and not skipped
    DatasetDict({"validation": rows, "test": rows}).save_to_disk(tmp_path / "no_train")
    clips, _ = prepare(tmp_path / "no_train", tmp_path / "b", image_column="picture")
    assert set(clips) == {"validation", "test"}
