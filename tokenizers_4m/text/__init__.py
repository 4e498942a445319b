from .configuration_text_tokenizer import TextTokenizerConfig
from .modeling_text_tokenizer import TextTokenizer

__all__ = ["TextTokenizer", "TextTokenizerConfig"]
