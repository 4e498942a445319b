"""Dataset builders (folders of videos, the made-up world) and tokenization by map."""

from dataset_scripts.shapes_world import ShapesWorld, ShapesWorldConfig
from dataset_scripts.video_clips import VideoClips, VideoClipsConfig

__all__ = ["ShapesWorld", "ShapesWorldConfig", "VideoClips", "VideoClipsConfig"]
