"""Image, audio and text tokenizers. Importing this package registers them with the Auto classes."""

from pathlib import Path

from transformers import AutoConfig, AutoModel

from .audio import AudioCodecTokenizer, AudioCodecTokenizerConfig, AudioTokenizer, AudioTokenizerConfig
from .contract import TokenizerConfig4M, TokenizerContract
from .image import (
    ImageTokenizer,
    ImageTokenizerConfig,
    ImageViT,
    ImageViTConfig,
    ImageVQGAN,
    ImageVQGANConfig,
    convert_weights,
)
from .text import TextTokenizer, TextTokenizerConfig, TextVQTokenizer, TextVQTokenizerConfig

# What `load_tokenizers` looks for, one folder each.
MODALITIES = ("image", "audio", "text")
# What `train_tokenizer.py` can train; a modality may have several kinds.
TOKENIZERS = {
    "image": ImageTokenizer,
    "image_vqgan": ImageVQGAN,
    "image_vit": ImageViT,
    "audio": AudioTokenizer,
    "audio_codec": AudioCodecTokenizer,
    "text": TextTokenizer,
    "text_vq": TextVQTokenizer,
}

for _tokenizer in TOKENIZERS.values():
    AutoConfig.register(_tokenizer.config_class.model_type, _tokenizer.config_class, exist_ok=True)
    AutoModel.register(_tokenizer.config_class, _tokenizer, exist_ok=True)


def load_tokenizers(folder: str | Path) -> dict[str, TokenizerContract]:
    """Load the tokenizers that there are of `folder/image`, `folder/audio` and `folder/text`, in eval mode.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = [name for name in MODALITIES if (Path(folder) / name / "config.json").exists()]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no tokenizer in the folders {', '.join(MODALITIES)} there; make them with train_tokenizer.py"
        )
    return {name: AutoModel.from_pretrained(Path(folder) / name).eval() for name in found}


__all__ = [
    "MODALITIES",
    "TOKENIZERS",
    "AudioCodecTokenizer",
    "AudioCodecTokenizerConfig",
    "AudioTokenizer",
    "AudioTokenizerConfig",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "ImageViT",
    "ImageViTConfig",
    "ImageVQGAN",
    "ImageVQGANConfig",
    "TokenizerContract",
    "TextTokenizer",
    "TextTokenizerConfig",
    "TextVQTokenizer",
    "TextVQTokenizerConfig",
    "TokenizerConfig4M",
    "convert_weights",
    "load_tokenizers",
]
