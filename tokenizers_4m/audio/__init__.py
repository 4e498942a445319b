from tokenizers_4m.audio.configuration_audio_tokenizer import AudioTokenizerConfig
from tokenizers_4m.audio.modeling_audio_tokenizer import AudioTokenizer

__all__ = ["AudioTokenizer", "AudioTokenizerConfig"]
