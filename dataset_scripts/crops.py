"""Aligned crops: several views of one clip that are alike in all of its modalities.

Crop 0 is the clip itself, or the middle of it. Every other one shows a box of the picture, the same in all frames
(random resized crop, Szegedy et al. 2015, arXiv:1409.4842), and, if clips are longer than what the tokenizers take,
a window of time that frames, sound and text share; a text stays whole where it is not known when it is said. Nothing
is mirrored, for texts say left and right.

Where box and window lie follows from the name of the clip and the number of the crop alone.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataset_scripts.transcripts import Transcript

AREAS = (0.5, 1.0)  # of the box, as parts of the picture's
ASPECTS = (3 / 4, 4 / 3)  # width to height of the box, relative to the picture's


@dataclass(frozen=True)
class Crop:
    """Where a crop lies.

    Args:
        box: left, top, right and bottom, as parts of the picture's width and height.
        start: of the window of time, as a part of what can be left out; 0 is the earliest, 1 the latest.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    start: float = 0.5

    @classmethod
    def draw(cls, clip_id: str, number: int) -> "Crop":
        """Crop `number` of the clip of that name."""
        if number == 0:
            return cls()
        digest = hashlib.sha256(f"{clip_id}/{number}".encode()).digest()
        generator = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
        area = generator.uniform(*AREAS)
        aspect = np.exp(generator.uniform(*np.log(ASPECTS)))
        width, height = min(1.0, (area * aspect) ** 0.5), min(1.0, (area / aspect) ** 0.5)
        left, top = generator.uniform(0, [1 - width, 1 - height])
        box = (float(left), float(top), float(left + width), float(top + height))
        return cls(box, float(generator.uniform()))

    def first_frame(self, spare: int) -> int:
        """Where the window begins in a clip that is so many frames longer."""
        return min(int(self.start * (spare + 1)), spare)

    def frames(self, frames: np.ndarray, spare: int = 0) -> np.ndarray:
        """The window and box of frames `(length, height, width, 3)` uint8, enlarged to the same size.

        Returns:
            `(length - spare, height, width, 3)` uint8.
        """
        first = self.first_frame(spare)
        frames = np.asarray(frames)[first : len(frames) - spare + first]
        if self.box == Crop.box:
            return frames
        height, width = frames.shape[1:3]
        box = tuple(part * side for part, side in zip(self.box, (width, height) * 2, strict=True))
        cut = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box) for frame in frames]
        return np.stack([np.asarray(frame) for frame in cut])

    def samples(
        self, samples: np.ndarray, num_samples: int, spare: int = 0, samples_per_frame: float = 0.0
    ) -> np.ndarray:
        """The sound of the same window: `num_samples` samples, from where its first frame begins.

        Args:
            samples_per_frame: from one frame of the clip to the next. Of a video that ends within the clip the frames
                are closer together, while its sound is filled up with silence.
        """
        first = round(samples_per_frame * self.first_frame(spare)) if spare else 0
        first = min(first, max(0, len(samples) - num_samples))
        return samples[first : first + num_samples]

    def text(self, text: str, cues: Iterable[dict], num_frames: int, spare: int, seconds_per_frame: float) -> str:
        """What is said in the same window of `num_frames`, of the columns `text` and `cues` of a clip."""
        first = self.first_frame(spare)
        transcript = Transcript.from_columns(text, cues)
        return transcript.cut(first * seconds_per_frame, (first + num_frames) * seconds_per_frame).text
