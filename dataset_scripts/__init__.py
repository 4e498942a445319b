"""Dataset builders (folders of videos, media from anywhere, the made-up world, digits) and tokenization by map."""

from dataset_scripts.av_digits import AVDigits, AVDigitsConfig
from dataset_scripts.media_rows import MediaRows, MediaRowsConfig
from dataset_scripts.shapes_world import ShapesWorld, ShapesWorldConfig
from dataset_scripts.video_clips import VideoClips, VideoClipsConfig

__all__ = [
    "AVDigits",
    "AVDigitsConfig",
    "MediaRows",
    "MediaRowsConfig",
    "ShapesWorld",
    "ShapesWorldConfig",
    "VideoClips",
    "VideoClipsConfig",
]
