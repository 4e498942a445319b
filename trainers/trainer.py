"""What the Trainers have in common: every part of the loss is logged, and an interrupted training goes on."""

import atexit
import copy
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from dataset_scripts.tokenization import MEDIA_COLUMNS
from trainers.settings import check_settings, settings_of


class LogWhenSaving(TrainerCallback):
    """Logs at every checkpoint: a mean over steps of which some came before it could not be resumed."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save
        return control

    on_epoch_end = on_step_end


class PartLossTrainer(Trainer):
    """Logs the `losses` of the model's output beside the loss, as means since the last log; a process uses one GPU.

    A part with `num_targets` counts by them, so that a batch with few targets weighs little and one with none
    nothing.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Else the Trainer would share every batch out over all GPUs it sees, by nn.DataParallel.
        self.args._n_gpu = min(1, self.args.n_gpu)
        self._train_batch_size = self.args.train_batch_size
        self.add_callback(LogWhenSaving)
        self._sums = {True: defaultdict(float), False: defaultdict(float)}
        self._counts = {True: defaultdict(float), False: defaultdict(float)}
        # The model averages its own loss; the Trainer must not divide by a number of labels.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        self.add_losses(model, inputs, outputs)
        for name, value in outputs.losses.items():
            count = outputs.num_targets[name] if outputs.get("num_targets") is not None else 1
            self.count_part(model.training, name, value, count)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def add_losses(self, model, inputs, outputs) -> None:
        """Called with the model's output, to add to its `losses` and change its `loss`."""

    def count_part(self, training: bool, name: str, value: torch.Tensor, count=1) -> None:
        """Let `value`, a mean over `count`, enter the next log."""
        # Stays on the device: reading a number out would make every step wait for it.
        self._sums[training][name] += value.detach() * count
        self._counts[training][name] += count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._take_parts(training=True, prefix="loss_"))
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """Under all of `evaluate` and `predict`; the parts are metrics, too, whatever the prefix."""
        for sums in (self._sums[False], self._counts[False]):  # what an evaluation that was broken off left
            sums.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(self._take_parts(training=False, prefix=f"{metric_key_prefix}_loss_"))
        return output

    def is_finished(self) -> bool:
        """Whether no step is left to train."""
        return self.state.global_step >= self.state.max_steps

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.is_finished():
            # Else a finished training that is resumed in the middle of an epoch would go on for one step.
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        self.on_evaluated(outputs)
        return loss.detach().float(), None, None

    def on_evaluated(self, outputs) -> None:
        """Called with the output of every evaluation batch."""

    def _take_parts(self, training: bool, prefix: str) -> dict[str, float]:
        sums, counts = self._sums[training], self._counts[training]
        names = sorted(sums)
        totals = [[float(sums[name]), float(counts[name])] for name in names]
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(torch.tensor(totals, device=self.args.device)).tolist()
        sums.clear()
        counts.clear()
        return {f"{prefix}{name}": total / count for name, (total, count) in zip(names, totals, strict=True) if count}


def fit(trainer_class: type[Trainer], model, training: TrainingArguments, data: Mapping, data_collator) -> Trainer:
    """Train `model` on `data["train"]`, evaluate it on `data["validation"]` if there are rows, save the loss curves.

    Checkpoints and state go to `output_dir/training`, so that `output_dir` itself is free for the finished model;
    an interrupted training goes on from its last checkpoint there, one that is finished when it is to be longer.

    Returns:
        The trainer, with the trained model and the `state.log_history`.

    Raises:
        ValueError: `output_dir` holds the checkpoints of a training with other settings, or on other data.
    """
    training = copy.copy(training)
    training.output_dir = str(Path(training.output_dir) / "training")
    training.push_to_hub = False  # what is published is the finished model, not its checkpoints
    training.remove_unused_columns = False  # the collators turn columns into what the model takes
    validation = data.get("validation")
    checkpoint = last_checkpoint(training.output_dir)
    settings = settings_of(training, model, data_collator, data)
    check_settings(training.output_dir, settings, checkpoint is not None, training.process_index == 0)
    trainer = trainer_class(
        model=model,
        args=training,
        train_dataset=data["train"],
        eval_dataset=validation,
        data_collator=data_collator,
    )
    if training.world_size > 1:
        # gloo's threads let go of the tensors of a finished operation a little later, and need Python for it: one
        # that comes to it while Python ends aborts the process. Asleep, the main thread leaves them Python.
        atexit.register(time.sleep, 0.1)
    trainer.train(resume_from_checkpoint=checkpoint)
    if validation is not None and len(validation):
        trainer.evaluate()
    trainer.save_state()
    return trainer


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint; one that was being written when training was killed lacks its last file."""
    checkpoints = [path.parent for path in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return str(max(checkpoints, key=lambda path: int(path.name.split("-")[1]))) if checkpoints else None


class ClipCollator:
    """Turns rows of clips, in numpy format, into the batch that a tokenizer's `forward` takes."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        column = MEDIA_COLUMNS[self.tokenizer.modality]
        return {self.tokenizer.main_input_name: self.tokenizer.preprocess([row[column] for row in rows])}
