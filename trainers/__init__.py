"""Training: the masking collator, the Trainer subclasses, and the publishing of what they made."""

from trainers.masking import MaskingCollator, real_token_share
from trainers.model_card import changed_settings, create_repository, upload, write_model_card
from trainers.optimizer import MuonWithAdamW
from trainers.trainer import ClipCollator, Nano4MTrainer, Nano4MTrainingArguments, TokenizerTrainer, fit

__all__ = [
    "ClipCollator",
    "MaskingCollator",
    "MuonWithAdamW",
    "Nano4MTrainer",
    "Nano4MTrainingArguments",
    "TokenizerTrainer",
    "changed_settings",
    "create_repository",
    "fit",
    "real_token_share",
    "upload",
    "write_model_card",
]
