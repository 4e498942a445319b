"""The trainer of tokenizers, with the losses that VQGAN adds to the error of the reconstruction."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalLoopOutput

from tokenizers_4m.quantizer import codebook_usage
from trainers.adversary import Adversary, PatchDiscriminator, SpectrogramDiscriminator, adaptive_weight
from trainers.perceptual import PERCEPTUAL, perceptual_distance, vgg_weights
from trainers.reconstructions import NUM_CLIPS, show_reconstructions
from trainers.trainer import PartLossTrainer


@dataclass
class TokenizerTrainingArguments(TrainingArguments):
    """`TrainingArguments` and the losses of tokenizers that are off unless they have a weight.

    Image tokenizers have both; audio tokenizers with a learned waveform decoder have the adversarial one.

    Args:
        perceptual_weight: of the perceptual distance between picture and reconstruction; VQGAN's is 1.
        perceptual: `lpips`, or `laplacian`, which needs no weights (see `trainers.perceptual`); LPIPS if its weights
            are at hand, if not given.
        adversarial_weight: of the discriminator's judgement, before it is balanced with the other losses; VQGAN's is
            0.8.
        adversarial_start: first step with a discriminator; before it, reconstructions are too easily told.
        discriminator_channels, discriminator_layers: see `PatchDiscriminator` and `SpectrogramDiscriminator` of
            `trainers.adversary`.
        discriminator_learning_rate: constant.
    """

    perceptual_weight: float = field(default=0.0, metadata={"help": "of the perceptual loss"})
    perceptual: str | None = field(default=None, metadata={"help": f"{' or '.join(PERCEPTUAL)}; what is at hand"})
    adversarial_weight: float = field(default=0.0, metadata={"help": "of the discriminator's judgement"})
    adversarial_start: int = field(default=0, metadata={"help": "first step with a discriminator"})
    discriminator_channels: int = field(default=64, metadata={"help": "after its first convolution"})
    discriminator_layers: int = field(default=3, metadata={"help": "convolutions that halve the resolution"})
    discriminator_learning_rate: float = field(default=1e-4, metadata={"help": "of the discriminator, constant"})

    def __post_init__(self):
        for name in ("perceptual_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.perceptual is None and self.perceptual_weight:
            # Written down with the settings, so that a resumed training takes the same on any machine.
            self.perceptual = "lpips" if vgg_weights().is_file() else "laplacian"
        if self.perceptual not in (None, *PERCEPTUAL):
            raise ValueError(f"perceptual={self.perceptual!r} must be one of {', '.join(PERCEPTUAL)}")
        if self.adversarial_weight and self.fp16:
            raise ValueError("adversarial_weight with fp16: the discriminator trains in float32 or with bf16")
        super().__post_init__()


class TokenizerTrainer(PartLossTrainer):
    """Trains a tokenizer and reports how much of the codebook the evaluation clips use.

    The `metrics` of the model's output, one number a clip, are reported as means over the evaluation clips, by
    `predict` and of each of several evaluation sets, too. With `report_to` TensorBoard, some of these clips and their
    reconstructions are written for each evaluation.

    Image tokenizers may have two more losses: `perceptual`, and `adversarial` by a discriminator that learns beside
    the tokenizer and is kept in its checkpoints, but not in the tokenizer. Evaluation leaves out the adversarial one,
    of which the scale changes as the discriminator learns. Audio tokenizers may have it, too, for what their learned
    waveform decoder makes.

    Raises:
        ValueError: a loss has a weight that the tokenizer does not have, or pictures are too small for it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._evaluated_ids = []
        self._evaluated_metrics = defaultdict(list)
        self._judged = None
        self.perceptual = self.adversary = None
        training = self.args
        if training.perceptual_weight:
            if self.model.config.modality != "image":
                raise ValueError("perceptual_weight: only image tokenizers have this loss")
            self.perceptual = perceptual_distance(training.perceptual).to(training.device)
        if training.adversarial_weight:
            discriminator = discriminator_for(self.model, training)
            self.adversary = Adversary(discriminator, training.discriminator_learning_rate, self.accelerator)

    def add_losses(self, model, inputs, outputs) -> None:
        if self.perceptual is None and self.adversary is None:
            return
        tokenizer = self.accelerator.unwrap_model(model)
        real, made = real_and_made(tokenizer, inputs, outputs)
        if self.perceptual is not None:
            with self.accelerator.autocast():
                outputs.losses["perceptual"] = self.perceptual(made, real)
            outputs.loss = outputs.loss + self.args.perceptual_weight * outputs.losses["perceptual"]
        if model.training and self.adversary is not None and self.state.global_step >= self.args.adversarial_start:
            with self.accelerator.autocast():
                adversarial = self.adversary.judge(made)
            balance = adaptive_weight(outputs.loss, adversarial, tokenizer.last_layer)
            outputs.losses |= {"adversarial": adversarial, "adaptive_weight": balance}
            outputs.loss = outputs.loss + self.args.adversarial_weight * balance * adversarial
            self._judged = real, made.detach()

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._judged is not None:
            with self.accelerator.autocast():
                discriminator_loss = self.adversary.learn(*self._judged, self.current_gradient_accumulation_steps)
            self.count_part(True, "discriminator", discriminator_loss)
            self._judged = None
            if self.accelerator.sync_gradients:
                self.adversary.step()
        return loss

    def on_evaluated(self, outputs) -> None:
        self._evaluated_ids.append(self.accelerator.gather_for_metrics(outputs.token_ids).cpu())
        for name, values in (outputs.get("metrics") or {}).items():
            self._evaluated_metrics[name].append(self.accelerator.gather_for_metrics(values).cpu())

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._evaluated_ids.clear()  # what an evaluation that was broken off left
        self._evaluated_metrics.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._evaluated_ids:
            found = codebook_usage(torch.cat(self._evaluated_ids), self.model.config.vocab_size)
            found |= {name: float(torch.cat(values).mean()) for name, values in self._evaluated_metrics.items()}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        clips = self.eval_dataset if eval_dataset is None else eval_dataset
        clips = self.eval_dataset[clips] if isinstance(clips, str) else clips
        boards = [c for c in self.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
        if not boards or boards[0].tb_writer is None:  # only the first process has one
            return metrics
        if isinstance(clips, dict) or not len(clips):  # each set of several is evaluated by a call of its own
            return metrics
        tokenizer = self.accelerator.unwrap_model(self.model).eval()
        rows = [clips[number] for number in range(min(NUM_CLIPS, len(clips)))]
        batch = self.data_collator(rows)[tokenizer.main_input_name].to(tokenizer.device)
        title = "reconstructions" if metric_key_prefix == "eval" else f"{metric_key_prefix}_reconstructions"
        show_reconstructions(boards[0].tb_writer, tokenizer, batch, self.state.global_step, title)
        return metrics

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.adversary is not None and self.args.should_save:
            self.adversary.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.adversary is not None and checkpoint is not None:
            self.adversary.load(checkpoint)


def discriminator_for(tokenizer, training: TokenizerTrainingArguments) -> nn.Module:
    """The discriminator of what a tokenizer makes; ValueError if it makes nothing that one could judge."""
    config, sizes = tokenizer.config, (training.discriminator_channels, training.discriminator_layers)
    if getattr(tokenizer, "last_layer", None) is None:
        raise ValueError(
            "adversarial_weight: only image tokenizers and audio tokenizers with waveform_decoder=istft have it, "
            f"not this {config.model_type}"
        )
    if config.modality == "audio":
        return SpectrogramDiscriminator((config.fft_size // 2, config.fft_size, 2 * config.fft_size), *sizes)
    smallest = 3 * 2**training.discriminator_layers
    if config.image_size < smallest:
        raise ValueError(
            f"discriminator_layers={training.discriminator_layers} needs pictures of at least {smallest} pixels, "
            f"these have {config.image_size}"
        )
    return PatchDiscriminator(*sizes)


def real_and_made(tokenizer, inputs, outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """What the tokenizer was given and what it made of it, float32, as perceptual loss and discriminator take it.

    Pictures `(frames, 3, height, width)` in [-1, 1], whatever the tokenizer's normalisation, or waveforms
    `(batch, samples)`: those parts of the clips that the waveform decoder is trained on.
    """
    if tokenizer.modality == "audio":
        # Nothing but zeros fills clips up. It is not judged: made the same on both sides, it cannot be told apart.
        sounding = (outputs.original != 0).flip(1).cumsum(1).flip(1) > 0
        return outputs.original, outputs.waveform * sounding
    mean, std = tokenizer.config.image_mean, tokenizer.config.image_std
    pictures = inputs[tokenizer.main_input_name], outputs.reconstruction
    return tuple((batch.flatten(0, 1).float() * std + mean) * 2 - 1 for batch in pictures)
