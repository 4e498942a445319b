"""The trainer of nano4M: everything random follows from the numbers of the draws, every target counts the same."""

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from modeling_nano4m import Nano4MModel
from trainers.ema import AveragedWeights
from trainers.masking import EvaluationCollator
from trainers.optimizer import MuonWithAdamW
from trainers.sampling import DrawnRows, DrawSampler, NumberedRows
from trainers.streaming import StreamedRows
from trainers.trainer import PartLossTrainer

STREAM_FILE = "stream.json"
logger = logging.get_logger(__name__)


@dataclass
class Nano4MTrainingArguments(TrainingArguments):
    """`TrainingArguments` and what nano4M adds to them.

    Args:
        muon_learning_rate: of Muon for the matrices, beside AdamW for all else (see `trainers.optimizer`); AdamW (or
            what `optim` names) for everything if None.
        ema_decay: evaluate and keep a moving average of the weights, of which a step keeps this share, in (0, 1); no
            average if None.
        report_to: integrations to log to, any that transformers knows; TensorBoard, where it is installed, if None.
        max_tokens: train until the model has seen so many real input and target tokens. The learning rate's schedule
            spans them, and `warmup_steps` must be a share of them, in [0, 1). `max_steps`, if given, stops earlier.
    """

    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "of Muon for the layers' matrices; no Muon if not given"}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "share of the averaged weights that a step keeps; no average if not given"}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "input and target tokens to train on, in place of max_steps"}
    )

    report_to: list[str] | None = field(
        default=None, metadata={"help": "integrations to log to, or none; tensorboard where installed if not given"}
    )

    def __post_init__(self):
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1")
        if self.ema_decay is not None and self.load_best_model_at_end and self.save_only_model:
            raise ValueError("save_only_model leaves out the averaged weights that load_best_model_at_end would load")
        for name in ("label_smoothing_factor", "neftune_noise_alpha"):
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)}: nano4M has none; leave it out")
        if self.report_to is None:
            self.report_to = ["tensorboard"] if is_tensorboard_available() else []
        # The collator turns columns into what the model takes.
        self.remove_unused_columns = False
        if self.max_tokens is not None:
            if self.max_tokens < 1:
                raise ValueError(f"max_tokens={self.max_tokens} must be at least 1")
            if self.warmup_steps >= 1:
                raise ValueError(
                    f"warmup_steps={self.warmup_steps} with max_tokens: give the share of the tokens, less than 1"
                )
            if self.max_steps <= 0:
                # Enough: no step sees less than one token.
                self.max_steps = self.max_tokens
        if self.accelerator_config is None:
            # Each process collates its own batches: of different lengths, they could not be cut out of one.
            self.accelerator_config = {"dispatch_batches": False}
        if self.ddp_find_unused_parameters is None:
            # Every parameter takes part in every batch, also the heads of absent modalities.
            self.ddp_find_unused_parameters = False
        super().__post_init__()


class StopAtTokens(TrainerCallback):
    """Ends a training, with a last log and checkpoint, once it has seen `max_tokens`."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.max_tokens is not None and state.num_input_tokens_seen >= args.max_tokens:
            control.should_training_stop = control.should_log = True
            control.should_save |= args.save_strategy != "no"
        return control


class Nano4MTrainer(PartLossTrainer):
    """Trains nano4M with a `MaskingCollator`.

    - The data set and row of every sample and the mask of every batch follow from its `draw` (see
      `trainers.sampling`), so a resumed training goes on bit for bit. A `datasets.Dataset` is wrapped accordingly.
      With `StreamedRows` and `ignore_data_skip` it goes on at once but without the rows that were in the buffers.
    - The loss of a step is the mean over modalities of the mean over all their targets in the step, however many
      micro-batches and processes these are spread over: N processes do what one does that accumulates N batches.
    - `tokens_seen` is logged: real input and target tokens of all processes so far.
    - Evaluation draws the same mask for a row every time, whatever rows share its batch, and measures the averaged
      weights if there are any. `eval_loss` is the mean of the modalities' losses, each over all of its targets; where
      rows are repeated to keep several processes busy, they count once.
    """

    # Each micro-batch's loss is its part of the whole step's, not a mean to be divided by their number.
    loss_is_scaled_for_ga = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if isinstance(self.train_dataset, datasets.Dataset):
            self.train_dataset = DrawnRows([self.train_dataset], seed=self.args.seed)
        if isinstance(self.train_dataset, StreamedRows) and self.args.ignore_data_skip:
            if self.args.dataloader_num_workers:
                raise ValueError("ignore_data_skip with a stream needs dataloader_num_workers=0")
        self.average = None if self.args.ema_decay is None else AveragedWeights(self.args.ema_decay)
        if self.average is not None:
            self.add_callback(self.average)
        self.add_callback(StopAtTokens)
        self._new_tokens = 0  # seen since `state.num_input_tokens_seen` was brought up to date
        self._evaluated: set[int] = set()

    def trained_model(self) -> Nano4MModel:
        """The model as it stands, whole and in evaluation mode.

        Where it is sharded every process must call this, and only the main one's has the trained weights.
        """
        if not self.is_fsdp_enabled:
            return self.accelerator.unwrap_model(self.model).eval()
        state_dict = self.accelerator.get_state_dict(self.model)
        model = Nano4MModel(self.model.config)
        model.generation_config = copy.deepcopy(self.model.generation_config)
        if self.is_world_process_zero():
            model.load_state_dict(state_dict)
        return model.eval()

    def _get_train_sampler(self, train_dataset=None) -> DrawSampler | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return DrawSampler(rows) if isinstance(rows, DrawnRows) else super()._get_train_sampler(rows)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        if rows is None:
            raise ValueError("evaluation requires an eval_dataset")
        rows = NumberedRows([rows]) if isinstance(rows, datasets.Dataset) else rows
        collator = self.data_collator
        masks = dataclasses.replace(collator, seed=0)
        self.data_collator = EvaluationCollator(masks, keep_draws=self.accelerator.num_processes > 1)
        try:
            return super().get_test_dataloader(rows)
        finally:
            self.data_collator = collator

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def is_finished(self) -> bool:
        budget = self.args.max_tokens
        return super().is_finished() or (budget is not None and self.state.num_input_tokens_seen >= budget)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._new_tokens = self._new_tokens + counts.sum()
            if self.args.max_tokens is not None:
                self._count_new_tokens()
        return batches, counts

    def _count_new_tokens(self) -> None:
        # Reading a number from a GPU waits until it has nothing to do; so not in every step, unless it is needed.
        self.state.num_input_tokens_seen += int(self._new_tokens)
        self._new_tokens = 0

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.LongTensor:
        """Real tokens in the micro-batches of a step, of all processes: the targets per modality, then the inputs."""
        modalities = torch.arange(len(self.model.config.modalities), device=device)
        counts = torch.zeros(len(modalities) + 1, dtype=torch.long, device=device)
        for batch in batch_samples:
            modality_ids, valid_mask = batch["target_modality_ids"].to(device), batch["target_valid_mask"].to(device)
            counts[:-1] += ((modality_ids[..., None] == modalities) & valid_mask[..., None]).sum((0, 1))
            counts[-1] += batch["input_valid_mask"].sum().to(device)
        return self.accelerator.reduce(counts)

    def _track_num_input_tokens(self, inputs) -> None:
        """Nothing is left to count: `get_batch_samples` did."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if num_items_in_batch is not None:
            inputs = {**inputs, "num_items_in_batch": num_items_in_batch[:-1]}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None:
            # Gradients are averaged over processes, and each holds but its part of the sum.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._count_new_tokens()
        if any(name == "loss" or name.endswith("_loss") for name in logs):
            logs["tokens_seen"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def _take_parts(self, training: bool, prefix: str) -> dict[str, float]:
        parts = super()._take_parts(training, prefix)
        if not training and parts:
            # The Trainer's own is a mean over batches, which depends on how the rows are batched.
            parts[prefix.removesuffix("_")] = sum(parts.values()) / len(parts)
        return parts

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        self._evaluated = set()
        if self.average is None or not self.is_in_train:
            return super().evaluation_loop(*args, **kwargs)
        with self.average.applied(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        if (draws := inputs.pop("draw", None)) is not None:
            inputs["target_valid_mask"] = inputs["target_valid_mask"] & self._first_time(draws)[:, None]
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _first_time(self, draws: torch.LongTensor) -> torch.BoolTensor:
        """Which rows of a batch no process has evaluated yet: the last batches are filled up with the first rows."""
        first_time = []
        for draw in self.accelerator.gather(draws).tolist():
            first_time.append(draw not in self._evaluated)
            self._evaluated.add(draw)
        start = len(draws) * self.accelerator.process_index
        return torch.tensor(first_time[start : start + len(draws)], device=draws.device)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        rate = self.args.muon_learning_rate
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

    def get_decay_parameter_names(self, model) -> list[str]:
        """Matrices only, as with Muon."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim == 2]

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> torch.optim.lr_scheduler.LRScheduler:
        if self.args.max_tokens is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.args.max_steps < self.args.max_tokens and self.is_world_process_zero():
            logger.warning(
                f"max_steps={self.args.max_steps} ends the training even if it has not seen "
                f"max_tokens={self.args.max_tokens}, which the learning rate's schedule spans, by then"
            )
        # One step of the schedule is one token.
        scheduler = super().create_scheduler(self.args.max_tokens, optimizer)
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(f"lr_scheduler_type={self.args.lr_scheduler_type.value} does not work with max_tokens")

        def at_tokens(factor):
            return lambda step: factor(min(self.state.num_input_tokens_seen, self.args.max_tokens))

        scheduler.lr_lambdas = [at_tokens(factor) for factor in scheduler.lr_lambdas]
        return scheduler

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._new_tokens = 0
        if self.average is not None:
            self.average.start(self.model)
            if resume_from_checkpoint is not None:
                self.average.load(resume_from_checkpoint, self.model)
        if isinstance(self.train_dataset, StreamedRows) and self.args.ignore_data_skip and resume_from_checkpoint:
            state = json.loads((Path(resume_from_checkpoint) / STREAM_FILE).read_text(encoding="utf-8"))
            self.train_dataset.load_state_dict(state)
        return prepared

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None:
            self.average.save(output_dir, self.model, self.args.should_save)
        if isinstance(self.train_dataset, StreamedRows) and self.args.ignore_data_skip and self.args.should_save:
            state = json.dumps(self.train_dataset.state_dict())
            (Path(output_dir) / STREAM_FILE).write_text(state, encoding="utf-8")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.load(self.state.best_model_checkpoint, self.model)
