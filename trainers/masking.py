"""Draws which tokens the encoder sees and which the decoder must predict.

Two kinds of batches alternate. *Budget* batches are 4M's (arXiv:2312.06647): so many input and target tokens,
shared out over the modalities by Dirichlet draws, anew for each sample. *Condition* batches look like what
users ask for: whole modalities visible, another one to complete, from nothing or from any part of it as in the steps
of iterative unmasking. Without them the model never meets "all of the image, none of the audio".

Budgets are drawn once per batch, so its samples are equally long and almost nothing is padding.

A token that begins every sequence is nothing to predict. It is given, beyond the budgets, wherever anything of its
sequence is an input or a target, as it is in generation.

Each sample has an order of the tokens of each modality: first come the inputs, then the targets, then the rest. So a
batch is described by three small arrays, `(batch, modalities)`: how many inputs, how many targets, in which order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_nano4m.configuration_nano4m import is_whole
from trainers.mask_draws import Alphas, alpha_mixture, random_order, share_out, span_order
from trainers.token_rows import TokenRows


@dataclass
class MaskingCollator:
    """Turns rows with `{modality}_ids` lists into the inputs of `Nano4MModel.forward`.

    Args:
        modalities: as in `Nano4MConfig.modalities`.
        max_inputs, max_targets: largest budgets of input and target tokens per sample. Condition batches keep to
            `max_targets` but show whole modalities, whatever `max_inputs` is. Begin tokens do not count.
        input_alphas, target_alphas: Dirichlet concentrations; small values favour one modality at a time. A number
            for all modalities; `{modality: number}`, where one that is not named gets 1; or a list of these, of which
            each sample draws one, the same of both lists (4M's mixture of masking strategies).
        alpha_weights: how often each of the list is drawn; equally often if None.
        condition_probability: share of condition batches.
        unconditional_probability: share of condition batches that show no condition at all, which
            classifier-free guidance needs.
        target_weights: how often each modality is the one to complete; equally often if None.
        min_inputs, min_targets: smallest budgets, as far as a sample has so many tokens.
        budgets_per_sample: draw budgets for each sample, as 4M does, not for each batch. Up to half of the batch is
            padding then.
        mean_span_length: in budget batches, inputs and targets of left-to-right modalities are runs of about so many
            tokens (as in T5, arXiv:1910.10683). If None, targets continue the inputs, which are the beginning.
        seed: of all draws, at least 0. Rows with a column `draw` (numbers unique per drawn sample) make a batch
            depend on nothing but the seed and its rows, whichever worker process puts it together.
    """

    modalities: dict[str, dict]
    max_inputs: int = 128
    max_targets: int = 128
    input_alphas: Alphas | list[Alphas] = 1.0
    target_alphas: Alphas | list[Alphas] = 1.0
    alpha_weights: list[float] | None = None
    condition_probability: float = 0.7
    unconditional_probability: float = 0.1
    target_weights: dict[str, float] | None = None
    min_inputs: int = 0
    min_targets: int = 1
    budgets_per_sample: bool = False
    mean_span_length: float | None = None
    seed: int = 0

    def __post_init__(self):
        self.names = sorted(self.modalities)
        self.num_tokens = np.array(
            [int(np.prod(list(dict(self.modalities[name]["token_axes"]).values()))) for name in self.names]
        )
        self.vocab_sizes = {name: self.modalities[name]["vocab_size"] for name in self.names}
        self.left_to_right = [self.modalities[name].get("order", "any") == "left_to_right" for name in self.names]
        self.has_bos = np.array([self.modalities[name].get("bos_token_id") is not None for name in self.names])
        self._check_options()
        mixture = {"input_alphas": self.input_alphas, "target_alphas": self.target_alphas}
        self.alphas, self.alpha_probabilities = alpha_mixture(self.names, mixture, self.alpha_weights)
        self.weights = np.array([float((self.target_weights or {}).get(name, 1.0)) for name in self.names])
        self.generator = np.random.default_rng(self.seed)

    def __call__(self, rows: list[dict] | Mapping | pa.Table) -> dict[str, torch.Tensor]:
        """Mask a batch of rows, in any form that `TokenRows.read` takes.

        Returns:
            `{side}_ids`, `{side}_modality_ids`, `{side}_position_ids` (int64) and `{side}_valid_mask` (bool, True =
            real), `(batch, inputs)` or `(batch, targets)` each, for the sides `input` and `target`. No token is both,
            every sample has a target, and the order of the tokens means nothing. And `input_steps`, int64
            `(batch, inputs)`: an input is to see those whose step is not later than its own. 0 for what is given;
            1, 2, 3, ... for the known part of the modality to complete, in the order generation would have fixed it; a
            token that begins every sequence is given.

        Raises:
            ValueError: for rows that do not fit the modalities.
        """
        tokens = TokenRows.read(rows, dict(zip(self.names, self.num_tokens, strict=True)), self.vocab_sizes)
        if tokens.draw is not None:
            self.generator = np.random.default_rng([self.seed, tokens.draw])
        # Where there is nothing behind the begin token, it is asked for, for a sample must have a target.
        begun = self.has_bos & (tokens.lengths > 1)
        # The samples of a condition batch complete one modality; those that lack it are masked as in budget batches.
        completed, num_inputs, num_targets = None, *np.zeros((2, *tokens.lengths.shape), dtype=np.int64)
        completing = np.zeros(len(tokens.lengths), dtype=bool)
        if self.generator.random() < self.condition_probability and (self.weights * tokens.lengths).any():
            completed, num_inputs, num_targets = self._condition_budgets(tokens.lengths)
            completing = tokens.lengths[:, completed] > 0
        if not completing.all():
            others = ~completing
            num_inputs[others], num_targets[others] = self._dirichlet_budgets((tokens.lengths - begun)[others])
            num_inputs[others] += (begun & (num_inputs + num_targets > 0))[others]
        order = [
            self._order(index, tokens.lengths[:, index], num_targets[:, index] > 0, completing, index == completed)
            for index in range(len(self.names))
        ]
        order = np.concatenate(order, axis=1)
        stepped = completing[:, None] & (np.arange(len(self.names)) == completed)
        batch = {
            **self._side("input", tokens, order, np.zeros_like(num_inputs), num_inputs, stepped),
            **self._side("target", tokens, order, num_inputs, num_targets),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _condition_budgets(self, lengths: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """The modality to complete, and inputs and targets of each modality, `(batch, modalities)` each."""
        draw = self.generator
        weights = self.weights * lengths.any(axis=0)
        completed = int(draw.choice(len(weights), p=weights / weights.sum()))
        others = np.delete(np.arange(len(weights)), completed)
        num_inputs, num_targets = np.zeros((2, *lengths.shape), dtype=np.int64)
        if len(others) and draw.random() >= self.unconditional_probability:
            subset = draw.integers(1, 2 ** len(others))
            visible = others[(subset >> np.arange(len(others))) & 1 == 1]
            num_inputs[:, visible] = lengths[:, visible]
        # What is known of it: of a grid as in a step of unmasking with the cosine schedule (MaskGIT,
        # arXiv:2202.04200), of a sequence the beginning up to any word. About the same part in each sample, so that
        # they are equally long.
        present, progress = lengths[:, completed], draw.random()
        if self.left_to_right[completed]:
            begin = int(self.has_bos[completed])
            known = begin + (progress * (present - begin)).astype(np.int64)
        else:
            known = ((1 - np.cos(progress * np.pi / 2)) * present).astype(np.int64)
        known = np.clip(known, 0, np.maximum(present - 1, 0))
        num_inputs[:, completed] = known
        num_targets[:, completed] = np.minimum(present - known, self.max_targets)
        return completed, num_inputs, num_targets

    def _dirichlet_budgets(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of each modality, `(batch, modalities)` each; every sample has a target."""
        draw = self.generator
        present = lengths.sum(axis=1)
        size = len(lengths) if self.budgets_per_sample else None
        most = np.minimum(self.max_inputs, (present if self.budgets_per_sample else present.max()) - 1)
        budget = draw.integers(np.minimum(self.min_inputs, most), most + 1, size)
        alphas = self.alphas[draw.choice(len(self.alphas), len(lengths), p=self.alpha_probabilities)]
        num_inputs = share_out(lengths, np.minimum(budget, present - 1), alphas[:, 0], draw)
        left = lengths - num_inputs
        budget = np.minimum(draw.integers(self.min_targets, self.max_targets + 1, size), left.sum(axis=1))
        return num_inputs, share_out(left, budget, alphas[:, 1], draw)

    def _order(
        self, index: int, present: np.ndarray, has_targets: np.ndarray, completing: np.ndarray, is_completed: bool
    ) -> np.ndarray:
        """The order in which the tokens of a modality are taken, `(batch, tokens of it)` positions."""
        length = self.num_tokens[index]
        places = np.arange(length, dtype=np.uint32)
        sequence = self.left_to_right[index]
        spans = sequence and self.mean_span_length is not None
        # A sequence to be continued is taken from the front; of a condition all is taken, in whatever order.
        if sequence:
            from_front = completing if spans else completing | has_targets
        else:
            from_front = completing & (not is_completed)
        if from_front.all():
            return np.broadcast_to(places, (len(present), length))
        begin = int(self.has_bos[index])
        present, length = np.maximum(present - begin, 0), length - begin
        if spans:
            order = span_order(present, length, self.mean_span_length, self.generator)
        else:
            order = random_order(present, length, self.generator)
        if begin:  # comes first in any order
            order = np.pad(order + 1, ((0, 0), (1, 0)))
        order[from_front] = places
        return order

    def _side(
        self,
        side: str,
        tokens: TokenRows,
        order: np.ndarray,
        first: np.ndarray,
        number: np.ndarray,
        stepped: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """For each modality, `number` tokens from `first` on in the given order, side by side.

        With steps if it is said which samples and modalities have them, `stepped` (bool, `(batch, modalities)`).
        Everything is worked out for the real tokens end to end, then spread over `(batch, longest sample)`.
        """
        size, num_modalities = number.shape
        repeats = number.ravel()

        def for_each_token(per_modality: np.ndarray) -> np.ndarray:
            return np.repeat(per_modality.ravel(), repeats)

        ends = repeats.cumsum()
        rank = np.arange(ends[-1]) - for_each_token(ends - repeats)
        begins = np.arange(size)[:, None] * order.shape[1] + self.num_tokens.cumsum() - self.num_tokens + first
        position = order.ravel()[rank + for_each_token(begins)]
        values = {
            "ids": tokens.values[position + for_each_token(tokens.starts)],
            "modality_ids": for_each_token(np.tile(np.arange(num_modalities), size)),
            "position_ids": position,
        }
        if stepped is not None:
            first_steps = np.where(self.has_bos, 0, 1)
            values["steps"] = (rank + for_each_token(np.tile(first_steps, (size, 1)))) * for_each_token(stepped)
        total = number.sum(axis=1)
        mask = np.arange(total.max()) < total[:, None]
        spread = {f"{side}_{name}": np.zeros(mask.shape, dtype=np.int64) for name in values}
        for array, real in zip(spread.values(), values.values(), strict=True):
            array[mask] = real
        return {**spread, f"{side}_valid_mask": mask}

    def _check_options(self) -> None:
        for field in ("min_inputs", "max_inputs", "min_targets", "max_targets", "seed"):
            if not is_whole(getattr(self, field), 0):
                raise ValueError(f"{field}={getattr(self, field)} must be a whole number of at least 0")
        if self.min_inputs > self.max_inputs:
            raise ValueError(f"min_inputs={self.min_inputs} must lie between 0 and max_inputs={self.max_inputs}")
        if not 1 <= self.min_targets <= self.max_targets:
            raise ValueError(f"min_targets={self.min_targets} must lie between 1 and max_targets={self.max_targets}")
        for field in ("condition_probability", "unconditional_probability"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)} must lie between 0 and 1")
        if self.mean_span_length is not None and not 1 <= self.mean_span_length < np.inf:
            raise ValueError(f"mean_span_length={self.mean_span_length} must be finite and at least 1")
        weights = self.target_weights or {}
        for name in weights:
            if name not in self.names:
                raise ValueError(f"target_weights: unknown modality {name!r}; there are {', '.join(self.names)}")
        finite = all(0 <= weight < np.inf for weight in weights.values())
        if not finite or not any(weights.get(name, 1.0) > 0 for name in self.names):
            raise ValueError(f"target_weights={weights} must be finite, at least 0, and above 0 for one modality")


class EvaluationCollator:
    """Masks every row by itself and pads them together.

    A `MaskingCollator` draws one plan for a batch, and a small evaluation has few batches: some modality would never
    be a target, and losses would depend on the batch size. Here each `draw` has a mask of its own.

    Args:
        collator: masks each row.
        keep_draws: whether the batch has the `draw` of the rows, too, if they have one, `(batch,)` int64.
    """

    def __init__(self, collator: MaskingCollator, keep_draws: bool = False):
        self.collator = collator
        self.keep_draws = keep_draws

    def __call__(self, rows: list[dict] | pa.Table) -> dict[str, torch.Tensor]:
        """As `MaskingCollator.__call__`, of a list of rows or an Arrow table."""
        samples = [self.collator(rows[i : i + 1]) for i in range(len(rows))]
        batch = {name: pad_sequence([s[name][0] for s in samples], batch_first=True) for name in samples[0]}
        is_table = isinstance(rows, pa.Table)
        if self.keep_draws and "draw" in (rows.column_names if is_table else rows[0]):
            draws = rows["draw"].to_pylist() if is_table else [row["draw"] for row in rows]
            batch["draw"] = torch.tensor(draws)
        return batch


def real_token_share(batch: Mapping[str, torch.Tensor]) -> float:
    """Part of the places in a masked batch, inputs and targets together, that holds tokens and no padding."""
    masks = [batch[f"{side}_valid_mask"] for side in ("input", "target")]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
