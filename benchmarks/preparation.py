"""Clips of a long video: what nano4M decodes for them, beside decoding the whole file and picking from it.

The video is H.264 as x264 makes it by default (two of three pictures are B pictures) with stereo sound: once with a
key frame every second, as phones set them, and once with as few as x264 sets where no cut of the video asks for one.
Both sides make the same pictures as PNG files and the same sound at the same rate; the plain side uses PyAV as it
comes.
"""

import os
import resource
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from dataset_scripts.media import cut_windows, probe, slice_midpoints, square_picture
from dataset_scripts.video_clips import VideoClipsConfig, png_bytes, read_windows

FRAME_RATE = 20
SOUND_RATE = 48_000
# Pictures from one key frame to the next, by name of the measure.
KEY_FRAMES = {"preparation": FRAME_RATE, "preparation_far_key_frames": 250}
CONFIG = VideoClipsConfig(num_frames=8, clip_seconds=10.0)


def prepare(side: str, sizes, key_frames: int) -> dict:
    """All clips of one video. Returns `clips_per_second`, their number, processor seconds and at most used MiB."""
    name = f"nano4m-video-{sizes.video_seconds:g}s-{sizes.video_height}-{key_frames}.mp4"
    path = Path(tempfile.gettempdir()) / name
    if not path.exists():
        unfinished = path.with_name(f"{os.getpid()}-{name}")
        write_video(unfinished, sizes.video_seconds, sizes.video_height, key_frames)
        unfinished.rename(path)
    read = read_planned if side == "ours" else read_whole
    start, processor_start = time.perf_counter(), time.process_time()
    clips = read(path, CONFIG)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    return {
        "clips_per_second": len(clips) / seconds,
        "clips": len(clips),
        "processor_seconds": processor_seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def read_planned(path: Path, config: VideoClipsConfig) -> list[tuple[list[bytes], np.ndarray]]:
    """Pictures (PNG) and sound (samples,) of each clip, as the builder of nano4M reads them."""
    windows = read_windows(path, probe(path), config)
    return [([png_bytes(image) for image in images], samples) for _, _, images, (samples, _) in windows]


def read_whole(path: Path, config: VideoClipsConfig) -> list[tuple[list[bytes], np.ndarray]]:
    """The same by decoding all frames in the order of the file, and keeping those that are on display when wanted."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        windows = cut_windows(0.0, float(video.duration * video.time_base), config.clip_seconds)
        wanted = [time for window in windows for time in slice_midpoints(*window, config.num_frames)]
        resampler = av.AudioResampler("fltp", "mono", config.sampling_rate)
        pictures, sound, shown = [], [], None
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.AudioFrame):
                sound += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
                continue
            while len(pictures) < len(wanted) and shown is not None and wanted[len(pictures)] < frame.time:
                pictures.append(png_bytes(square_picture(shown, config.image_size)))
            shown = frame
        while len(pictures) < len(wanted):
            pictures.append(png_bytes(square_picture(shown, config.image_size)))
    size = config.num_samples
    samples = np.concatenate([*sound, np.zeros(size, dtype=np.float32)])
    return [
        (pictures[i * config.num_frames : (i + 1) * config.num_frames], samples[i * size : (i + 1) * size])
        for i in range(len(windows))
    ]


def write_video(path: Path, seconds: float, height: int, key_frames: int) -> None:
    """A video with moving content and sound; its pictures are encoded once, up to a key frame, and repeated."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.mp4"
        _encode(part, height, key_frames)
        with av.open(str(part)) as source, av.open(str(path), "w") as target:
            streams = [source.streams.video[0], source.streams.audio[0]]
            packets = {stream.index: [] for stream in streams}
            for packet in source.demux(streams):
                if packet.size:
                    packets[packet.stream.index].append(packet)
            outputs = [target.add_stream_from_template(stream) for stream in streams]
            for turn in range(max(1, round(seconds * FRAME_RATE / key_frames))):
                for stream, output in zip(streams, outputs, strict=True):
                    offset = turn * sum(packet.duration for packet in packets[stream.index])
                    for packet in packets[stream.index]:
                        copy = av.Packet(bytes(packet))
                        copy.pts, copy.dts, copy.duration = packet.pts + offset, packet.dts + offset, packet.duration
                        copy.time_base, copy.is_keyframe, copy.stream = stream.time_base, packet.is_keyframe, output
                        target.mux(copy)


def _encode(path: Path, height: int, num_pictures: int) -> None:
    """A texture that moves, a smaller one that moves faster, and a little noise."""
    rng = np.random.default_rng(0)
    width = height * 16 // 9 // 2 * 2
    size = (width + 2 * num_pictures + 64, height + 64)  # width, height
    texture = np.full(size[::-1], 128.0, dtype=np.float32)
    for cell, strength in ((64, 50), (16, 25), (4, 10)):
        coarse = rng.standard_normal((size[1] // cell + 2, size[0] // cell + 2)).astype(np.float32)
        texture += strength * np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    texture = texture.clip(16, 235).astype(np.uint8)
    side = height // 4
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"g": str(num_pictures)})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.thread_type = "FRAME"  # PyAV's own choice would make x264 cut each picture into slices
        audio = container.add_stream("aac", rate=SOUND_RATE)
        audio.codec_context.layout = "stereo"
        for number in range(num_pictures):
            top = int(32 + 30 * np.sin(number / 40))
            luma = texture[top : top + height, 2 * number : 2 * number + width].astype(np.int16)
            x = int((width - side) * (0.5 + 0.5 * np.sin(number / 15)))
            y = int((height - side) * (0.5 + 0.5 * np.cos(number / 11)))
            luma[y : y + side, x : x + side] = 255 - texture[:side, :side]
            noise = rng.integers(-2, 3, (height // 2, width // 2), dtype=np.int16).repeat(2, 0).repeat(2, 1)
            luma = (luma + noise).clip(16, 235).astype(np.uint8)
            blue = texture[: height // 2, number : number + width // 2]
            planes = np.concatenate([luma.ravel(), blue.ravel(), 255 - blue.ravel()]).reshape(-1, width)
            container.mux(video.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(video.encode(None))
        clock = np.arange(num_pictures * SOUND_RATE // FRAME_RATE) / SOUND_RATE
        sound = 0.3 * np.sin(2 * np.pi * 220 * clock) + 0.05 * rng.standard_normal(len(clock))
        frame = av.AudioFrame.from_ndarray(np.stack([sound, sound]).astype(np.float32), "fltp", "stereo")
        frame.sample_rate = SOUND_RATE
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
