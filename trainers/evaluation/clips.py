"""The clips an evaluation runs on: their media, which of them lack what, their tokens and what they mean."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from dataset_scripts.tokenization import MEDIA_COLUMNS, modalities_of
from modeling_nano4m import Nano4MPipeline
from trainers.evaluation.judges import read, truths_of
from trainers.evaluation.noise import with_noise
from trainers.evaluation.splits import groups_of


@dataclass
class EvaluationClips:
    """Some clips, held in memory, in the modalities of a pipeline.

    media: for each modality one entry per clip: lists of PIL frames, float32 waveforms, strings.
    given: the same as conditions, whose sounds may have noise.
    present: which clips have the modality, bool `(clips,)`.
    groups: clips that share a source are of one group, int `(clips,)`.
    sampling_rate: of the waveforms, Hz; None where sound is no modality.
    seconds: how long each sound lasts before it is filled up with zeros, `(clips,)`; 0 without one.
    token_ids, given_ids: tokens of the true media and of those given, `(clips, num_tokens)`; of no meaning where the
        modality is absent.
    valid_masks: which of them are real, bool `(clips, num_tokens)`.
    scored_masks: which of them likelihoods are of: the real ones that begin before the sound is filled up.
    judge, truths: what reads media, and the attributes of each clip, None of a clip where it does not know; None
        without a judge.
    """

    media: dict[str, list]
    given: dict[str, list]
    present: dict[str, np.ndarray]
    groups: np.ndarray
    sampling_rate: int | None
    seconds: np.ndarray
    token_ids: dict[str, torch.LongTensor] = field(default_factory=dict)
    given_ids: dict[str, torch.LongTensor] = field(default_factory=dict)
    valid_masks: dict[str, torch.BoolTensor] = field(default_factory=dict)
    scored_masks: dict[str, torch.BoolTensor] = field(default_factory=dict)
    judge: object | None = None
    truths: list[dict[str, str] | None] | None = None
    _readings: dict[str, list[dict]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.groups)

    def having(self, modalities: Iterable[str]) -> np.ndarray:
        """Numbers of the clips that have all of these."""
        return np.flatnonzero(np.all([self.present[name] for name in modalities], axis=0))

    def inputs(self, modality: str, clips: Iterable[int]) -> list:
        """Conditions of some clips as the pipeline takes them; sounds say their sampling rate."""
        return self._with_rate(modality, [self.given[modality][i] for i in clips])

    def true_inputs(self, modality: str, clips: Iterable[int]) -> list:
        """As `inputs`, without noise."""
        return self._with_rate(modality, [self.media[modality][i] for i in clips])

    def readings(self, modality: str) -> list[dict]:
        """What the judge reads in the true media of all clips, {} where there is none; each is read once."""
        if modality not in self._readings:
            there = self.having([modality])
            media = [self.media[modality][i] for i in there]
            found = dict(zip(there, read(self.judge, modality, media, self.sampling_rate), strict=True))
            self._readings[modality] = [found.get(i, {}) for i in range(len(self))]
        return self._readings[modality]

    def can_be_judged(self, modality: str) -> bool:
        """Whether there is a judge that reads anything at all in the true media."""
        if self.judge is None:
            return False
        return any(value is not None for got in self.readings(modality) for value in got.values())

    def _with_rate(self, modality: str, media: list) -> list:
        return [(sound, self.sampling_rate) for sound in media] if modality == "audio" else media


def load_clips(
    pipe: Nano4MPipeline, rows, judge=None, batch_size: int = 64, noise_db: float | None = None, seed: int = 0
) -> EvaluationClips:
    """Read prepared rows (`dataset_scripts.video_clips.clip_features`) into memory, and their tokens.

    Args:
        pipe: what it has no tokenizer for is not read.
        rows: of a prepared data set.
        judge: see `trainers.evaluation.judges`; None leaves out what it would tell.
        batch_size: clips tokenized at once.
        noise_db: signal-to-noise ratio of sounds that are conditions, dB; None adds no noise.
        seed: of the noise.

    Raises:
        ValueError: if there is no row, the rows do not fit the tokenizers or the judge, or there shall be noise on
            sounds and the pipeline takes none.
    """
    has_sound = "audio" in pipe.tokenizers
    if not len(rows):
        raise ValueError("there is no clip to evaluate on")
    if noise_db is not None and not has_sound:
        raise ValueError(f"noise_db={noise_db}: the model takes no sound to put noise on")
    present = {name: there for name, there in modalities_of(rows).items() if name in pipe.tokenizers}
    media = {name: media_of(rows, name) for name in present}
    given, rate, seconds = dict(media), None, np.zeros(len(rows))
    if has_sound:
        valid, rate = np.array(rows["audio_valid"]), int(rows["sampling_rate"][0])
        seconds = valid / rate
    if noise_db is not None:
        given["audio"] = [
            with_noise(sound, valid[i], noise_db, (seed, i)) if valid[i] else sound
            for i, sound in enumerate(media["audio"])
        ]
    clips = EvaluationClips(media, given, present, groups_of(rows["video"]), rate, seconds)
    for name, tokenizer in pipe.tokenizers.items():
        ids, mask = _encode(tokenizer, clips, name, clips.true_inputs, batch_size)
        clips.token_ids[name], clips.valid_masks[name] = ids, mask
        clips.scored_masks[name] = mask & sounding(tokenizer.config, clips.seconds) if name == "audio" else mask
        changed = name == "audio" and noise_db is not None
        clips.given_ids[name] = _encode(tokenizer, clips, name, clips.inputs, batch_size)[0] if changed else ids
    if judge is not None:
        clips.judge, clips.truths = judge, truths_of(judge, rows)
    return clips


def media_of(rows, modality: str) -> list:
    """The true media of some rows."""
    return list(rows.with_format("numpy" if modality == "audio" else None)[MEDIA_COLUMNS[modality]])


def sounding(config, seconds: np.ndarray) -> torch.BoolTensor:
    """Which tokens of sounds belong to time steps that begin before the sound ends, `(clips, num_tokens)`.

    Args:
        config: of the audio tokenizer, which has an axis `time`.
        seconds: how long each sound lasts, `(clips,)`.
    """
    axes = config.token_axes
    places = dict(zip(axes, np.unravel_index(np.arange(config.num_tokens), list(axes.values())), strict=True))
    steps, num_steps = places["time"], axes["time"]
    if config.codebook_order == "delayed":  # each codebook is a step behind the one before
        steps, num_steps = steps - places["codebook"], num_steps - axes["codebook"] + 1
    begins = steps * config.clip_seconds / num_steps
    return torch.from_numpy(begins < np.asarray(seconds)[:, None])


@torch.inference_mode()
def _encode(
    tokenizer, clips: EvaluationClips, modality: str, inputs, batch_size: int
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    token_ids = torch.zeros(len(clips), tokenizer.config.num_tokens, dtype=torch.int64)
    valid_mask = torch.zeros_like(token_ids, dtype=torch.bool)
    for part in batches(clips.having([modality]), batch_size):
        ids, mask = tokenizer.encode_media(inputs(modality, part))
        token_ids[part], valid_mask[part] = ids.cpu(), mask.cpu()
    return token_ids, valid_mask


def batches(numbers: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive parts of `numbers` with at most `batch_size` of them."""
    return [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
