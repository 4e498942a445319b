"""Training: the masking collator and the Trainer subclasses."""

from trainers.masking import MaskingCollator
from trainers.nano4m_trainer import Nano4MTrainer, Nano4MTrainingArguments
from trainers.optimizer import MuonWithAdamW
from trainers.sampling import DrawnRows, NumberedRows
from trainers.streaming import StreamedRows
from trainers.trainer import ClipCollator, TokenizerTrainer, fit

__all__ = [
    "ClipCollator",
    "DrawnRows",
    "MaskingCollator",
    "MuonWithAdamW",
    "Nano4MTrainer",
    "Nano4MTrainingArguments",
    "NumberedRows",
    "StreamedRows",
    "TokenizerTrainer",
    "fit",
]
