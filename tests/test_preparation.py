"""Preparing much: decoding only what is wanted gives the same pictures, and no work is done twice."""

from dataclasses import replace

import numpy as np
import pytest
from test_video_clips import DATA, needs_data, write_video

from dataset_scripts.decoding_plan import DECODE, SKIP, DecodingPlan
from dataset_scripts.media import MediaError, VideoReader, cut_windows, probe, slice_midpoints


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


@needs_data
@pytest.mark.parametrize("folder", ["clips", "odd", "grid/validation"])
def test_pictures_are_those_of_reading_everything(folder):
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


def test_little_is_decoded_for_a_few_pictures(tmp_path):
    path = write_video(tmp_path / "long.mkv", seconds=4, key_frames=10)
    info, times = probe(path), [0.2, 2.6]
    plan = plan_of(info, times)
    # The wanted ones and the ones after them are decoded, what leads there from the key frame serves as reference.
    assert (plan.uses == DECODE).sum() == 4 and plan.times == [200, 250, 2600, 2650]
    assert (plan.uses == SKIP).sum() >= 80 - 2 * 10 and plan.restarts.sum() == 1
    assert pictures(path, times, info.packets) == pictures(path, times)
    assert plan_of(replace(info, packets=replace(info.packets, complete=False)), times) is None
    assert plan_of(replace(info, packets=replace(info.packets, times=[0] * 80)), times) is None


def test_a_file_that_lies_about_key_frames_is_read_from_its_beginning(tmp_path):
    path = write_video(tmp_path / "long.mkv", seconds=2, options={"bf": "0"})
    info, times = probe(path), [1.1, 1.6]
    lie = replace(info.packets, key_frames=[True] * len(info.packets.times))
    assert (plan_of(replace(info, packets=lie), times).uses == SKIP).sum() == 36
    assert pictures(path, times, lie) == pictures(path, times)
    early = replace(info.packets, times=[time + 7 for time in info.packets.times])
    assert pictures(path, times, early) == pictures(path, times)
