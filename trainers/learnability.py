"""How well a small nano4M learns to predict the tokens of one modality in a fixed number of steps.

Reconstruction is half of what makes a tokenizer good: where clips that look or sound the same get different ids,
decoding is fine and a model can learn nothing but frequencies. Model, masks and budget are the same for all
tokenizers, so that the nats per token of two of them can be compared, best beside the entropy of the ids; and so can
what a judge reads in the clips that such a model makes when it is told their attributes.
"""

import contextlib
import io
import tempfile

import datasets
import numpy as np
import torch
from transformers import set_seed

from dataset_scripts.tokenization import model_modalities
from modeling_nano4m import Nano4MConfig, Nano4MModel
from trainers.masking import MaskingCollator
from trainers.nano4m_trainer import Nano4MTrainer, Nano4MTrainingArguments
from trainers.trainer import fit

SIZE = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.08,
}
TRAINING = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-3,
    "muon_learning_rate": 4e-3,
    "adam_beta2": 0.95,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
}
MAX_TOKENS = 64  # asked for, and at most shown, per sample
MADE_AT_ONCE = 64  # clips


def nats_per_token(
    described: dict,
    token_ids: dict[str, list[np.ndarray]],
    steps: int,
    token_vectors: torch.Tensor | None = None,
    use_cpu: bool = True,
) -> float:
    """Train on the rows of "train", in as many steps, and measure the loss on those of "validation".

    A row's tokens are completed from a random part of them, as in any step of generation.

    Args:
        described: a tokenizer's `describe()`.
        token_ids: ids of each row, without padding, for the splits "train" and "validation".
        token_vectors: a tokenizer's `token_vectors()`, which the model's embeddings start from.

    Returns:
        Mean negative log-likelihood of the targets on validation, nats per token.
    """
    rows = {split: datasets.Dataset.from_dict({"tokens_ids": ids}) for split, ids in token_ids.items()}
    options = {"unconditional_probability": 0.0}
    trainer = _trained(model_modalities({"tokens": described}), rows, options, steps, token_vectors, use_cpu)
    return next(entry["eval_loss"] for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)


def make_from_attributes(
    described: dict,
    token_ids: list[np.ndarray],
    attributes: list[dict[str, str]],
    wanted: list[dict[str, str]],
    steps: int,
    token_vectors: torch.Tensor | None = None,
    use_cpu: bool = True,
) -> torch.LongTensor:
    """Train on clips whose attributes are known, and let the model make the tokens of clips from theirs.

    Args:
        described, steps, token_vectors: as for `nats_per_token`.
        token_ids, attributes: of each clip to learn from; the ids without padding, the attributes by name, the same
            names for all.
        wanted: attributes of each clip to make.

    Returns:
        `(clips, num_tokens)` int64 ids, as the tokenizer decodes them.
    """
    values = sorted({value for truth in [*attributes, *wanted] for value in truth.items()})
    numbers = {value: number for number, value in enumerate(values)}

    def as_ids(truths: list[dict[str, str]]) -> list[list[int]]:
        return [[numbers[value] for value in sorted(truth.items())] for truth in truths]

    modalities = model_modalities({"tokens": described})
    modalities["attributes"] = {"vocab_size": len(values), "token_axes": [["attribute", len(wanted[0])]]}
    rows = {"train": datasets.Dataset.from_dict({"tokens_ids": token_ids, "attributes_ids": as_ids(attributes)})}
    options = {"unconditional_probability": 0.1, "target_weights": {"attributes": 0.0}}
    model = _trained(modalities, rows, options, steps, token_vectors, use_cpu).model.eval()
    asked = torch.tensor(as_ids(wanted), device=model.device).split(MADE_AT_ONCE)
    made = [
        model.generate({"attributes": some}, "tokens", seed=number * MADE_AT_ONCE) for number, some in enumerate(asked)
    ]
    return torch.cat(made).cpu()


def _trained(
    modalities: dict,
    rows: dict[str, datasets.Dataset],
    options: dict,
    steps: int,
    token_vectors: torch.Tensor | None,
    use_cpu: bool,
) -> Nano4MTrainer:
    """The trainer of the small nano4M after so many steps; `options` are those of the collator."""
    set_seed(0)
    model = Nano4MModel(Nano4MConfig(modalities=modalities, **SIZE))
    if token_vectors is not None:
        model.start_from_token_vectors("tokens", token_vectors.float().cpu())
    collator = MaskingCollator(model.config.modalities, MAX_TOKENS, MAX_TOKENS, condition_probability=1.0, **options)
    # Without a progress bar the Trainer prints its logs, which would stand before every table.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        training = Nano4MTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=use_cpu,
            **TRAINING,
        )
        return fit(Nano4MTrainer, model, training, rows, collator)
