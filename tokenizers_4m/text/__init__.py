from .configuration_text_tokenizer import TextTokenizerConfig
from .configuration_text_vq_tokenizer import TextVQTokenizerConfig
from .modeling_text_tokenizer import TextTokenizer
from .modeling_text_vq_tokenizer import TextVQTokenizer

__all__ = ["TextTokenizer", "TextTokenizerConfig", "TextVQTokenizer", "TextVQTokenizerConfig"]
