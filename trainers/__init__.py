"""Training: the masking collator and the Trainer subclasses."""

from trainers.masking import MaskingCollator, real_token_share
from trainers.nano4m_trainer import Nano4MTrainer, Nano4MTrainingArguments
from trainers.optimizer import MuonWithAdamW
from trainers.sampling import DrawnRows, DrawSampler, NumberedRows
from trainers.streaming import StreamedRows
from trainers.trainer import ClipCollator, TokenizerTrainer, fit

__all__ = [
    "ClipCollator",
    "DrawSampler",
    "DrawnRows",
    "MaskingCollator",
    "MuonWithAdamW",
    "Nano4MTrainer",
    "Nano4MTrainingArguments",
    "NumberedRows",
    "StreamedRows",
    "TokenizerTrainer",
    "fit",
    "real_token_share",
]
