"""The clips an evaluation runs on: their media, which of them lack what, their tokens and what they mean."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from dataset_scripts.tokenization import MEDIA_COLUMNS, present_modalities
from modeling_nano4m import Nano4MPipeline
from trainers.evaluation.judges import truths_of


@dataclass
class EvaluationClips:
    """Some clips, held in memory.

    media: for each modality one entry per clip: lists of PIL frames, float32 waveforms, strings.
    present: which clips have the modality, bool `(clips,)`.
    token_ids, valid_masks: their tokens, `(clips, num_tokens)`; of no meaning where the modality is absent.
    sampling_rate: of the waveforms, Hz.
    judge, truths: what reads media, and the attributes of each clip; None without one.
    """

    media: dict[str, list]
    present: dict[str, np.ndarray]
    token_ids: dict[str, torch.LongTensor]
    valid_masks: dict[str, torch.BoolTensor]
    sampling_rate: int
    judge: object | None = None
    truths: list[dict[str, str]] | None = None

    def __len__(self) -> int:
        return len(self.media["text"])

    def having(self, modalities: Iterable[str]) -> np.ndarray:
        """Numbers of the clips that have all of these."""
        return np.flatnonzero(np.all([self.present[name] for name in modalities], axis=0))

    def inputs(self, modality: str, clips: Iterable[int]) -> list:
        """Media of some clips as the pipeline takes them; sounds say their sampling rate."""
        media = [self.media[modality][i] for i in clips]
        return [(sound, self.sampling_rate) for sound in media] if modality == "audio" else media


def load_clips(pipe: Nano4MPipeline, rows, judge=None, batch_size: int = 64) -> EvaluationClips:
    """Read prepared rows (`dataset_scripts.video_clips.clip_features`) into memory, and their tokens.

    Args:
        rows: of a prepared data set.
        judge: see `trainers.evaluation.judges`; None leaves out what it would tell.
        batch_size: clips tokenized at once.

    Raises:
        ValueError: if there is no row, or the rows do not fit the tokenizers or the judge.
    """
    if not len(rows):
        raise ValueError("there is no clip to evaluate on")
    media = {name: media_of(rows, name) for name in MEDIA_COLUMNS}
    small = {name: rows[name] for name in rows.column_names if name not in MEDIA_COLUMNS.values()}
    present = present_modalities({**small, **{MEDIA_COLUMNS[name]: values for name, values in media.items()}})
    clips = EvaluationClips(media, present, {}, {}, int(rows[0]["sampling_rate"]))
    for name, tokenizer in pipe.tokenizers.items():
        clips.token_ids[name], clips.valid_masks[name] = _encode(tokenizer, clips, name, batch_size)
    if judge is not None:
        clips.judge, clips.truths = judge, truths_of(judge, rows)
    return clips


def media_of(rows, modality: str) -> list:
    """The true media of some rows."""
    return list(rows.with_format("numpy" if modality == "audio" else None)[MEDIA_COLUMNS[modality]])


@torch.inference_mode()
def _encode(
    tokenizer, clips: EvaluationClips, modality: str, batch_size: int
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    token_ids = torch.zeros(len(clips), tokenizer.config.num_tokens, dtype=torch.int64)
    valid_mask = torch.zeros_like(token_ids, dtype=torch.bool)
    for part in batches(clips.having([modality]), batch_size):
        ids, mask = tokenizer.encode_media(clips.inputs(modality, part))
        token_ids[part], valid_mask[part] = ids.cpu(), mask.cpu()
    return token_ids, valid_mask


def batches(numbers: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive parts of `numbers` with at most `batch_size` of them."""
    return [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
