"""What a video decoder has to do for some pictures only: which packets to decode, which only as references, which not.

A picture of a video depends on those before it, back to a key frame.  Clips want a few pictures a second, so that much
of a file need not be decoded for them: what comes after the last wanted picture before a key frame, and, between key
frames, the pictures that no other one refers to.  The plan is made from the times of all packets, which cost little to
read, before anything is decoded.  Packets that are not needed are passed over while reading and nothing is sought in
the file, because where a container's search lands depends on its index.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

TIE = 1e-6  # seconds; a frame that starts exactly at the asked time counts as shown in spite of rounding

# Codecs whose key frames are entry points by definition, so that a plan can be made.
PLANNABLE = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mjpeg"})

SKIP, REFERENCE, DECODE = range(3)


@dataclass
class PacketIndex:
    """The packets of a video stream in the order of the file.

    Attributes:
        codec: name of the decoder.
        times: presentation times in units of the stream's time base.
        key_frames: which packets claim that decoding can begin there.
        shown: which packets hold a picture that is meant to be seen.
        complete: nothing was missing or damaged, as far as the container tells, and the decoder's settings never
            change.
    """

    codec: str
    times: list[int] = field(default_factory=list)
    key_frames: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    complete: bool = True

    def append(self, packet) -> None:
        """Notes the next packet, an `av.Packet`; the empty one at the end of a stream does not count."""
        if not packet.size and packet.dts is None:
            return
        is_good = packet.pts is not None and not packet.is_corrupt and not packet.has_sidedata("new_extradata")
        self.complete = self.complete and is_good
        self.times.append(packet.pts or 0)
        self.key_frames.append(packet.is_keyframe)
        self.shown.append(not packet.is_discard)


@dataclass(frozen=True)
class Segment:
    """Packets that can be decoded without those before them: number of the first one, of the one behind the last, and
    the presentation times of the pictures that must come out, ascending."""

    first: int
    stop: int
    times: list[int]


@dataclass(frozen=True)
class DecodingPlan:
    """What to do with each packet.

    Attributes:
        uses: (packets,) uint8: SKIP, REFERENCE (only if others may refer to it) or DECODE.
        segments: what to decode, in the order of the file; what lies between them is passed over.
        followers: presentation times of the pictures that follow on those that come out, and need not come out
            themselves, ascending: they tell until when the others are shown.
        skips_unreferenced: decoding as REFERENCE may leave out pictures, and can be told from the stream.
    """

    uses: np.ndarray
    segments: list[Segment]
    followers: list[int]
    skips_unreferenced: bool

    @classmethod
    def make(
        cls, index: PacketIndex, wanted: Sequence[float], seconds_per_unit: float, origin: float
    ) -> "DecodingPlan | None":
        """The plan for the pictures on display at some times, or None if all of the file has to be decoded for them.

        Args:
            index: of all packets.
            wanted: seconds on the timeline of the file.
            seconds_per_unit: time base of the stream.
            origin: where the timeline of the file begins, seconds.
        """
        times, key_frames = np.array(index.times, dtype=np.int64), np.array(index.key_frames, dtype=bool)
        shown = np.flatnonzero(index.shown)
        if index.codec not in PLANNABLE or not index.complete or not len(shown) or not len(wanted):
            return None
        order = shown[np.argsort(times[shown], kind="stable")]
        if (np.diff(times[order]) <= 0).any():
            return None  # two pictures at one time
        places = np.searchsorted(times[order] * seconds_per_unit - origin, np.asarray(wanted) + TIE, side="right") - 1
        places = np.unique(places.clip(0))
        chosen = order[places]
        following = np.setdiff1d(places + 1, places)
        followers = times[order[following[following < len(order)]]]

        # Decoding can begin at a key frame if all that comes before it in the file is also shown before it, and all
        # that comes after it, after it; pictures on its other side may depend on both sides.
        latest_before = np.maximum.accumulate(np.concatenate([[times[0] - 1], times[:-1]]))
        earliest_after = np.minimum.accumulate(np.concatenate([times[1:], [times.max() + 1]])[::-1])[::-1]
        entries = np.flatnonzero(key_frames & (latest_before < times) & (times < earliest_after))
        if not len(entries) or entries[0] > 0:
            return None
        starts = entries[np.searchsorted(entries, chosen, side="right") - 1]
        depth = np.zeros(len(times) + 1, dtype=np.int64)
        np.add.at(depth, starts, 1)
        np.add.at(depth, chosen + 1, -1)
        uses = np.where(depth[:-1].cumsum() > 0, REFERENCE, SKIP).astype(np.uint8)
        uses[chosen] = DECODE
        segments = []
        for first in np.unique(starts):
            own = chosen[starts == first]
            segments.append(Segment(int(first), int(own.max()) + 1, np.sort(times[own]).tolist()))
        # Of the decoders, H.264's tells reliably which pictures others refer to.
        return cls(uses, segments, followers.tolist(), index.codec == "h264")


def is_entry(packet) -> bool:
    """Whether decoding can begin at a packet that is said to hold a key frame, an `av.Packet`.

    In H.264 files the word is also used for pictures that begin a slow recovery, or whose followers refer to what was
    before them; only an IDR picture (ITU-T H.264, 7.4.1.2.4) forbids that.
    """
    context = packet.stream.codec_context
    if context.name != "h264":
        return packet.is_keyframe
    data, extradata = bytes(packet), context.extradata or b""
    if extradata[:1] == b"\1" and len(extradata) > 4:  # units with their lengths, as in MP4 and Matroska
        size, place, types = (extradata[4] & 3) + 1, 0, []
        while place + size < len(data):
            types.append(data[place + size] & 31)
            place += size + int.from_bytes(data[place : place + size], "big")
    else:
        types = [match[1][0] & 31 for match in re.finditer(rb"\x00\x00\x01(.)", data, re.DOTALL)]
    pictures = [kind for kind in types if 1 <= kind <= 5]
    return bool(pictures) and set(pictures) == {5}
