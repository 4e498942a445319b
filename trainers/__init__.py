"""Training: the masking collator and the Trainer subclasses."""

from trainers.masking import MaskingCollator
from trainers.trainer import ClipCollator, Nano4MTrainer, TokenizerTrainer, fit

__all__ = ["ClipCollator", "MaskingCollator", "Nano4MTrainer", "TokenizerTrainer", "fit"]
