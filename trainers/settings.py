"""Which settings shape a trained model."""

import dataclasses
from enum import Enum

from transformers import TrainingArguments

# How long a training goes on, whatever else it does.
LENGTHS = ("max_steps", "num_train_epochs", "max_tokens")
# An allow-list: most other arguments say where and how a run was written, logged and published; some are secret.
SHAPING = ("learning_rate", "muon_learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
SHAPING += ("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
SHAPING += ("per_device_train_batch_size", "bf16", "fp16", "seed", "data_seed", "ema_decay")
SHAPING += ("load_best_model_at_end", "metric_for_best_model", "neftune_noise_alpha")
TOLD = (*SHAPING, *LENGTHS, "gradient_accumulation_steps")


def changed_settings(*arguments) -> dict[str, object]:
    """Fields of these dataclass objects that shape the model and whose value is not the default, or that have none."""
    changed = {}
    for values in arguments:
        for field in dataclasses.fields(values):
            if isinstance(values, TrainingArguments) and field.name not in TOLD:
                continue
            made = field.default_factory is not dataclasses.MISSING
            default = field.default_factory() if made else field.default
            value = getattr(values, field.name)
            if value != default:
                changed[field.name] = value.value if isinstance(value, Enum) else value
    return changed
