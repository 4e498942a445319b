"""Any-to-any generation by iterative unmasking.

Starting from the tokens of the conditions, each step asks the decoder about the positions still unknown,
samples them, and keeps some; the kept ones join the encoder's input of the next step. Sequences with a
reading order (text) grow from the front until their end token; grids (image, audio) fill in random order or
surest first, as the scheduler says.

Every sample has its own random numbers, one per step and position, so that it comes out the same alone and
in any batch.
"""

from collections.abc import Mapping

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .scheduling_unmasking import UnmaskingScheduler

DEFAULT_STEPS = 8


class Nano4MGenerationMixin:
    """Adds `generate` to a model that has `encode`, `decode` and `heads`."""

    @torch.inference_mode()
    def generate(
        self,
        inputs: Mapping[str, torch.LongTensor],
        target: str,
        valid_masks: Mapping[str, torch.BoolTensor] | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        scheduler: UnmaskingScheduler | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | list[int] | None = None,
    ) -> torch.LongTensor:
        """Generate all tokens of one modality, given any others.

        Args:
            inputs: token ids of each condition, `name -> (batch, num_tokens of the modality)` int64. May be empty
                (unconditional), and may hold the target itself: its valid tokens are kept as they are.
            target: name of the modality to generate.
            valid_masks: for each condition, True where its tokens are given, same shape; all given if absent.
            batch_size: number of samples when `inputs` is empty; 1 if None.
            num_inference_steps: steps of unmasking; 8 if None, or one per token for left-to-right modalities.
            scheduler: decides which tokens are fixed when; `UnmaskingScheduler()` if None.
            guidance_scale: classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): 1 is none, more
                follows the condition more closely, at twice the compute.
            temperature: of sampling; 0 takes the most likely token.
            top_k: sample among the `top_k` most likely tokens; 0 among all.
            top_p: sample among the most likely tokens that together have this probability; 1 among all.
            seed: one number (sample `i` gets `seed + i`) or one per sample; None draws afresh.

        Returns:
            `(batch, num_tokens)` int64: ids of the target's own vocabulary; after an end token, padding.

        Raises:
            ValueError: for an unknown modality, a wrong shape, or a parameter out of range.
        """
        scheduler = scheduler or UnmaskingScheduler()
        _check_sampling(guidance_scale, temperature, top_k, top_p)
        target_index = self.config.modality_id(target)
        modality = self.config.modalities[target]
        left_to_right = modality.get("order", "any") == "left_to_right"
        num_tokens = self.config.num_tokens_of(target)
        conditions, token_ids, known = self._start(inputs, target, valid_masks or {}, batch_size)
        device, size = token_ids.device, len(token_ids)
        if num_inference_steps is None:
            num_inference_steps = num_tokens if left_to_right else DEFAULT_STEPS

        # `valid` are target tokens the encoder may read; padding behind an end token is known, but not valid.
        valid = known.clone()
        num_given = known.sum(1, keepdim=True)
        goal = num_given + scheduler.known_after_step(num_inference_steps, (~known).sum(1)).to(device)
        order_noise, noise, uniform = _random_numbers(seed, size, num_inference_steps, num_tokens, device)
        positions = torch.arange(num_tokens, device=device).expand(size, -1)
        impossible = [modality[key] for key in ("pad_token_id", "bos_token_id") if modality.get(key) is not None]
        eos_token_id = modality.get("eos_token_id")

        for step in range(num_inference_steps):
            rows = (~known).any(1).nonzero()[:, 0]  # samples that still lack something
            if not len(rows):
                break
            budget = (goal[rows, step] - known[rows].sum(1)).clamp_min(0)
            asked = ~known[rows]
            if left_to_right:  # ask only for what this step will fix
                asked &= asked.cumsum(1) <= budget[:, None]
            (query,), asked_mask = compact(asked, positions[rows])
            logits = self._guided_logits(
                {name: tensor[rows] for name, tensor in conditions.items()},
                token_ids[rows],
                valid[rows],
                target_index,
                query,
                asked_mask,
                guidance_scale,
            )
            logits[..., impossible] = -torch.inf
            sampled, log_probabilities = _sample(
                logits, uniform[rows, step].gather(1, query), temperature, top_k, top_p
            )

            if left_to_right:
                priority = -query.float()
            else:
                priority = scheduler.priority(
                    log_probabilities,
                    order_noise[rows].gather(1, query),
                    noise[rows, step].gather(1, query),
                    step / num_inference_steps,
                )
            rank = (
                priority.masked_fill(~asked_mask, -torch.inf)
                .argsort(dim=1, descending=True, stable=True)
                .argsort(dim=1)
            )
            fixed = (rank < budget[:, None]) & asked_mask
            sample, column = fixed.nonzero(as_tuple=True)
            where = rows[sample], query[sample, column]
            token_ids[where] = sampled[sample, column]
            known[where] = True
            valid[where] = True
            if left_to_right and eos_token_id is not None:
                over = ((token_ids == eos_token_id) & valid).cumsum(1).bool()
                over = over.roll(1, dims=1)
                over[:, 0] = False
                known |= over
                valid &= ~over
        return token_ids.masked_fill(~valid, modality.get("pad_token_id") or 0)

    def _start(
        self,
        inputs: Mapping[str, torch.LongTensor],
        target: str,
        valid_masks: Mapping[str, torch.BoolTensor],
        batch_size: int | None,
    ) -> tuple[dict[str, torch.Tensor], torch.LongTensor, torch.BoolTensor]:
        """Lay the conditions side by side, and the target with what is known of it."""
        sizes = {name: len(ids) for name, ids in inputs.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"inputs have different batch sizes: {sizes}")
        size = next(iter(sizes.values()), batch_size or 1)
        device = self.device
        num_tokens = self.config.num_tokens_of(target)
        token_ids = torch.zeros(size, num_tokens, dtype=torch.int64, device=device)
        known = torch.zeros(size, num_tokens, dtype=torch.bool, device=device)
        bos_token_id = self.config.modalities[target].get("bos_token_id")
        if bos_token_id is not None:
            token_ids[:, 0] = bos_token_id
            known[:, 0] = True
        parts = {"input_ids": [], "input_modality_ids": [], "input_position_ids": [], "input_valid_mask": []}
        for name, ids in inputs.items():
            index = self.config.modality_id(name)
            length = self.config.num_tokens_of(name)
            if ids.ndim != 2 or ids.shape[1] != length:
                raise ValueError(f"inputs[{name!r}] must have shape (batch, {length}), got {tuple(ids.shape)}")
            ids = ids.to(device)
            mask = valid_masks.get(name)
            mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(device)
            if (((ids < 0) | (ids >= self.config.vocab_size_of(name))) & mask).any():
                raise ValueError(f"inputs[{name!r}] has ids outside [0, {self.config.vocab_size_of(name)})")
            if name == target:
                token_ids = torch.where(mask, ids, token_ids)
                known = known | mask
                continue
            parts["input_ids"].append(ids * mask)
            parts["input_modality_ids"].append(torch.full_like(ids, index))
            parts["input_position_ids"].append(torch.arange(length, device=device).expand(size, -1))
            parts["input_valid_mask"].append(mask)
        empty = token_ids[:, :0]
        conditions = {name: torch.cat([empty, *tensors], dim=1) for name, tensors in parts.items()}
        conditions["input_valid_mask"] = conditions["input_valid_mask"].bool()
        return conditions, token_ids, known

    def _guided_logits(
        self,
        conditions: dict[str, torch.Tensor],
        token_ids: torch.LongTensor,
        valid: torch.BoolTensor,
        target_index: int,
        query: torch.LongTensor,
        asked_mask: torch.BoolTensor,
        guidance_scale: float,
    ) -> torch.FloatTensor:
        """Logits over the target's vocabulary at the queried positions, `(batch, queries, vocab_size)` float32."""
        size, num_tokens = token_ids.shape
        positions = torch.arange(num_tokens, device=token_ids.device).expand(size, -1)
        joined = {
            "input_ids": torch.cat([conditions["input_ids"], token_ids], dim=1),
            "input_modality_ids": torch.cat(
                [conditions["input_modality_ids"], torch.full_like(token_ids, target_index)], dim=1
            ),
            "input_position_ids": torch.cat([conditions["input_position_ids"], positions], dim=1),
        }
        head = self.heads[self.config.modality_names[target_index]]

        def logits_given(valid_mask: torch.BoolTensor) -> torch.FloatTensor:
            (ids, modality_ids, position_ids), mask = compact(valid_mask, *joined.values())
            states, states_mask = self.encode(ids, modality_ids, position_ids, mask)
            hidden_states = self.decode(torch.full_like(query, target_index), query, states, states_mask, asked_mask)
            return head(hidden_states).float()

        logits = logits_given(torch.cat([conditions["input_valid_mask"], valid], dim=1))
        if guidance_scale != 1.0:
            nothing = torch.zeros_like(conditions["input_valid_mask"])
            unconditional = logits_given(torch.cat([nothing, valid], dim=1))
            logits = unconditional + guidance_scale * (logits - unconditional)
        return logits


def _check_sampling(guidance_scale: float, temperature: float, top_k: int, top_p: float) -> None:
    for name, value, legal in (
        ("guidance_scale", guidance_scale, guidance_scale >= 0),
        ("temperature", temperature, temperature >= 0),
        ("top_k", top_k, top_k >= 0),
        ("top_p", top_p, 0 < top_p <= 1),
    ):
        if not legal:
            raise ValueError(f"{name}={value} is out of range")


def compact(mask: torch.BoolTensor, *tensors: torch.Tensor) -> tuple[list[torch.Tensor], torch.BoolTensor]:
    """Move what `mask` (batch, length) marks to the front, in order, and cut off what no sample needs."""
    longest = int(mask.sum(1).max()) if mask.numel() else 0
    order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :longest]
    return [tensor.gather(1, order) for tensor in tensors], mask.gather(1, order)


def expand_seed(seed: int | list[int] | None, size: int) -> list[int]:
    """One seed per sample; ValueError if a list has another length. None draws the first one afresh."""
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    seeds = [seed + i for i in range(size)] if isinstance(seed, int) else list(seed)
    if len(seeds) != size:
        raise ValueError(f"seed: {len(seeds)} seeds for {size} samples")
    return seeds


def _random_numbers(
    seed: int | list[int] | None, size: int, num_steps: int, num_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uniform numbers: order `(batch, tokens)`, noise and sampling `(batch, steps, tokens)` each."""
    seeds = expand_seed(seed, size)
    # On the CPU whatever the device, so that a seed means the same everywhere.
    draws = torch.stack(
        [torch.rand(1 + 2 * num_steps, num_tokens, generator=torch.Generator().manual_seed(s)) for s in seeds]
    ).to(device)
    return draws[:, 0], draws[:, 1 : 1 + num_steps], draws[:, 1 + num_steps :]


def _sample(
    logits: torch.FloatTensor, uniform: torch.FloatTensor, temperature: float, top_k: int, top_p: float
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """Draw a token per position, `(batch, queries)`, with its log-probability before warping."""
    log_probabilities = logits.log_softmax(-1)
    if temperature == 0:
        sampled = logits.argmax(-1)
    else:
        scores = logits.flatten(0, 1)
        # Temperature comes before the nucleus: top_p is a share of the distribution that is sampled from.
        warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        for warper in warpers:
            scores = warper(None, scores)
        # Inverse transform sampling spends one uniform number per token, whatever the vocabulary.
        cumulative = scores.softmax(-1).double().cumsum(-1).view(*logits.shape)
        threshold = uniform.double()[..., None] * cumulative[..., -1:]
        sampled = (cumulative <= threshold).sum(-1).clamp_max(logits.shape[-1] - 1)
    return sampled, log_probabilities.gather(-1, sampled[..., None])[..., 0]
