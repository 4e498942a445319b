"""Dataset builders (folders of videos, the made-up world, digits) and tokenization by map."""

from dataset_scripts.av_digits import AVDigits, AVDigitsConfig
from dataset_scripts.shapes_world import ShapesWorld, ShapesWorldConfig
from dataset_scripts.video_clips import VideoClips, VideoClipsConfig

__all__ = ["AVDigits", "AVDigitsConfig", "ShapesWorld", "ShapesWorldConfig", "VideoClips", "VideoClipsConfig"]
