from tokenizers_4m.text.configuration_text_tokenizer import TextTokenizerConfig
from tokenizers_4m.text.modeling_text_tokenizer import TextTokenizer

__all__ = ["TextTokenizer", "TextTokenizerConfig"]
