"""Trainers that log every part of the loss: per modality for nano4M, per term for tokenizers."""

import copy
import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from dataset_scripts.tokenization import MEDIA_COLUMNS
from tokenizers_4m.quantizer import codebook_usage
from trainers.optimizer import MuonWithAdamW


class PartLossTrainer(Trainer):
    """Logs the `losses` of the model's output beside the loss, as means since the last log.

    A part with `num_targets` counts by them, so that a batch with few targets weighs little and one with none
    nothing.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._sums = {True: defaultdict(float), False: defaultdict(float)}
        self._counts = {True: defaultdict(float), False: defaultdict(float)}
        # The model averages its own loss; the Trainer must not divide by a number of labels.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        for name, value in outputs.losses.items():
            count = outputs.num_targets[name] if outputs.get("num_targets") is not None else 1
            # Stays on the device: reading a number out would make every step wait for it.
            self._sums[model.training][name] += value.detach() * count
            self._counts[model.training][name] += count
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        is_evaluation = "eval_loss" in logs
        if is_evaluation or "loss" in logs:
            logs.update(
                self._take_parts(training=not is_evaluation, prefix="eval_loss_" if is_evaluation else "loss_")
            )
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        self.on_evaluated(outputs)
        return loss.detach().float(), None, None

    def on_evaluated(self, outputs) -> None:
        """Called with the output of every evaluation batch."""

    def _take_parts(self, training: bool, prefix: str) -> dict[str, float]:
        sums, counts = self._sums[training], self._counts[training]
        parts = {f"{prefix}{name}": float(sums[name]) / float(counts[name]) for name in sums if counts[name]}
        sums.clear()
        counts.clear()
        return parts


@dataclass
class Nano4MTrainingArguments(TrainingArguments):
    """`TrainingArguments` and which optimizer turns the matrices of the layers.

    Args:
        muon_learning_rate: of Muon for the matrices, beside AdamW for all else (see `trainers.optimizer`); AdamW (or
            what `optim` names) for everything if None.
    """

    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "of Muon for the layers' matrices; no Muon if not given"}
    )


class Nano4MTrainer(PartLossTrainer):
    """Trains nano4M with a `MaskingCollator`; evaluation draws the same masks every time."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        rate = getattr(self.args, "muon_learning_rate", None)
        if self.optimizer is None and rate is not None:
            self.optimizer = MuonWithAdamW(
                self.model if model is None else model,
                rate,
                self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return super().create_optimizer(model)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        self.data_collator, collator = dataclasses.replace(self.data_collator, seed=0), self.data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator


class TokenizerTrainer(PartLossTrainer):
    """Trains an image or audio tokenizer and reports how much of the codebook the evaluation clips use."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._evaluated_ids = []

    def on_evaluated(self, outputs) -> None:
        self._evaluated_ids.append(outputs.token_ids.cpu())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "eval_loss" in logs and self._evaluated_ids:
            usage = codebook_usage(torch.cat(self._evaluated_ids), self.model.config.vocab_size)
            logs.update({f"eval_{name}": value for name, value in usage.items()})
            self._evaluated_ids = []
        super().log(logs, start_time)


def fit(trainer_class: type[Trainer], model, training: TrainingArguments, data: DatasetDict, data_collator) -> Trainer:
    """Train `model` on `data["train"]`, evaluate it on `data["validation"]` if there are rows, save the loss curves.

    Checkpoints and state go to `output_dir/training`, so that `output_dir` itself is free for the finished model;
    an interrupted training goes on from its last checkpoint there.
    """
    training = copy.copy(training)
    training.output_dir = str(Path(training.output_dir) / "training")
    training.push_to_hub = False  # what is published is the finished model, not its checkpoints
    training.remove_unused_columns = False  # the collators turn columns into what the model takes
    validation = data.get("validation")
    trainer = trainer_class(
        model=model,
        args=training,
        train_dataset=data["train"],
        eval_dataset=validation,
        data_collator=data_collator,
    )
    last = get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if validation is not None and len(validation):
        trainer.evaluate()
    trainer.save_state()
    return trainer


class ClipCollator:
    """Turns rows of clips, in numpy format, into the batch that a tokenizer's `forward` takes."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        column = MEDIA_COLUMNS[self.tokenizer.modality]
        return {self.tokenizer.main_input_name: self.tokenizer.preprocess([row[column] for row in rows])}
