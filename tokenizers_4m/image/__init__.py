from .configuration_image_tokenizer import ImageTokenizerConfig
from .modeling_image_tokenizer import ImageTokenizer

__all__ = ["ImageTokenizer", "ImageTokenizerConfig"]
