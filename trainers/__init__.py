"""Training: the masking collator and the Trainer subclasses."""

from trainers.masking import MaskingCollator, real_token_share
from trainers.model_card import create_repository, upload, write_model_card
from trainers.nano4m_trainer import Nano4MTrainer, Nano4MTrainingArguments
from trainers.optimizer import MuonWithAdamW
from trainers.sampling import DrawnRows, DrawSampler, NumberedRows
from trainers.settings import changed_settings
from trainers.streaming import StreamedRows
from trainers.tokenizer_trainer import TokenizerTrainer, TokenizerTrainingArguments
from trainers.trainer import ClipCollator, fit

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
    "TokenizerTrainingArguments",
    "changed_settings",
    "create_repository",
    "fit",
    "real_token_share",
    "upload",
    "write_model_card",
]
