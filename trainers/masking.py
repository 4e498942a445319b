"""Draws which tokens the encoder sees and which the decoder must predict.

Two kinds of batches alternate. *Budget* batches are 4M's (arXiv:2312.06647): so many input and target tokens,
shared out over the modalities by Dirichlet draws, anew for each sample. *Condition* batches look like what
users ask for: whole modalities visible, another one to complete, from nothing or from any part of it as in the steps
of iterative unmasking. Without them the model never meets "all of the image, none of the audio".

Budgets are drawn once per batch, so its samples are equally long and almost nothing is padding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from modeling_nano4m.generation_nano4m import compact


@dataclass
class MaskingCollator:
    """Turns rows with `{modality}_ids` lists into the inputs of `Nano4MModel.forward`.

    Args:
        modalities: as in `Nano4MConfig.modalities`.
        max_inputs, max_targets: largest budgets of input and target tokens per sample.
        input_alpha, target_alpha: Dirichlet concentrations; small values favour one modality at a time.
        condition_probability: share of condition batches.
        unconditional_probability: share of condition batches that show no condition at all, which
            classifier-free guidance needs.
        target_weights: how often each modality is the one to complete; equally often if None.
        seed: of all draws.
    """

    modalities: dict[str, dict]
    max_inputs: int = 128
    max_targets: int = 128
    input_alpha: float = 1.0
    target_alpha: float = 1.0
    condition_probability: float = 0.7
    unconditional_probability: float = 0.1
    target_weights: dict[str, float] | None = None
    seed: int = 0

    def __post_init__(self):
        if self.max_targets < 1 or self.max_inputs < 0:
            raise ValueError(
                f"max_inputs={self.max_inputs} must be at least 0, max_targets={self.max_targets} at least 1"
            )
        self.generator = torch.Generator().manual_seed(self.seed)
        self.names = sorted(self.modalities)
        lengths = [int(np.prod([n for _, n in self.modalities[name]["token_axes"]])) for name in self.names]
        # The flat layout of a clip: all tokens of the first modality, then of the second, and so on.
        self.lengths = lengths
        self.modality_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.position_ids = torch.cat([torch.arange(length) for length in lengths])
        self.left_to_right = torch.tensor(
            [self.modalities[name].get("order", "any") == "left_to_right" for name in self.names]
        )
        # (tokens, modalities), to count tokens per modality with one product.
        self.membership = torch.nn.functional.one_hot(self.modality_ids, len(lengths)).float()
        weights = self.target_weights or {}
        self.weights = torch.tensor([float(weights.get(name, 1.0)) for name in self.names])

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if "draw" in rows[0]:
            seeds = np.random.SeedSequence((self.seed, rows[0]["draw"]))
            self.generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        token_ids, valid = self._layout(rows)
        num_inputs, num_targets = self._budgets(valid)
        # Tokens of a modality are taken in random order: first the inputs, then the targets. Those of a sequence that
        # is to be continued are taken from the front.
        continued = ((num_targets > 0) & self.left_to_right)[:, self.modality_ids]
        score = torch.where(continued, self.position_ids / 1e6, self._uniform(valid.shape))
        rank = self._rank_within_modality(score.masked_fill(~valid, 2.0))
        first, last = num_inputs[:, self.modality_ids], (num_inputs + num_targets)[:, self.modality_ids]
        return {
            **self._side("input", rank < first, token_ids),
            **self._side("target", (rank >= first) & (rank < last), token_ids),
        }

    def _layout(self, rows: list[dict]) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """Ids `(batch, tokens)` in the flat layout, and which of them are real."""
        token_ids = np.zeros((len(rows), sum(self.lengths)), dtype=np.int64)
        valid = np.zeros(token_ids.shape, dtype=bool)
        start = 0
        for name, length in zip(self.names, self.lengths, strict=True):
            for i, row in enumerate(rows):
                ids = row[f"{name}_ids"]
                if len(ids) > length:
                    raise ValueError(f"a row has {len(ids)} {name} ids, the model takes {length}")
                token_ids[i, start : start + len(ids)] = ids
                valid[i, start : start + len(ids)] = True
            start += length
        if not valid.any(1).all():
            raise ValueError("a row has no token of any modality")
        return torch.from_numpy(token_ids), torch.from_numpy(valid)

    def _budgets(self, valid: torch.BoolTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Input and target tokens of each modality, `(batch, modalities)` each; every sample has a target."""
        num_inputs, num_targets = self._dirichlet_budgets(valid)
        if self._uniform(1) < self.condition_probability:
            condition_inputs, condition_targets = self._condition_budgets(valid)
            # A clip that lacks the modality to complete keeps its Dirichlet budgets.
            fits = condition_targets.sum(1, keepdim=True) > 0
            num_inputs = torch.where(fits, condition_inputs, num_inputs)
            num_targets = torch.where(fits, condition_targets, num_targets)
        return num_inputs, num_targets

    def _dirichlet_budgets(self, valid: torch.BoolTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        longest = int(valid.sum(1).max())
        budget = torch.randint(0, min(self.max_inputs, longest - 1) + 1, (), generator=self.generator)
        inputs = self._share_out(valid, budget.clamp_max(valid.sum(1) - 1), self.input_alpha)
        budget = torch.randint(1, self.max_targets + 1, (), generator=self.generator)
        rank = self._rank_within_modality(torch.where(valid, 0.0, 1.0))
        left = valid & (rank >= inputs[:, self.modality_ids])
        return inputs, self._share_out(left, budget.expand(len(valid)), self.target_alpha)

    def _share_out(self, available: torch.BoolTensor, budget: torch.LongTensor, alpha: float) -> torch.LongTensor:
        """Divide each sample's budget over its modalities, never more than there is, never leaving any unspent.

        Tokens are drawn without replacement with weights share / length (Efraimidis and Spirakis 2006), so what
        one modality is too short for goes to the others.
        """
        concentration = torch.full((len(available), len(self.names)), alpha)
        share = torch._sample_dirichlet(concentration, generator=self.generator).clamp_min(1e-6)
        weight = share[:, self.modality_ids] / torch.tensor(self.lengths)[self.modality_ids]
        key = self._uniform(available.shape).clamp_min(1e-12).log() / weight
        rank = key.masked_fill(~available, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
        taken = (rank < budget[:, None]) & available
        return (taken.float() @ self.membership).long()

    def _condition_budgets(self, valid: torch.BoolTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        present = (valid.float() @ self.membership).long()
        weights = self.weights * present.any(0)
        target = int(torch.multinomial(weights, 1, generator=self.generator))
        others = [index for index in range(len(self.names)) if index != target]
        visible = torch.zeros(len(self.names), dtype=torch.bool)
        if others and self._uniform(1) >= self.unconditional_probability:
            subset = int(torch.randint(1, 2 ** len(others), (), generator=self.generator))
            visible[[index for bit, index in enumerate(others) if subset >> bit & 1]] = True
        num_inputs = present * visible
        # What is known of the target: of a grid as in a step of unmasking with the cosine schedule (MaskGIT,
        # arXiv:2202.04200), of a sequence the beginning up to any word.
        progress = self._uniform(1)
        if self.left_to_right[target]:
            known = 1 + (self._uniform(len(valid)) * (present[:, target] - 1)).long()
        else:
            known = ((1 - torch.cos(progress * torch.pi / 2)) * present[:, target]).long()
        known = known.clamp(max=present[:, target] - 1).clamp_min(0)
        num_inputs[:, target] = known
        num_targets = torch.zeros_like(present)
        num_targets[:, target] = (present[:, target] - known).clamp_max(self.max_targets)
        return num_inputs, num_targets

    def _side(self, side: str, chosen: torch.BoolTensor, token_ids: torch.LongTensor) -> dict[str, torch.Tensor]:
        """The chosen tokens of each sample side by side, cut to the longest sample."""
        (ids, modality_ids, position_ids), mask = compact(
            chosen, token_ids, self.modality_ids.expand_as(token_ids), self.position_ids.expand_as(token_ids)
        )
        return {
            f"{side}_ids": ids * mask,
            f"{side}_modality_ids": modality_ids,
            f"{side}_position_ids": position_ids,
            f"{side}_valid_mask": mask,
        }

    def _rank_within_modality(self, score: torch.FloatTensor) -> torch.LongTensor:
        """Place of each token among those of its modality when sorted by score, `(batch, tokens)`."""
        ranks = [part.argsort(dim=1, stable=True).argsort(dim=1) for part in score.split(self.lengths, dim=1)]
        return torch.cat(ranks, dim=1)

    def _uniform(self, shape) -> torch.FloatTensor:
        return torch.rand(shape, generator=self.generator)
