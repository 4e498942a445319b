"""Training: the masking collator and the Trainer subclasses."""

from trainers.masking import MaskingCollator, real_token_share
from trainers.optimizer import MuonWithAdamW
from trainers.trainer import ClipCollator, Nano4MTrainer, Nano4MTrainingArguments, TokenizerTrainer, fit

__all__ = [
    "ClipCollator",
    "MaskingCollator",
    "MuonWithAdamW",
    "Nano4MTrainer",
    "Nano4MTrainingArguments",
    "TokenizerTrainer",
    "fit",
    "real_token_share",
]
