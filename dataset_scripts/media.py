"""Reading of one media file with PyAV: what it holds, and the picture shown at a time.

Its sound is read by `dataset_scripts.audio_reader`.

All times are seconds on one timeline per file.  Its zero is where the earlier of the first video and audio streams
begins, which is also where players start, so that sound, picture, subtitles and words keep their true offsets.
The readers go forwards only and hold a handful of decoded frames: an hour of film needs no more memory than a clip.
What is not needed for the pictures that are asked for is not decoded, where the file allows it.
"""

import gc
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from math import floor
from operator import itemgetter
from pathlib import Path

import av
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Discard, Disposition
from PIL import Image

from dataset_scripts.decoding_plan import TIE, DecodingPlan, PacketIndex
from dataset_scripts.planned_decoding import PlanFailedError, planned_frames

MAX_PIXELS = 100_000_000  # a larger picture is a broken header or an attack on memory, not a video
TINY = 1e-3  # seconds; frame times are often rounded to milliseconds
MAX_SECONDS = 100 * 3600  # a longer file has broken timestamps, and would give windows without end
MAX_GAP = 600  # seconds; a video that shows fewer pictures than one in so long, on average, has broken timestamps too
MIN_BYTES_PER_SECOND = 10  # in files of over an hour: less than any codec needs for a still picture, or for silence
# Formats that name other files or addresses (HLS, DASH, concat, image sequences, SDP) would have FFmpeg open these.
SELF_CONTAINED_FORMATS = (
    "3g2,3gp,aac,ac3,aiff,amr,apng,asf,av1,avi,caf,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mjpeg,mov,mp4,"
    "m4a,mj2,mp3,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,w64,wav,yuv4mpegpipe,"
    "bmp_pipe,jpeg_pipe,jpegxl_pipe,png_pipe,tiff_pipe,webp_pipe"
)
# Of ISO 639-1, the codes with which their codes of three letters (ISO 639-2, of both kinds) do not begin.
LONG_CODES = {
    pair[:2]: tuple(pair[3:].split("/"))
    for pair in """bn=ben bs=bos cs=ces/cze cy=cym/wel de=deu/ger el=ell/gre es=spa et=est eu=eus/baq fa=fas/per ga=gle
    gd=gla hr=hrv hy=hye/arm id=ind is=isl/ice ja=jpn ka=kat/geo kk=kaz km=khm ky=kir lv=lav mi=mri/mao mk=mkd/mac
    mr=mar ms=msa/may mt=mlt my=mya/bur nl=nld/dut pl=pol pt=por ro=ron/rum sk=slk/slo sl=slv sq=sqi/alb sr=srp sv=swe
    tk=tuk tr=tur tt=tat zh=zho/chi""".split()
}


class MediaError(ValueError):
    """A file that gives no clip; the message is the reason, one line without the file's name."""


class NoVideoError(MediaError):
    """A file that can be read and has no video stream; there may be sound in it."""


@dataclass(frozen=True)
class MediaInfo:
    """What `probe` finds: `duration` is the end of the last video frame (seconds), `first_frame` its beginning."""

    duration: float
    first_frame: float
    frame_seconds: float
    has_audio: bool
    packets: PacketIndex | None = field(default=None, repr=False, compare=False)


def open_container(path: str | Path) -> av.container.InputContainer:
    """Opens a file for reading.

    Raises:
        MediaError: the file is empty or in no format that can be read.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise MediaError("empty file")
        # Tags in old files are in any encoding, and we do not read them.
        options = {"format_whitelist": SELF_CONTAINED_FORMATS}
        return av.open(str(path), options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot be opened ({_reason(error)})") from error


def probe(path: str | Path) -> MediaInfo:
    """Reads headers and packet times, decodes nothing.

    Raises:
        MediaError: no video in the file, a still image, a picture size or times beyond reason, or no video data.
    """
    with open_container(path) as container:
        video, audio = _streams(container)
        origin = _origin(video, audio)
        first = last = None
        num_packets = 0
        longest = 0.0
        index = PacketIndex(video.codec_context.name)
        for packet in _packets(container, video):
            index.append(packet)
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None or packet.is_discard:
                continue
            num_packets += 1
            seconds = float((packet.duration or 0) * packet.time_base)
            time = float(time * packet.time_base) - origin
            first = time if first is None else min(first, time)
            if last is None or time >= last:
                last, longest = time, seconds
        if first is None:
            raise MediaError("the video stream holds no data")
        frame_seconds = _frame_seconds(video, first, last, num_packets)
        # Some containers store no durations: the last frame then lasts as long as the average one.
        duration = last + (longest or frame_seconds)
        _check_times(duration, num_packets, container.size)
        return MediaInfo(duration, first, frame_seconds, audio is not None, index)


def sound_seconds(path: str | Path, language: str | None = None) -> float:
    """The end of the audio stream that `AudioReader` reads, seconds; reads packet times, decodes nothing.

    Raises:
        MediaError: no sound in the file, or times beyond reason.
    """
    with open_container(path) as container:
        audio = audio_stream(container, language)
        if audio is None:
            raise MediaError("no audio stream")
        origin, end, num_packets = stream_origin(container), 0.0, 0
        for packet in _packets(container, audio):
            if packet.pts is not None:
                num_packets += 1
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base) - origin)
        if end <= 0:
            raise MediaError("the audio stream holds no data")
        _check_times(end, num_packets, container.size)
        return end


def cut_windows(first_frame: float, duration: float, clip_seconds: float) -> list[tuple[float, float]]:
    """Windows of `clip_seconds` from 0 to `duration`; the rest is one too if it is at least half as long.

    A video shorter than that gives one window, from 0 to its end.  Windows that end before the first frame have
    nothing to show and are left out.  All in seconds.
    """
    whole = floor((duration + TINY) / clip_seconds)
    ends = [(number + 1) * clip_seconds for number in range(whole)]
    rest = duration - whole * clip_seconds
    if not whole or rest >= clip_seconds / 2 - TINY:
        ends.append(duration)
    windows = [(number * clip_seconds, min(end, duration)) for number, end in enumerate(ends)]
    return [(start, end) for start, end in windows if end > first_frame]


def slice_midpoints(start: float, end: float, count: int) -> list[float]:
    """Midpoints of `count` equal slices of [start, end), seconds."""
    return [start + (end - start) * (index + 0.5) / count for index in range(count)]


class Reader:
    """What readers have in common: an open file, closed at the end of a `with` block."""

    container: av.container.InputContainer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self.container.close()


class VideoReader(Reader):
    """The pictures of a file, asked for in the order of time.

    Args:
        path: the file.
        image_size: side of the pictures, pixels.
        packets: of this file, as `probe` found them.
        times: all that `frame_at` will be asked for.  If both are given, as little as possible is decoded; the
            pictures are the same as without.  A file whose packets turn out not to be what they claim is decoded
            from its beginning.

    Attributes:
        finished: the file has no further frame.
        end: end of the last frame decoded so far, seconds.

    Raises:
        MediaError: as `probe`; `frame_at` raises it too, if no frame at all can be decoded.
    """

    def __init__(
        self,
        path: str | Path,
        image_size: int,
        packets: PacketIndex | None = None,
        times: Sequence[float] | None = None,
    ):
        self.path = path
        self.image_size = image_size
        self.finished = False
        self.end = 0.0
        self._open()
        self._plan = None
        if packets is not None and times is not None:
            self._plan = DecodingPlan.make(packets, times, float(self.stream.time_base), self._origin)
        self._frames = self._decode()
        self._shown = self._next = None  # (time, frame): the frame being shown and the one after it
        # The last (time, picture) made, because slow videos show a frame many times.
        self._picture = (None, None)
        self._turns = None

    def close(self) -> None:
        """Closes the file, and ends what is decoded ahead."""
        self._frames.close()
        super().close()

    def _open(self) -> None:
        self.container, self.stream = _open_video(self.path)
        self._origin = stream_origin(self.container)
        self._frame_seconds = _frame_seconds(self.stream, 0.0, 0.0, 1)
        self._pixel_ratio = float(self.stream.sample_aspect_ratio or 1)

    def frame_at(self, time: float) -> Image.Image:
        """The picture displayed at `time` seconds, which must not decrease from call to call.

        That is the latest frame that starts at or before `time`; before the first frame it is the first, after the
        end it is the last.

        Returns:
            RGB image of `image_size` x `image_size`: upright, with square pixels, cropped at the centre.
        """
        if self._shown is None:
            self._shown = next(self._frames, None)
            if self._shown is None:
                raise MediaError("no frame of the video can be decoded")
            self._next = next(self._frames, None)
        while self._next is not None and self._next[0] <= time + TIE:
            if self._next[1] is not None:
                self._shown = self._next
            self._next = next(self._frames, None)
        self.finished = self._next is None
        shown_at, frame = self._shown
        if self._picture[0] != shown_at:
            if self._turns is None:
                # A frame whose side data were looked at refers to itself and stays in memory for long: only the first.
                self._turns = _turns(frame)
            try:
                picture = square_picture(frame, self.image_size, self._pixel_ratio, self._turns)
            except (av.FFmpegError, ValueError) as error:
                raise MediaError(f"a frame cannot be converted to RGB ({_reason(error)})") from error
            self._picture = (shown_at, picture)
        return self._picture[1]

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame | None]]:
        """Frames and when they begin; None for those of which nothing else will be asked."""
        latest = None
        for time, frame in self._decoded_frames():
            if latest is not None and time <= latest:
                continue  # a damaged timestamp: never go back in time
            latest = time
            if frame is not None:
                check_size(frame.width, frame.height)
                seconds = float((frame.duration or 0) * frame.time_base) if frame.time_base else 0.0
                self.end = time + (seconds or self._frame_seconds)
            yield time, frame

    def _decoded_frames(self) -> Iterator[tuple[float, av.VideoFrame | None]]:
        if self._plan is not None:
            try:
                yield from self._planned_frames(self._plan)
                return
            except PlanFailedError:
                self.container.close()
                self._open()  # begins anew; `_decode` passes over what it had
        for frame in decode_frames(self.container, self.stream):
            yield self.end if frame.time is None else frame.time - self._origin, frame

    def _planned_frames(self, plan: DecodingPlan) -> Iterator[tuple[float, av.VideoFrame | None]]:
        packets = _packets(self.container, self.stream)
        frames = planned_frames(packets, plan, self.stream, lambda: _open_video(self.path))
        followers = ((time, None) for time in plan.followers)
        for time, frame in merge(((frame.pts, frame) for frame in frames), followers, key=itemgetter(0)):
            yield float(time * self.stream.time_base) - self._origin, frame


def _open_video(path: str | Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """An open file and its video stream, ready to be decoded."""
    container = open_container(path)
    try:
        stream, _ = _streams(container)
    except MediaError:
        container.close()
        raise
    # Concealing damage is left out by some ways of threading only: the pictures must not depend on that.
    stream.codec_context.options = {"enable_er": "0"}
    return container, stream


def in_language(streams: list, language: str | None):
    """The first stream in `language`, a code such as "en" or "eng", else the first; None if there is none."""
    short = (language or "").lower().split("-")[0]
    codes = LONG_CODES.get(short, (short,))
    matching = [s for s in streams if short and ((s.language or "") == short or (s.language or "").startswith(codes))]
    return next(iter(matching or streams), None)


def audio_stream(container: av.container.InputContainer, language: str | None) -> av.AudioStream | None:
    """The stream of sound that is read: of those that can be decoded, the one `in_language`."""
    return in_language([stream for stream in container.streams.audio if stream.codec_context], language)


def free_decoders() -> None:
    """Frees files that were decoded and closed; to be called before processes are forked.

    PyAV's objects refer to each other in circles, so they wait for the garbage collector. If that runs in a forked
    process, FFmpeg waits for decoder threads that exist only in the parent: the process hangs, or dies.
    """
    gc.collect()


def stream_origin(container: av.container.InputContainer) -> float:
    """The zero of the file's timeline in the container's own time, seconds."""
    return _origin(*_first_streams(container))


def square_picture(
    frame: av.VideoFrame, image_size: int, pixel_ratio: float = 1.0, turns: list[Image.Transpose] | None = None
) -> Image.Image:
    """A decoded frame as it is meant to be seen, reduced to a small square.

    Args:
        frame: in any pixel format.
        image_size: side of the result, pixels.
        pixel_ratio: width over height of one stored pixel (the sample aspect ratio).
        turns: what makes it upright; by default taken from the frame.

    Returns:
        RGB image: the centre square, scaled with antialiasing and turned upright.
    """
    # Starting threads takes longer than converting a picture of usual size.
    picture = Image.fromarray(frame.reformat(format="rgb24", threads=1).to_ndarray())
    picture = crop_square(picture, image_size, pixel_ratio)
    for turn in _turns(frame) if turns is None else turns:
        picture = picture.transpose(turn)
    return picture


def crop_square(picture: Image.Image, image_size: int, pixel_ratio: float = 1.0) -> Image.Image:
    """The square in the middle of a picture, scaled to `image_size` with antialiasing; other values as above."""
    width, height = picture.size
    # The square is cut from the stored pixels and scaled in one go: whatever the ratio, no picture larger than the
    # stored one comes up.
    side = min(width * pixel_ratio, height)
    across, down = side / pixel_ratio, side
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, min(left + across, width), min(top + down, height))
    return picture.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)


def _turns(frame: av.VideoFrame) -> list[Image.Transpose]:
    """The transpositions that make a stored picture upright, from the display matrix of phones and cameras."""
    for data in frame.side_data:
        if data.type == SideDataType.DISPLAYMATRIX:
            # A point (x, y) is shown at (a x + c y, b x + d y), with y downwards; only signs matter to us.
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            turned = abs(b) > abs(a)
            across, down = (c, b) if turned else (a, d)
            turns = [Image.Transpose.TRANSPOSE] if turned else []
            turns += [Image.Transpose.FLIP_LEFT_RIGHT] if across < 0 else []
            return turns + ([Image.Transpose.FLIP_TOP_BOTTOM] if down < 0 else [])
    return []


def _first_streams(container: av.container.InputContainer):
    """The first real video stream and the first audio stream, None where there is none."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails  # album art is no video
    videos = [s for s in container.streams.video if s.codec_context and not s.disposition & covers]
    audios = [s for s in container.streams.audio if s.codec_context]
    return (videos[0] if videos else None), (audios[0] if audios else None)


def _streams(container: av.container.InputContainer):
    """As `_first_streams`, and refuses what has no usable video stream."""
    names = container.format.name
    if names.endswith("_pipe") or names == "image2":
        raise MediaError("is a still image, not a video")
    video, audio = _first_streams(container)
    if video is None:
        raise NoVideoError("no video stream")
    check_size(video.codec_context.width, video.codec_context.height)
    return video, audio


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    if width * height > max_pixels:
        raise MediaError(f"the picture is too large ({width}x{height}, limit {max_pixels // 10**6} megapixels)")


def _check_times(duration: float, num_packets: int, num_bytes: int) -> None:
    """Refuses files that would give windows without end, however small they are."""
    if duration > min(MAX_SECONDS, MAX_GAP * num_packets, max(3600, num_bytes / MIN_BYTES_PER_SECOND)):
        raise MediaError(
            f"timestamps beyond reason ({num_packets} packets, {num_bytes} bytes in {duration:.0f} seconds)"
        )


def _origin(video, audio) -> float:
    starts = [s.start_time * s.time_base for s in (video, audio) if s is not None and s.start_time is not None]
    return float(min(starts, default=0))


def _frame_seconds(video, first: float, last: float, num_frames: int) -> float:
    if num_frames > 1 and last > first:
        return (last - first) / (num_frames - 1)
    rate = video.average_rate or video.guessed_rate
    return 1 / float(rate) if rate else 0.04


def _packets(container: av.container.InputContainer, stream) -> Iterator[av.Packet]:
    """The packets up to the end of the file or up to where it is damaged beyond reading."""
    for other in container.streams:
        other.discard = Discard.default if other is stream else Discard.all  # not even read from most containers
    try:
        yield from container.demux(stream)
    except (av.FFmpegError, OSError):
        return


def decode_frames(container: av.container.InputContainer, stream) -> Iterator:
    """All frames that can be decoded; a damaged packet costs only itself and what depends on it."""
    for packet in _packets(container, stream):
        try:
            yield from packet.decode()
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, MediaError):
                raise


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()).lower()
