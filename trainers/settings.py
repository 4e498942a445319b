"""Which settings shape a trained model: those that its card tells and that a resumed training must repeat."""

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from torch import nn
from transformers import TrainingArguments

from trainers.streaming import StreamedRows

# How long a training goes on, which may change when it is resumed.
LENGTHS = ("max_steps", "num_train_epochs", "max_tokens")
# An allow-list: most other arguments say where and how a run was written, logged and published; some are secret.
SHAPING = ("learning_rate", "muon_learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
SHAPING += ("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
SHAPING += ("per_device_train_batch_size", "bf16", "fp16", "seed", "data_seed", "ema_decay")
SHAPING += ("load_best_model_at_end", "metric_for_best_model", "neftune_noise_alpha")
SHAPING += ("perceptual_weight", "perceptual", "adversarial_weight", "adversarial_start", "discriminator_channels")
SHAPING += ("discriminator_layers", "discriminator_learning_rate")
TOLD = (*SHAPING, *LENGTHS, "gradient_accumulation_steps")
FILE = "settings.json"


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


def check_settings(folder: str | Path, settings: dict[str, dict], is_resumed: bool, is_main_process: bool) -> None:
    """Keep the settings of a new training in `folder`, and see that one that goes on has the same.

    Raises:
        ValueError: naming the first setting that differs.
    """
    path = Path(folder) / FILE
    if not is_resumed:
        if is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for group, fields in json.loads(json.dumps(settings)).items():
        for name, value in fields.items():
            before = saved.get(group, {}).get(name)
            if not _same(before, value):
                raise ValueError(
                    f"{name}: {folder} holds a training with {group} {name}={before!r}, not {value!r}; "
                    f"choose another output_dir, or delete it to start over"
                )


def settings_of(training: TrainingArguments, model: nn.Module, data_collator, data: Mapping) -> dict[str, dict]:
    """What the trained model follows from, in groups, made of what JSON can hold."""
    told = {name: getattr(training, name) for name in SHAPING if hasattr(training, name)}
    # However a step is spread over micro-batches and processes, it is the same one.
    told["batches_per_step"] = training.gradient_accumulation_steps * training.world_size
    if isinstance(rows := data.get("train"), StreamedRows):  # whose order follows from these
        told |= {"shuffle_buffer": rows.buffer_size, "dataloader_num_workers": training.dataloader_num_workers}
    config = model.config.to_dict()
    for name in ("transformers_version", "use_cache"):  # the Trainer sets the second
        config.pop(name, None)
    masking = dataclasses.asdict(data_collator) if dataclasses.is_dataclass(data_collator) else {}
    masking.pop("modalities", None)  # the configuration's
    return {
        "training": told,
        "masking": masking,
        "config": config,
        "data": {split: _fingerprints(rows) for split, rows in data.items() if rows is not None},
    }


def _fingerprints(rows) -> list:
    """What tells data sets apart: the fingerprints of tables, the number of files of streams; how they are mixed."""
    sources = getattr(rows, "sources", [rows])
    found = [getattr(source, "_fingerprint", None) or getattr(source, "num_shards", None) for source in sources]
    return [*found, getattr(rows, "weights", None), getattr(rows, "pair_by", None)]


def _same(one, other) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        # What is worked out from the data, such as a mean, is not the same to the bit on every machine.
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
