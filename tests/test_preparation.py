"""Preparing much: decoding only what is wanted gives the same pictures, and no work is done twice."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import multiprocess
import numpy as np
import pytest
from av.packet import PacketSideData
from datasets import Image, List, load_dataset
from loopback_hub import loopback_hub
from test_hub import run_script
from test_video_clips import DATA, SMALL, needs_data, own_cache, prepare, write_video  # noqa: F401

from dataset_scripts import VideoClips, planned_decoding, shards
from dataset_scripts.decoding_plan import DECODE, SKIP, DecodingPlan, PacketIndex, is_entry
from dataset_scripts.media import MediaError, VideoReader, cut_windows, probe, slice_midpoints
from dataset_scripts.prepare import clip_files, load_clips, prepare_clips


def pictures(path, times, packets=None) -> list:
    """What the reader says at each time: picture, whether the file is at its end, and where that is."""
    found = []
    with VideoReader(path, 32, packets, times) as reader:
        for time in times:
            try:
                found.append(np.asarray(reader.frame_at(time)).tolist())
            except MediaError as error:
                return [str(error)]
            found.append((reader.finished, reader.end if reader.finished else None))
    return found


def plan_of(info, times) -> DecodingPlan | None:
    return DecodingPlan.make(info.packets, times, 1 / 1000, 0.0)


NEW_EXTRADATA = 1  # FFmpeg's number of that kind of side data


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr("dataset_scripts.planned_decoding.spare_threads", lambda: request.param)
    return request.param


@needs_data
@pytest.mark.parametrize("folder", ["clips", "odd", "grid/validation"])
def test_pictures_are_those_of_reading_everything(folder, threads):
    planned = 0
    for path in sorted((DATA / folder).iterdir())[:: 25 if folder == "grid/validation" else 1]:
        try:
            info = probe(path)
        except MediaError:
            continue
        windows = cut_windows(info.first_frame, info.duration, 3.0)
        times = [time for window in windows for time in slice_midpoints(*window, 5)]
        assert pictures(path, times, info.packets) == pictures(path, times), path.name
        planned += plan_of(info, times) is not None
    assert planned >= 2


def test_little_is_decoded_for_a_few_pictures(tmp_path, threads):
    path = write_video(tmp_path / "long.mkv", seconds=4, key_frames=10)
    info, times = probe(path), [0.2, 2.6]
    plan = plan_of(info, times)
    # The wanted ones are decoded, what leads there from the key frame serves as reference.
    assert (plan.uses == DECODE).sum() == 2
    assert [segment.times for segment in plan.segments] == [[200], [2600]] and plan.followers == [250, 2650]
    assert (plan.uses == SKIP).sum() >= 80 - 2 * 10
    assert pictures(path, times, info.packets) == pictures(path, times)
    assert plan_of(replace(info, packets=replace(info.packets, complete=False)), times) is None
    assert plan_of(replace(info, packets=replace(info.packets, times=[0] * 80)), times) is None


def test_a_file_that_lies_about_key_frames_is_read_from_its_beginning(tmp_path, threads):
    path = write_video(tmp_path / "long.mkv", seconds=2, options={"bf": "0"})
    info, times = probe(path), [1.1, 1.6]
    lie = replace(info.packets, key_frames=[True] * len(info.packets.times))
    assert (plan_of(replace(info, packets=lie), times).uses == SKIP).sum() == 38
    assert pictures(path, times, lie) == pictures(path, times)
    early = replace(info.packets, times=[time + 7 for time in info.packets.times])
    assert pictures(path, times, early) == pictures(path, times)


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".avi", ".flv"])
def test_entries_are_found_in_whatever_container(tmp_path, suffix, threads):
    path = write_video(tmp_path / f"long{suffix}", seconds=3, key_frames=10)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [is_entry(packet) for packet in packets] == [packet.is_keyframe for packet in packets]
    assert sum(packet.is_keyframe for packet in packets) >= 6
    times = [0.3 + 0.5 * number for number in range(5)]
    assert pictures(path, times, probe(path).packets) == pictures(path, times)


def test_a_file_that_changes_its_settings_is_read_from_its_beginning(tmp_path):
    path = write_video(tmp_path / "long.mkv", seconds=2, key_frames=10)
    with av.open(str(path)) as container:
        index, packets = PacketIndex("h264"), list(container.demux(video=0))
        packets[20].set_sidedata(PacketSideData(NEW_EXTRADATA, 8))
        for packet in packets[:20]:
            index.append(packet)
        assert index.complete
        index.append(packets[20])
    assert not index.complete and DecodingPlan.make(index, [1.2], 1 / 1000, 0.0) is None


def test_segments_are_decoded_ahead_as_far_as_memory_allows(tmp_path, threads, monkeypatch):
    path = write_video(tmp_path / "long.mkv", seconds=6, key_frames=10)
    info, times = probe(path), [0.3 + 0.5 * number for number in range(12)]
    assert len(plan_of(info, times).segments) >= 12
    with VideoReader(path, 32, info.packets, times) as reader:
        reader.frame_at(times[0])  # and no further: what is being decoded ahead is given up
    for bytes_ahead in (planned_decoding.MAX_BYTES_AHEAD, 0):
        monkeypatch.setattr(planned_decoding, "MAX_BYTES_AHEAD", bytes_ahead)
        assert pictures(path, times, info.packets) == pictures(path, times)


@pytest.mark.parametrize("start", [multiprocess.Process, multiprocessing.Process])
def test_one_of_several_processes_decodes_alone(start):
    here, there = multiprocess.Pipe()
    process = start(target=lambda: there.send(planned_decoding.spare_threads()))
    process.start()
    assert here.poll(30) and here.recv() == 1
    process.join()
    assert planned_decoding.spare_threads() >= 1


# ----------------------------------------------------------------------------------------------------------
# Shards, Parquet and the Hub


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Seven files in two splits, two of them of no use, three to a shard."""
    monkeypatch.setattr("dataset_scripts.shards.FILES_PER_SHARD", 3)
    monkeypatch.setattr("dataset_scripts.shards.SHARDS_PER_SPLIT", 1)
    tone = 0.5 * np.sin(np.arange(8_000) / 10)
    for name in ("train/a", "train/b", "train/d", "train/e", "validation/g"):
        write_video(tmp_path / "in" / f"{name}.mkv", seconds=2, sound=tone)
    for name in ("train/c.mp4", "train/f.mp4"):
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


KILLED = """
import sys, os, time
from dataset_scripts import VideoClips, prepare, shards, video_clips
import test_video_clips
shards.FILES_PER_SHARD, shards.SHARDS_PER_SPLIT = 3, 1
clips = video_clips.VideoClips._clips
def slow(self, folder, name, sources):
    if name == "train/e.mkv":
        print("there", flush=True)
        time.sleep(600)
    yield from clips(self, folder, name, sources)
video_clips.VideoClips._clips = slow
builder = VideoClips(data_dir=sys.argv[1], **test_video_clips.SMALL)
prepare.prepare_clips(builder, sys.argv[2], num_proc=int(sys.argv[3]))
"""


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_killed_run_goes_on_where_it_was(source, tmp_path, monkeypatch, num_proc):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    words = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out"), str(num_proc)]
    killed = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    assert killed.stdout.readline() == "there\n"
    folder = tmp_path / ".out.shards"
    while not (folder / "train-00000").is_dir() or num_proc == 2 and not (folder / "validation-00000").is_dir():
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert killed.stdout.read() == ""  # ends when the last worker does
    assert not (tmp_path / "out").exists()

    read = []
    clips = VideoClips._clips
    monkeypatch.setattr(VideoClips, "_clips", lambda self, *args: read.append(args[1]) or clips(self, *args))
    resumed, skipped = prepare(source, tmp_path / "out")
    again = ["train/d.mkv", "train/e.mkv", "train/f.mp4"]
    assert read == (again if num_proc == 2 else [*again, "validation/g.mkv"])
    whole, skipped_whole = prepare(source, tmp_path / "whole", num_proc=2)
    assert {name: rows.to_list() for name, rows in resumed.items()} == {n: r.to_list() for n, r in whole.items()}
    assert skipped == skipped_whole == {"train/c.mp4": "empty file", "train/f.mp4": "empty file"}
    assert not folder.exists()


def test_there_is_work_for_several_processes(tmp_path, monkeypatch):
    for index in range(3):
        write_video(tmp_path / "in" / f"{index}.mkv")
    calls = []
    write = shards._write_in_processes

    def count(builder, folder, missing, num_proc, progress):
        write(builder, folder, missing, num_proc, progress)
        calls.append(([len(shard) for shard in missing], progress.n))

    monkeypatch.setattr(shards, "_write_in_processes", count)
    prepare(tmp_path / "in", tmp_path / "out", num_proc=2, validation_fraction=0.0)
    assert calls == [([1, 1, 1], 3)]
    for count, largest in ((64, 1), (65, 2), (5_000, 32)):
        parts = list(shards._cut("train", {"names": list(range(count))}, 1))
        assert max(map(len, parts)) == largest
        assert [name for part in parts for name in part.arguments["names"]] == list(range(count))


def test_files_are_heard_together_and_counted_apart(tmp_path, monkeypatch):
    """Of 20 files of one second, the last is broken and one has a text."""
    for index in range(19):
        write_video(tmp_path / "in" / f"{index:02}.mkv", sound=np.full(8_000, 0.1 + index / 100))
    (tmp_path / "in" / "19.mkv").touch()
    (tmp_path / "in" / "05.txt").write_text("as written")
    heard = []

    class Recogniser:
        type, model = "ctc", None

        def __call__(self, inputs, batch_size, **options):
            heard.append(len(inputs))
            return [{"text": f"{item['raw'].mean():.2f}"} for item in inputs]

    monkeypatch.setattr("dataset_scripts.transcripts._recogniser", lambda model: Recogniser())
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out", asr_model="any", validation_fraction=0.0)
    texts = [f"{0.1 + index / 100:.2f}" for index in range(19)]
    texts[5] = "as written"
    assert clips["train"]["text"][:] == texts and list(skipped) == ["19.mkv"]
    assert heard == [15, 3], "16 at once, less the one that has a text; the broken one has no sound"


def test_parquet_files_stream_the_same_rows(source, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_scripts.prepare.BYTES_PER_FILE", 200_000)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    arrow, _ = prepare(source, tmp_path / "arrow")
    builder = VideoClips(data_dir=str(source), **SMALL)
    parquet = prepare_clips(builder, tmp_path / "parquet", parquet=True)
    names = sorted(path.name for path in (tmp_path / "parquet").glob("*.parquet"))
    assert len(names) > 2 and names[0] == f"train-00000-of-{len(names) - 1:05d}.parquet"
    for split, rows in arrow.items():
        streamed = load_dataset(str(tmp_path / "parquet"), split=split, streaming=True)
        assert parquet[split].features == rows.features == streamed.features
        encoded = List(Image(decode=False), length=4)
        found = [list(form.cast_column("frames", encoded)) for form in (rows, parquet[split], streamed)]
        assert len(found[0]) == len(rows) and found[0] == found[1] == found[2]
    written = (tmp_path / "parquet" / names[0]).stat().st_mtime_ns
    prepare_clips(builder, tmp_path / "parquet", parquet=True)
    assert (tmp_path / "parquet" / names[0]).stat().st_mtime_ns == written
    prepare_clips(builder, tmp_path / "parquet")  # asked for in the other form
    assert not clip_files(tmp_path / "parquet") and load_clips(tmp_path / "parquet").num_rows == arrow.num_rows


def test_a_builder_streams_the_same_rows_without_preparing_any(source, tmp_path):
    clips, skipped = prepare(source, tmp_path / "clips")
    assert skipped, "some of the files are broken"
    for split, streamed in VideoClips(data_dir=str(source), **SMALL).as_streaming_dataset().items():
        encoded = List(Image(decode=False), length=4)
        assert list(streamed.cast_column("frames", encoded)) == list(clips[split].cast_column("frames", encoded))


def test_clips_are_pushed_as_a_data_set(source, tmp_path):
    words = "--data_dir in --output_dir out --num_frames 2 --image_size 16 --sampling_rate 8000 --clip_seconds 1"
    words += " --parquet true --push_to_hub --hub_dataset_id someone/clips"
    with loopback_hub() as hub:
        done = run_script("prepare_dataset.py", words, tmp_path, **hub.environment())
        assert done.returncode == 0, done.stderr
        assert f"uploaded: {hub.url}/" in done.stdout
        hub.lay_out("someone/clips", tmp_path / "pushed")
    clips = load_clips(tmp_path / "out")
    for split, rows in clips.items():
        assert load_dataset(str(tmp_path / "pushed"), split=split).to_list() == rows.to_list()
    done = run_script("prepare_dataset.py", words, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_none")
    assert done.returncode == 1 and "cannot create the data set 'someone/clips'" in done.stderr


def test_a_copy_of_parquet_files_holds_the_same_clips(source, tmp_path):
    builder = VideoClips(data_dir=source, num_frames=2, image_size=16, clip_seconds=1.0)
    made = prepare_clips(builder, tmp_path / "clips", parquet=True)
    time.sleep(0.05)
    shutil.copytree(tmp_path / "clips", tmp_path / "copy", copy_function=shutil.copyfile)
    copied = load_clips(tmp_path / "copy")
    assert {split: rows._fingerprint for split, rows in copied.items()} == {
        split: rows._fingerprint for split, rows in made.items()
    }
