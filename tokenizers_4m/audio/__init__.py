from .configuration_audio_tokenizer import AudioTokenizerConfig
from .modeling_audio_tokenizer import AudioTokenizer

__all__ = ["AudioTokenizer", "AudioTokenizerConfig"]
