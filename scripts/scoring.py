"""Scores of a pipeline on clips it was not trained on, each beside its control.

For every direction, one modality is generated from another. Two kinds of figures come out:

- what judges read from the generated media (only for data with judges, as the made-up world has): the share of
  attributes that are right, the same with conditions shuffled among the clips, and chance;
- the negative log-likelihood of the true tokens, nats per token, given the right condition and a shuffled one;
  their difference is what the model takes from the condition. It needs no judge.
"""

import time

import numpy as np
import torch

from dataset_scripts.tokenization import MEDIA_COLUMNS, present_modalities
from modeling_nano4m import Nano4MPipeline
from tokenizers_4m import MODALITIES
from trainers.metrics import AttributeAccuracy

DIRECTIONS = [(source, target) for source in MODALITIES for target in MODALITIES if source != target]


def media_of(rows, modality: str) -> list:
    """The true media of some rows of clips, as the pipeline takes and returns them."""
    return list(rows.with_format("numpy" if modality == "audio" else None)[MEDIA_COLUMNS[modality]])


def usable(rows):
    """Rows that have all three modalities."""
    present = present_modalities({"text": rows["text"], "audio_valid": rows["audio_valid"]})
    return rows.select(np.flatnonzero(np.all(list(present.values()), axis=0)))


def score_directions(pipe: Nano4MPipeline, rows, judge=None, truths=None, **sampling) -> tuple[dict, dict]:
    """Generate in all six directions.

    Args:
        rows: clips with all three modalities.
        judge: `judge(modality, value, sampling_rate) -> dict` of attributes, or None.
        truths: the attributes of each row.
        sampling: for the pipeline: `num_inference_steps`, `temperature`, ...

    Returns:
        scores by direction ("image_to_audio"), and the generated media by direction.
    """
    media = {name: media_of(rows, name) for name in MODALITIES}
    encoded = {name: encoded_clips(pipe, name, media[name]) for name in MODALITIES}
    if judge is not None:
        values = [len(set(truth[attribute] for truth in truths)) for attribute in truths[0]]
        chance = float(np.mean([1 / number for number in values]))
        rate = int(rows[0]["sampling_rate"])
        real = {name: judged(judge, name, media[name], truths, rate) for name in MODALITIES}
    shift = np.roll(np.arange(len(rows)), max(1, len(rows) // 3))
    scores, generated = {}, {}
    for source, target in DIRECTIONS:
        name = f"{source}_to_{target}"
        started = time.perf_counter()
        output = pipe(**{source: media[source]}, target=target, seed=0, **sampling)
        seconds = (time.perf_counter() - started) / len(rows)
        generated[name] = output[f"{target}s"]
        scores[name] = {"seconds_per_sample": round(seconds, 4), **nats(pipe, encoded, source, target, shift)}
        if judge is not None:
            shuffled = pipe(**{source: [media[source][i] for i in shift]}, target=target, seed=0, **sampling)
            scores[name] |= {
                "accuracy": judged(judge, target, generated[name], truths, output.sampling_rate),
                "shuffled": judged(judge, target, shuffled[f"{target}s"], truths, output.sampling_rate),
                "chance": chance,
                "judge_on_real": real[target],
            }
    return scores, generated


def judged(judge, modality: str, media: list, truths: list[dict], sampling_rate: int | None) -> float:
    """Share of attributes that the judge reads as they truly are."""
    read = [judge(modality, value, sampling_rate) for value in media]
    result = AttributeAccuracy().compute(
        predictions=[
            [found[attribute] or "" for attribute in truth] for found, truth in zip(read, truths, strict=True)
        ],
        references=[list(truth.values()) for truth in truths],
    )
    return result["accuracy"]


@torch.inference_mode()
def encoded_clips(pipe: Nano4MPipeline, modality: str, media: list) -> dict[str, torch.Tensor]:
    """The true tokens of one modality as the model's `forward` takes them, `(clips, num_tokens)` each."""
    token_ids, valid_mask = pipe.tokenizers[modality].encode_media(media)
    return {
        "ids": token_ids,
        "modality_ids": torch.full_like(token_ids, pipe.model.config.modality_id(modality)),
        "position_ids": torch.arange(token_ids.shape[1], device=token_ids.device).expand(len(token_ids), -1),
        "valid_mask": valid_mask,
    }


@torch.inference_mode()
def nats(pipe: Nano4MPipeline, encoded: dict, source: str, target: str, shift: np.ndarray) -> dict[str, float]:
    """Mean negative log-likelihood of the true target tokens, nats per token, all asked for at once."""
    targets = {f"target_{key}": value for key, value in encoded[target].items()}
    result = {}
    for label, order in (("nats", np.arange(len(shift))), ("nats_shuffled", shift)):
        inputs = {f"input_{key}": value[torch.from_numpy(order)] for key, value in encoded[source].items()}
        result[label] = round(float(pipe.model(**inputs, **targets).losses[target]), 4)
    return result
