from tokenizers_4m.image.configuration_image_tokenizer import ImageTokenizerConfig
from tokenizers_4m.image.modeling_image_tokenizer import ImageTokenizer

__all__ = ["ImageTokenizer", "ImageTokenizerConfig"]
