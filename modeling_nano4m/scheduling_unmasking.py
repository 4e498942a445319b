"""Decides which tokens are fixed in which step of iterative unmasking.

MaskGIT (Chang et al. 2022, arXiv:2202.04200) fixes the tokens the model is surest of; random order as in 4M's
ROAR (arXiv:2312.06647) keeps more variety. A scheduler of diffusers, so that a pipeline saves and loads it.
"""

import math
from numbers import Real

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

SCHEDULES = ("cosine", "linear", "constant")
ORDERS = ("random", "confidence")


class UnmaskingScheduler(SchedulerMixin, ConfigMixin):
    """Spreads `num_tokens` tokens over `num_inference_steps` steps.

    Args:
        schedule: "cosine" fixes few tokens at first, while little is known, and more later; "linear" too, by equally
            many more in each step; "constant" equally many in each step.
        order: "random" fixes tokens in an order drawn beforehand; "confidence" those with the highest probability
            first. Modalities whose order is left to right are generated so in either case.
        confidence_temperature: strength of the Gumbel noise on log-probabilities in confidence order, falling
            linearly to 0 over the steps; without it samples lose variety.
        temperature_schedule: whether the temperature of sampling stays "constant" or falls towards 0 over the steps,
            in a "linear" way or as a "cosine", which falls late.
    """

    @register_to_config
    def __init__(
        self,
        schedule: str = "cosine",
        order: str = "random",
        confidence_temperature: float = 1.0,
        temperature_schedule: str = "constant",
    ):
        for name, value in (("schedule", schedule), ("temperature_schedule", temperature_schedule)):
            if value not in SCHEDULES:
                raise ValueError(f"{name} must be one of {', '.join(SCHEDULES)}, not {value!r}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        if not isinstance(confidence_temperature, Real) or not 0 <= confidence_temperature < math.inf:
            raise ValueError(f"confidence_temperature must be a number of at least 0, not {confidence_temperature!r}")

    def known_after_step(self, num_inference_steps: int, num_tokens: torch.LongTensor) -> torch.LongTensor:
        """How many tokens are fixed after each step.

        Args:
            num_inference_steps: at least 1.
            num_tokens: tokens to generate for each sample, `(batch,)` int64.

        Returns:
            `(batch, num_inference_steps)` int64, never falling, the last column equal to `num_tokens`. No step takes
            a leftover: sizes follow the schedule as closely as whole numbers allow, and while there are tokens
            left every step fixes one at least.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
        steps = torch.arange(1, num_inference_steps + 1, dtype=torch.float64)
        progress = steps / num_inference_steps
        if self.config.schedule == "cosine":
            progress = 1 - torch.cos(progress * math.pi / 2)
        elif self.config.schedule == "linear":
            progress = progress**2
        num_tokens = num_tokens.cpu()[:, None]
        known = (num_tokens * progress).round().long()
        known = torch.maximum(known, steps.long())
        return torch.minimum(known, num_tokens)

    def temperature_factor(self, progress: float) -> float:
        """What the temperature of sampling is multiplied by when this part of the steps is done, in [0, 1)."""
        schedule = self.config.temperature_schedule
        if schedule == "constant":
            return 1.0
        return 1 - progress if schedule == "linear" else math.cos(progress * math.pi / 2)

    def priority(
        self, log_probabilities: torch.FloatTensor, noise: torch.Tensor, progress: float
    ) -> torch.FloatTensor:
        """In confidence order, which positions to fix first: those with the highest value, `(batch, num_tokens)`.

        Args:
            log_probabilities: of the tokens sampled at each position, `(batch, num_tokens)`.
            noise: uniform numbers in [0, 1) drawn anew in each step, same shape.
            progress: part of the steps done, in [0, 1).
        """
        gumbel = -torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))
        return log_probabilities + self.config.confidence_temperature * (1 - progress) * gumbel
