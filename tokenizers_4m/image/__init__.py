from .configuration_image_tokenizer import ImageTokenizerConfig
from .configuration_image_vit import ImageViTConfig
from .configuration_image_vqgan import ImageVQGANConfig
from .convert_weights import convert_weights
from .modeling_image_tokenizer import ImageTokenizer
from .modeling_image_vit import ImageViT
from .modeling_image_vqgan import ImageVQGAN

__all__ = [
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "ImageVQGAN",
    "ImageVQGANConfig",
    "ImageViT",
    "ImageViTConfig",
    "convert_weights",
]
