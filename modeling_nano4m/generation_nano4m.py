"""Any-to-any generation by iterative unmasking.

The encoder reads the conditions once. Each step asks the decoder about positions still unknown, samples them, and
lets the encoder read what was fixed, with cached keys and values of all it read before. Sequences with a reading
order (text) grow from the front until their end token; grids (image, audio) fill in random order or surest first, as
the scheduler says.

Every sample has its own random numbers, one per step and position, so that it comes out the same alone and
in any batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate.hooks import ModelHook
from transformers import GenerationMixin

from .configuration_nano4m import is_whole
from .linear_cross_entropy import LOGITS_AT_ONCE
from .memory_nano4m import Memory, stacked
from .sampling_nano4m import SETTINGS, expand_seed, log_probabilities, random_numbers, sample
from .scheduling_unmasking import UnmaskingScheduler

DEFAULT_STEPS = 8


class Nano4MGenerationMixin:
    """Adds `generate` and `score` to a model that has `encode`, `encode_more`, `decode` and `logits_of`."""

    # What `from_pretrained` calls to read generation_config.json.
    adjust_generation_fn = GenerationMixin.adjust_generation_fn

    @property
    def modality_defaults(self) -> dict[str, dict]:
        """How each modality is best generated, see `set_modality_defaults`."""
        return getattr(self.generation_config, "modality_defaults", None) or {}

    def set_modality_defaults(self, defaults: Mapping[str, dict]) -> None:
        """Keep how each modality is best generated; saved with the model, in generation_config.json.

        Args:
            defaults: for each modality any of `guidance_scale`, `temperature`, `top_k`, `top_p`, `min_p`,
                `num_inference_steps` and `scheduler`, the fields of an `UnmaskingScheduler`.

        Raises:
            ValueError: for an unknown modality or setting, or a value out of range.
        """
        if not isinstance(defaults, Mapping) or not all(isinstance(own, Mapping) for own in defaults.values()):
            raise ValueError(f"modality_defaults must be a dictionary of dictionaries, not {defaults!r}")
        for name, settings in defaults.items():
            self.config.modality_id(name)
            self._settings(name, settings)
        self.generation_config.modality_defaults = {name: dict(settings) for name, settings in defaults.items()}

    @torch.inference_mode()
    def generate(
        self,
        inputs: Mapping[str, torch.LongTensor],
        target: str | Sequence[str],
        valid_masks: Mapping[str, torch.BoolTensor] | None = None,
        negative_inputs: Mapping[str, torch.LongTensor] | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        scheduler: UnmaskingScheduler | Mapping[str, UnmaskingScheduler] | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | list[int] | None = None,
    ) -> torch.LongTensor | dict[str, torch.LongTensor]:
        """Generate all tokens of one modality, or of several one after another, given any others.

        What is None is taken from `self.generation_config.modality_defaults[target]`, where a model keeps what suits
        each of its modalities, and else from the defaults named here.

        Args:
            inputs: token ids of each condition, `name -> (batch, num_tokens of the modality)` int64. May be empty
                (unconditional), and may hold the target itself: its valid tokens are kept as they are.
            target: name of the modality to generate, or several names: each becomes a condition of those after it.
            valid_masks: for each condition, True where its tokens are given, same shape; if absent, all but padding.
            negative_inputs: like `inputs`, what to lead away from: guidance starts from these conditions instead of
                from none. Without guidance, at a scale of 1, they have no influence.
            batch_size: number of samples, which `inputs` say if there are any; else 1 if None.
            num_inference_steps: steps of unmasking; 8, or one per token for left-to-right modalities.
            scheduler: decides which tokens are fixed when, or one for each target by name; the modality's own, or
                `UnmaskingScheduler()`.
            guidance_scale: classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): 1 is none, more
                follows the conditions more closely, at twice the compute. With a weight for each of several
                conditions, each is compared with its absence on its own and the differences are added up (Liu et al.
                2022, arXiv:2206.01714); a negative weight leads away from it. Conditions without a weight are simply
                given.
            temperature: of sampling; 0 takes the most likely token; 1.
            top_k: sample among the `top_k` most likely tokens; 0 (among all).
            top_p: sample among the most likely tokens that together have this probability; 1 (among all).
            min_p: sample among tokens at least this share as likely as the likeliest; 0 (among all).
            seed: one number (sample `i` gets `seed + i`) or one per sample; None draws afresh.

        Returns:
            `(batch, num_tokens)` int64: ids of the target's own vocabulary; after an end token, padding. A dictionary
            of these by name if several targets were named.

        Raises:
            ValueError: for an unknown modality, a wrong shape, a parameter out of range or without meaning, and where
                no id is left to choose, as if the model's scores are not finite.
        """
        names = [target] if isinstance(target, str) else list(target)
        given, masks, generated = dict(inputs), dict(valid_masks or {}), {}
        away = {f"negative {name}": ids for name, ids in (negative_inputs or {}).items()}
        size = self._batch_size({**inputs, **away}, batch_size)
        self._check_names(*names, *given, *(negative_inputs or {}))
        self._check_masks(masks, given)
        if len(set(names)) < len(names):
            raise ValueError(f"target names a modality twice: {names}")
        if isinstance(scheduler, Mapping) and not set(scheduler) <= set(names):
            raise ValueError(f"scheduler: {min(set(scheduler) - set(names))!r} is not among the targets")
        seeds = expand_seed(seed, size)
        for place, name in enumerate(names):
            settings = self._settings(
                name,
                self.modality_defaults.get(name, {}),
                guidance_scale=guidance_scale,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                num_inference_steps=num_inference_steps,
                scheduler=scheduler.get(name) if isinstance(scheduler, Mapping) else scheduler,
            )
            # Other random numbers for each target, or they would be filled in one order with like choices.
            own_seeds = [number + 1_000_003 * place for number in seeds]
            with self._weights_at_hand():
                generated[name] = self._generate(given, name, masks, negative_inputs or {}, own_seeds, **settings)
            given[name] = generated[name]
            masks.pop(name, None)
        return generated[target] if isinstance(target, str) else generated

    @torch.inference_mode()
    def score(
        self,
        inputs: Mapping[str, torch.LongTensor],
        targets: Mapping[str, torch.LongTensor],
        valid_masks: Mapping[str, torch.BoolTensor] | None = None,
        num_orders: int = 1,
        seed: int | list[int] = 0,
    ) -> torch.FloatTensor:
        """Log-probability of generating exactly `targets` given `inputs`, one token a step; for ranking and retrieval.

        By the chain rule, in one pass of the model: a token is predicted from the conditions and from the tokens
        before it, in an order that is random for grids and that of reading for sequences. At temperature 1, without
        guidance; -inf for what `generate` cannot make, such as tokens behind an end.

        Args:
            inputs: conditions, as for `generate`; may be empty.
            targets: the token ids in question, `name -> (batch, num_tokens)` int64; each is a condition of those
                after it.
            valid_masks: for conditions and targets, as for `generate`; targets left out are not scored.
            num_orders: random orders to average over, at least 1.
            seed: of these orders, as for `generate`: sample `i` gets `seed + i`. Give all the same one,
                `[0] * batch`, to compare candidates in the same orders.

        Returns:
            `(batch,)` float32, nats.

        Raises:
            ValueError: for an unknown modality, one that is input and target, a wrong shape or number of orders.
        """
        given, masks = dict(inputs), dict(valid_masks or {})
        if twice := set(inputs) & set(targets):
            raise ValueError(f"{min(twice)!r} is both among the inputs and among the targets")
        size = self._batch_size({**inputs, **targets}, None)
        self._check_names(*given, *targets)
        self._check_masks(masks, {**given, **targets})
        if not is_whole(num_orders, 1):
            raise ValueError(f"num_orders={num_orders!r} must be at least 1")
        seeds = expand_seed(seed, size)
        total = 0.0
        for name in targets:
            for order in range(num_orders):
                own_seeds = [number + 1_000_003 * order for number in seeds]
                with self._weights_at_hand():
                    total = total + self._score(given, name, targets[name], masks, own_seeds) / num_orders
            given[name] = targets[name]
        return total if targets else torch.zeros(size)

    def default_num_steps(self, target: str) -> int:
        """Steps in which a modality is generated if neither the model nor the caller says how many."""
        return self.config.num_tokens_of(target) if self.config.is_left_to_right(target) else DEFAULT_STEPS

    @contextmanager
    def _weights_at_hand(self) -> Iterator[None]:
        """Inside, weights that accelerate offloads are where they are used, as in a call of the model."""
        hook = getattr(self, "_hf_hook", ModelHook())
        hook.pre_forward(self)
        try:
            yield
        finally:
            hook.post_forward(self, None)

    def _generate(
        self,
        inputs: dict,
        target: str,
        valid_masks: dict,
        negative_inputs: Mapping,
        seeds: list[int],
        num_inference_steps: int | None,
        scheduler: UnmaskingScheduler,
        guidance_scale: float | Mapping[str, float],
        **sampling,
    ) -> torch.LongTensor:
        size, device = len(seeds), self.device
        modality, target_id = self.config.modalities[target], self.config.modality_id(target)
        num_tokens = self.config.num_tokens_of(target)
        left_to_right = self.config.is_left_to_right(target)
        eos_token_id = self._end_of(target)
        num_steps = num_inference_steps or self.default_num_steps(target)

        # `valid` are target tokens that count; those behind an end token are known, but not valid.
        token_ids, known = self._given_part(inputs, target, valid_masks, size)
        valid = known.clone()
        last_given = (known * torch.arange(num_tokens, device=device)).amax(1)
        if eos_token_id is not None:
            _end(token_ids, eos_token_id, known, valid)
        goal = known.sum(1, keepdim=True) + scheduler.known_after_step(num_steps, (~known).sum(1)).to(device)
        order_noise, noise, uniform = random_numbers(seeds, num_steps, num_tokens, device)
        place = torch.arange(num_tokens, device=device).expand(size, -1)
        order = (-place if left_to_right else order_noise).float()
        by_confidence = scheduler.config.order == "confidence" and not left_to_right

        branches, weights = self._branches(inputs, target, valid_masks, negative_inputs, guidance_scale)
        branches = [self._side_by_side([*parts, (target_id, token_ids, known)], size) for parts in branches]
        memory = Memory(self, stacked(branches), len(branches))
        rows = torch.arange(size, device=device)  # samples that still lack something

        for step in range(num_steps):
            lacking = (~known[rows]).any(1)
            if not lacking.all():
                rows = rows[lacking]
                if not len(rows):
                    break
                memory.keep(lacking)
            budget = (goal[rows, step] - known[rows].sum(1)).clamp_min(0)[:, None]
            # Where the order is settled beforehand, only what this step will fix is asked for.
            num_asked = (~known[rows]).sum(1, keepdim=True) if by_confidence else budget
            queue = order[rows].masked_fill(known[rows], -torch.inf).argsort(dim=1, descending=True, stable=True)
            query = queue[:, : int(num_asked.max())]
            asked = torch.arange(query.shape[1], device=device) < num_asked
            states = memory.ask(target_id, query, asked).unflatten(0, (len(weights), -1))
            progress = step / num_steps
            temperature = sampling["temperature"] * scheduler.temperature_factor(progress)
            ids = torch.zeros_like(query)
            ids[asked], found = self._draw(
                target,
                states[:, asked],
                weights,
                uniform[rows, step].gather(1, query)[asked],
                (query < last_given[rows, None])[asked],
                by_confidence,
                {**sampling, "temperature": temperature},
            )
            if by_confidence:
                confidence = torch.zeros(query.shape, device=device)
                confidence[asked] = found
                priority = scheduler.priority(confidence, noise[rows, step].gather(1, query), progress)
                surest = priority.masked_fill(~asked, -torch.inf).argsort(dim=1, descending=True, stable=True)
                surest = surest[:, : int(budget.max())]
                query, ids = query.gather(1, surest), ids.gather(1, surest)
            fixed = torch.arange(query.shape[1], device=device) < budget

            sample_index, column = fixed.nonzero(as_tuple=True)
            where = rows[sample_index], query[sample_index, column]
            token_ids[where] = ids[sample_index, column]
            known[where] = True
            valid[where] = True
            if eos_token_id is not None:
                _end(token_ids, eos_token_id, known, valid)
                fixed &= valid[rows].gather(1, query)
            if step + 1 < num_steps:
                memory.add(target_id, ids, query, fixed)
        return token_ids.masked_fill(~valid, modality.get("pad_token_id") or 0)

    def _draw(
        self,
        target: str,
        states: torch.Tensor,
        weights: list[float],
        uniform: torch.Tensor,
        before_given: torch.BoolTensor,
        by_confidence: bool,
        sampling: dict,
    ) -> tuple[torch.LongTensor, torch.FloatTensor | None]:
        """Draw the tokens asked for, and with `by_confidence` say how probable they are.

        Args:
            states: of the decoder, `(branches, queries, hidden_size)`; `weights` are those of the branches.
            uniform, before_given: a random number, and whether a token that was given follows, `(queries,)` each.
            sampling: what `sample` takes.

        Returns:
            Ids and their log-probabilities before `sampling`, `(queries,)` each.
        """
        ids, confidence = [], []
        at_once = self._queries_at_once(target, len(weights))
        parts = zip(states.split(at_once, 1), uniform.split(at_once), before_given.split(at_once), strict=True)
        for part, numbers, before in parts:
            logits = self.logits_of(target, part)
            logits = self._possible((logits * logits.new_tensor(weights)[:, None, None]).sum(0), target, before)
            if not logits.amax(-1).isfinite().all():
                raise ValueError(f"no id of {target!r} is possible: scores are not finite, or all ids are special")
            ids.append(sample(logits, numbers, **sampling))
            if by_confidence:
                confidence.append(log_probabilities(logits, ids[-1]))
        return torch.cat(ids), torch.cat(confidence) if by_confidence else None

    def _possible(self, logits: torch.Tensor, target: str, before_given: torch.Tensor | None = None) -> torch.Tensor:
        """Exclude in place, from `(queries, vocab_size)`, what is no answer: padding, a begin, an end too early."""
        modality = self.config.modalities[target]
        for key in ("pad_token_id", "bos_token_id"):
            if modality.get(key) is not None:
                logits[:, modality[key]] = -torch.inf
        if before_given is not None and self._end_of(target) is not None:
            logits[:, modality["eos_token_id"]].masked_fill_(before_given, -torch.inf)
        return logits

    def _queries_at_once(self, target: str, num_branches: int = 1) -> int:
        return max(1, LOGITS_AT_ONCE // (torch.float32.itemsize * num_branches * self.config.vocab_size_of(target)))

    def _end_of(self, target: str) -> int | None:
        """The id that ends a sequence; None for grids, which have no end."""
        return self.config.modalities[target].get("eos_token_id") if self.config.is_left_to_right(target) else None

    def _score(
        self, inputs: dict, target: str, ids: torch.Tensor, valid_masks: dict, seeds: list[int]
    ) -> torch.FloatTensor:
        modality = self.config.modalities[target]
        target_id, ids, mask = self._part(target, ids, valid_masks)
        size, num_tokens = ids.shape
        parts = [self._part(name, values, valid_masks) for name, values in inputs.items()]
        place = torch.arange(num_tokens, device=self.device).expand(size, -1)
        order = random_numbers(seeds, 0, num_tokens, self.device)[0]
        if self.config.is_left_to_right(target):
            order = place
        steps = 1 + order.argsort(dim=1).argsort(dim=1)
        asked, impossible = mask, torch.zeros_like(mask)
        if modality.get("bos_token_id") is not None:  # given like the conditions, never in question
            steps = steps - 1
            asked = mask & (place > 0)
            impossible = mask & (place == 0) & (ids != modality["bos_token_id"])
            ids, mask = ids.masked_fill(place == 0, modality["bos_token_id"]), mask | (place == 0)
        if (end := self._end_of(target)) is not None:  # nothing follows it
            ended = (ids == end) & mask
            impossible = impossible | (mask & (ended.cumsum(1) - ended.long() > 0))
        batch = self._side_by_side([*parts, (target_id, ids, mask)], size)
        input_steps = torch.nn.functional.pad(steps, (batch["input_ids"].shape[1] - num_tokens, 0))
        states, states_mask = self.encode(
            batch["input_ids"],
            batch["input_modality_ids"],
            batch["input_position_ids"],
            batch["input_valid_mask"],
            input_steps,
        )
        modality_ids = torch.full_like(ids, target_id)
        target_steps = steps.clamp_min(1)
        hidden_states = self.decode(modality_ids, place, states, states_mask, asked, input_steps, target_steps)
        at_once = self._queries_at_once(target)
        found = [
            log_probabilities(self._possible(self.logits_of(target, part), target), answers)
            for part, answers in zip(hidden_states[asked].split(at_once), ids[asked].split(at_once), strict=True)
        ]
        scores = torch.zeros(ids.shape, device=self.device)
        scores[asked] = torch.cat(found)
        return scores.masked_fill(impossible, -torch.inf).sum(1)

    def _settings(self, target: str, own: Mapping, **given) -> dict:
        """What was given, else what the model keeps for this modality (`own`), else the default; checked."""
        if unknown := set(own) - {*SETTINGS, "scheduler"}:
            raise ValueError(
                f"generation_config.modality_defaults[{target!r}] has the unknown setting {min(unknown)!r}"
            )
        settings = {}
        for name, (default, is_legal) in SETTINGS.items():
            values = (given.get(name), own.get(name), default)
            value = next((value for value in values if value is not None), None)
            values = [value]
            if name == "guidance_scale" and isinstance(value, Mapping):
                self._check_names(*value)
                values = value.values()
            if not all(map(is_legal, values)):
                raise ValueError(f"{name}={value!r} is out of range")
            settings[name] = value
        scheduler = given.get("scheduler")
        if scheduler is None:
            try:
                scheduler = UnmaskingScheduler(**own.get("scheduler") or {})
            except TypeError as error:
                raise ValueError(f"the scheduler of {target!r}: {error}") from error
        elif not hasattr(scheduler, "known_after_step"):
            raise ValueError(f"scheduler must be an UnmaskingScheduler, not {scheduler!r}")
        return {**settings, "scheduler": scheduler}

    def _batch_size(self, inputs: Mapping[str, torch.Tensor], batch_size: int | None) -> int:
        sizes = {name: len(ids) for name, ids in inputs.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"inputs have different batch sizes: {sizes}")
        size = next(iter(sizes.values()), 1 if batch_size is None else batch_size)
        if not is_whole(size, 1):
            raise ValueError(f"batch_size={size!r}: there must be at least one sample")
        if batch_size not in (None, size):
            raise ValueError(f"batch_size={batch_size}, but the inputs have {size} samples")
        return int(size)

    def _check_names(self, *names: str) -> None:
        for name in names:
            self.config.modality_id(name)

    def _check_masks(self, valid_masks: Mapping, ids: Mapping) -> None:
        self._check_names(*valid_masks)
        if idle := set(valid_masks) - set(ids):
            raise ValueError(f"valid_masks[{min(idle)!r}] belongs to no ids")

    def _checked(self, name: str, ids: torch.Tensor, valid_masks: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and their mask on the model's device; ValueError if they are no ids of this modality."""
        length, vocab_size = self.config.num_tokens_of(name), self.config.vocab_size_of(name)
        if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"ids of {name!r} must be a tensor of whole numbers")
        if ids.ndim != 2 or ids.shape[1] != length:
            raise ValueError(f"ids of {name!r} must have shape (batch, {length}), got {tuple(ids.shape)}")
        ids = ids.to(self.device, torch.int64)
        pad_token_id = self.config.modalities[name].get("pad_token_id")
        if name in valid_masks:
            mask = valid_masks[name].to(self.device).bool()
            if mask.shape != ids.shape:
                raise ValueError(f"valid_masks[{name!r}] has shape {tuple(mask.shape)}, its ids {tuple(ids.shape)}")
        else:
            mask = torch.ones_like(ids, dtype=torch.bool) if pad_token_id is None else ids != pad_token_id
        if (((ids < 0) | (ids >= vocab_size)) & mask).any():
            raise ValueError(f"ids of {name!r} lie outside [0, {vocab_size})")
        return ids * mask, mask

    def _part(self, name: str, ids: torch.Tensor, valid_masks: dict) -> tuple[int, torch.Tensor, torch.Tensor]:
        return self.config.modality_id(name), *self._checked(name, ids, valid_masks)

    def _given_part(
        self, inputs: dict, target: str, valid_masks: dict, size: int
    ) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """The target's tokens as far as they are given, `(batch, num_tokens)`, and which these are."""
        token_ids = torch.zeros(size, self.config.num_tokens_of(target), dtype=torch.int64, device=self.device)
        known = torch.zeros_like(token_ids, dtype=torch.bool)
        if target in inputs:
            token_ids, known = (tensor.clone() for tensor in self._checked(target, inputs[target], valid_masks))
        bos_token_id = self.config.modalities[target].get("bos_token_id")
        if bos_token_id is not None:
            token_ids[:, 0] = bos_token_id
            known[:, 0] = True
        return token_ids, known

    def _branches(
        self,
        inputs: dict,
        target: str,
        valid_masks: dict,
        negative_inputs: Mapping,
        guidance_scale: float | Mapping[str, float],
    ) -> tuple[list[list[tuple]], list[float]]:
        """Sets of conditions under which to ask, and the weight of the logits from each; weights add up to 1."""
        parts = {name: self._part(name, ids, valid_masks) for name, ids in inputs.items() if name != target}
        negative = {name: self._part(name, ids, {}) for name, ids in negative_inputs.items() if name != target}
        if isinstance(guidance_scale, Mapping):
            weighed = {name: weight for name, weight in guidance_scale.items() if name in parts}
            always = {name: part for name, part in parts.items() if name not in weighed}
            branches = [[*always.values(), parts[name]] for name in weighed]
            weights = list(weighed.values())
        else:
            always, branches, weights = {}, [list(parts.values())], [guidance_scale]
        base = 1 - sum(weights)
        if not weights or not (parts or negative):  # nothing to compare with its absence
            return [list(parts.values())], [1.0]
        if base:
            branches, weights = [list({**always, **negative}.values()), *branches], [base, *weights]
        return branches, weights

    def _side_by_side(self, parts: list[tuple], size: int) -> dict[str, torch.Tensor]:
        """Conditions as one sequence, as `encode` takes it."""
        empty = torch.zeros(size, 0, dtype=torch.int64, device=self.device)
        ids, modality_ids, position_ids, masks = [empty], [empty], [empty], [empty.bool()]
        for modality_id, values, mask in parts:
            ids.append(values)
            modality_ids.append(torch.full_like(values, modality_id))
            position_ids.append(torch.arange(values.shape[1], device=self.device).expand(size, -1))
            masks.append(mask)
        columns = {"ids": ids, "modality_ids": modality_ids, "position_ids": position_ids, "valid_mask": masks}
        return {f"input_{name}": torch.cat(tensors, dim=1) for name, tensors in columns.items()}


def _end(token_ids: torch.Tensor, eos_token_id: int, known: torch.Tensor, valid: torch.Tensor) -> None:
    """Mark in place what follows the first end token: nothing is left to know there, and nothing counts."""
    ended = ((token_ids == eos_token_id) & valid).cumsum(1).bool()
    behind = torch.nn.functional.pad(ended[:, :-1], (1, 0))
    known |= behind
    valid &= ~behind
