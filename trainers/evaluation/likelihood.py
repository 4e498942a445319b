"""How likely the model finds true tokens, with and without their conditions."""

from collections.abc import Iterable

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_nano4m import Nano4MPipeline
from trainers.evaluation.bootstrap import estimate, mean
from trainers.evaluation.clips import EvaluationClips, batches


def log_probabilities(
    pipe: Nano4MPipeline,
    clips: EvaluationClips,
    conditions: Iterable[str],
    target: str,
    condition_clips: np.ndarray,
    target_clips: np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """Log-probability of generating the target tokens of some clips from the conditions of others.

    All are generated in the same random order of tokens, so they can be compared; see `Nano4MModel.score`. Of sounds
    only tokens before the filling up with zeros count (`scored_masks`): silence is easily foreseen.

    Args:
        conditions: modalities that are given; none for an unconditional probability.
        condition_clips, target_clips: numbers of clips, pair by pair, `(pairs,)`.

    Returns:
        float64 `(pairs,)`, nats.
    """
    scores = np.zeros(len(target_clips))
    parts = batches(np.arange(len(target_clips)), batch_size)
    title = f"score {target}"
    for part in tqdm(parts, desc=title, leave=False, disable=len(parts) < 20):
        given = {name: torch.from_numpy(condition_clips[part]) for name in conditions}
        asked = torch.from_numpy(target_clips[part])
        masks = {name: clips.valid_masks[name][numbers] for name, numbers in given.items()}
        masks[target] = clips.scored_masks[target][asked]
        scores[part] = pipe.model.score(
            {name: clips.given_ids[name][numbers] for name, numbers in given.items()},
            {target: clips.token_ids[target][asked]},
            masks,
            seed=[seed] * len(part),
        ).cpu()
    return scores


def num_scored_tokens(pipe: Nano4MPipeline, clips: EvaluationClips, target: str, numbers: np.ndarray) -> np.ndarray:
    """How many tokens are scored: `scored_masks` but for a begin token, which is always given."""
    counted = clips.scored_masks[target][numbers].clone()
    if pipe.model.config.modalities[target].get("bos_token_id") is not None:
        counted[:, 0] = False
    return counted.sum(1).numpy()


def likelihood(
    pipe: Nano4MPipeline,
    clips: EvaluationClips,
    conditions: tuple[str, ...],
    target: str,
    numbers: np.ndarray,
    donors: np.ndarray | None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """Negative log-likelihood of true tokens, nats per token, and what the conditions tell of them.

    Args:
        numbers: the clips.
        donors: for each of them another one, whose conditions are given instead as a control; None if there is none.

    Returns:
        `nats`, and with conditions `nats_unconditional`, `nats_shuffled` (if there are donors), `information`, the
        unconditional nats less the conditional ones, and `information_per_clip`.
    """
    tokens, groups = num_scored_tokens(pipe, clips, target, numbers), clips.groups[numbers]

    def nats(names, givers):
        return -log_probabilities(pipe, clips, names, target, givers, numbers, batch_size, seed)

    conditional = nats(conditions, numbers)
    result = estimate("nats", conditional, tokens, groups, seed)
    if conditions:
        unconditional = nats((), numbers)
        result["nats_unconditional"] = mean(unconditional, tokens)
        if donors is not None:
            result["nats_shuffled"] = mean(nats(conditions, donors), tokens)
        result |= estimate("information", unconditional - conditional, tokens, groups, seed)
        result["information_per_clip"] = mean(unconditional - conditional)
    return result
