"""nano4M, the any-to-any model. Importing this package registers it with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .configuration_nano4m import Nano4MConfig
from .modeling_nano4m import Nano4MModel, Nano4MOutput, Nano4MPreTrainedModel
from .pipeline_nano4m import Nano4MPipeline, Nano4MPipelineOutput
from .scheduling_unmasking import UnmaskingScheduler

AutoConfig.register(Nano4MConfig.model_type, Nano4MConfig, exist_ok=True)
AutoModel.register(Nano4MConfig, Nano4MModel, exist_ok=True)
AutoModelForPreTraining.register(Nano4MConfig, Nano4MModel, exist_ok=True)

# Saves the code beside the weights: the folder then loads elsewhere too, with `trust_remote_code=True`.
Nano4MConfig.register_for_auto_class()
Nano4MModel.register_for_auto_class("AutoModel")

__all__ = [
    "Nano4MConfig",
    "Nano4MModel",
    "Nano4MOutput",
    "Nano4MPipeline",
    "Nano4MPipelineOutput",
    "Nano4MPreTrainedModel",
    "UnmaskingScheduler",
]
