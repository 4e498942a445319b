from .configuration_audio_codec import AudioCodecTokenizerConfig
from .configuration_audio_tokenizer import AudioTokenizerConfig
from .modeling_audio_codec import AudioCodecTokenizer
from .modeling_audio_tokenizer import AudioTokenizer

__all__ = ["AudioCodecTokenizer", "AudioCodecTokenizerConfig", "AudioTokenizer", "AudioTokenizerConfig"]
