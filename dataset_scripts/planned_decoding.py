"""Decodes the segments of a plan, several at a time where there are processors to spare.

A segment begins at a key frame and depends on nothing before it, so each can have a decoder of its own.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue

import av
import multiprocess  # what `datasets` starts its processes with
from av.video.frame import PictureType

from dataset_scripts.decoding_plan import DECODE, DecodingPlan, Segment, is_entry

MAX_THREADS = 3
MAX_BYTES_AHEAD = 2**28  # of decoded pictures, in all threads


class PlanFailedError(Exception):
    """The decoder gives other pictures than the packets promise."""


def spare_threads() -> int:
    """How many decoders to run: one in a process that is itself one of several workers."""
    if multiprocess.parent_process() is not None or multiprocessing.parent_process() is not None:
        return 1
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, MAX_THREADS)


def planned_frames(
    packets: Iterable[av.Packet],
    plan: DecodingPlan,
    stream: av.VideoStream,
    open_again: Callable[[], tuple[av.container.InputContainer, av.VideoStream]],
) -> Iterator[av.VideoFrame]:
    """The frames at the times of the plan's segments, and no others.

    Args:
        packets: of the stream, from the beginning of the file.
        stream: whose decoder to use.
        open_again: opens the same file once more, for another decoder.

    Raises:
        PlanFailedError: there are signs that all frames decoded forwards could be others.
    """
    num_threads = spare_threads() if len(plan.segments) > 1 else 1
    context = stream.codec_context
    # A picture of the usual kind has a byte and a half for each pixel; one segment more than threads is in memory.
    most_ahead = MAX_BYTES_AHEAD // (num_threads + 1) // max(1, context.width * context.height * 3 // 2)
    packets, read = iter(packets), 0
    containers, decoders, decoding = [], SimpleQueue(), deque()

    def decode_apart(segment: Segment, own: list[av.Packet]) -> list[av.VideoFrame]:
        decoder = decoders.get()
        try:
            return list(_decoded(decoder, own, segment, plan, stream.time_base))
        finally:
            decoders.put(decoder)

    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for segment in plan.segments:
                own = islice(packets, segment.first - read, segment.stop - read)
                read = segment.stop
                if num_threads > 1 and len(segment.times) <= most_ahead:
                    if len(containers) < num_threads:
                        try:
                            container, again = open_again()
                        except ValueError as error:  # too many files are open, or it has gone
                            raise PlanFailedError from error
                        containers.append(container)
                        again.codec_context.thread_count = 1
                        decoders.put(again.codec_context)
                    decoding.append(pool.submit(decode_apart, segment, list(own)))
                    if len(decoding) > num_threads:
                        yield from decoding.popleft().result()
                    continue
                while decoding:
                    yield from decoding.popleft().result()
                yield from _decoded(context, own, segment, plan, stream.time_base)
            while decoding:
                yield from decoding.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            for container in containers:
                container.close()


def _decoded(
    decoder: av.VideoCodecContext, packets: Iterable[av.Packet], segment: Segment, plan: DecodingPlan, time_base
) -> Iterator[av.VideoFrame]:
    """The wanted frames of one segment, whose packets these are."""
    missing, latest = deque(segment.times), None
    size = decoder.width, decoder.height

    def check(frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        nonlocal latest
        for frame in frames:
            if frame.pts is None or frame.time_base != time_base:
                raise PlanFailedError
            if (frame.width, frame.height) != size:
                raise PlanFailedError  # how many may be held depends on it
            if latest is None and segment.first and not (frame.key_frame and frame.pict_type == PictureType.I):
                raise PlanFailedError
            if latest is not None and frame.pts <= latest or missing and frame.pts > missing[0]:
                raise PlanFailedError
            if frame.interlaced_frame and plan.skips_unreferenced:
                raise PlanFailedError  # of its two fields one may be a reference and the other not
            latest = frame.pts
            if missing and frame.pts == missing[0]:
                missing.popleft()
                yield frame

    flush = av.Packet()  # an empty one brings out what the decoder still holds
    flush.time_base = time_base
    try:
        decoder.flush_buffers()
        for place, packet in enumerate(packets, start=segment.first):
            # At the beginning of the file nothing can have come before.
            if place == segment.first > 0 and not is_entry(packet):
                raise PlanFailedError
            unreferenced = plan.skips_unreferenced and plan.uses[place] != DECODE
            decoder.skip_frame = "NONREF" if unreferenced else "DEFAULT"
            yield from check(decoder.decode(packet))
        yield from check(decoder.decode(flush))
    except (av.FFmpegError, ValueError) as error:
        raise PlanFailedError from error
    if missing:
        raise PlanFailedError
