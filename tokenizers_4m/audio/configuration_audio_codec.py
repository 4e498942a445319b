"""Configuration of the audio tokenizer that wraps a neural codec of transformers."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .codebook_order import CodebookOrder, order_axes, order_vocab_size
from .waveforms import AudioConfig

# What each codec calls the number of its codebooks, and the samples that become one frame of codes.
_FIELDS = {
    "dac": ("n_codebooks", "hop_length"),
    "encodec": ("num_quantizers", "hop_length"),
    "mimi": ("num_quantizers", "frame_size"),
}


@strict
class AudioCodecTokenizerConfig(AudioConfig):
    """The codec, which of its codebooks are used, and the clips.

    Args:
        codec_config: of a `DacModel`, `EncodecModel` or `MimiModel` of transformers, as an object or as a dictionary
            with its `model_type`.
        sampling_rate: of the waveforms that go in and come out, Hz; the codec may have another one.
        clip_seconds: length of a clip.
        num_quantizers: how many of the codec's codebooks are used, the coarsest first; all if not given.
        codebook_order: in which order their ids follow each other, see `codebook_order.py`.
        stft_weight, l1_weight: of the losses on the reconstruction when the codec is trained: on the magnitudes of its
            Fourier transforms, and on its samples.

    Raises:
        ValueError: the codec is none of these, keeps more of a sound than codes, or has fewer codebooks.
    """

    model_type = "nano4m_audio_codec_tokenizer"
    sub_configs_defaults = {"codec_config": SubConfigSpec(config_class=AutoConfig, model_type="dac")}

    codec_config: dict[str, Any] | PreTrainedConfig | None = None
    sampling_rate: int = 16000
    clip_seconds: float = 3.0
    num_quantizers: int | None = None
    codebook_order: CodebookOrder = "flattened"
    stft_weight: float = 1.0
    l1_weight: float = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.num_quantizers is None and self.codec_config.model_type in _FIELDS:
            self.num_quantizers = getattr(self.codec_config, _FIELDS[self.codec_config.model_type][0])

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        codec = self.codec_config
        if codec.model_type not in _FIELDS:
            raise ValueError(f"codec_config is of a {codec.model_type!r}; known codecs are {', '.join(_FIELDS)}")
        if getattr(codec, "audio_channels", 1) != 1:
            raise ValueError(f"codec_config has audio_channels={codec.audio_channels}; only mono codecs are supported")
        if getattr(codec, "normalize", False) or getattr(codec, "chunk_length_s", None) is not None:
            raise ValueError(
                "codec_config has normalize or chunk_length_s: such a codec keeps the loudness of chunks beside the "
                "codes, which token ids cannot hold"
            )
        available = getattr(codec, _FIELDS[codec.model_type][0])
        least = getattr(codec, "num_semantic_quantizers", 1)
        if self.num_quantizers is not None and not least <= self.num_quantizers <= available:
            raise ValueError(f"num_quantizers={self.num_quantizers} must be from {least} to the codec's {available}")

    @property
    def codebook_size(self) -> int:
        """Codes per codebook."""
        return self.codec_config.codebook_size

    @property
    def num_frames(self) -> int:
        """Frames of codes per clip; the last one may reach past the end of the clip."""
        frame_size = getattr(self.codec_config, _FIELDS[self.codec_config.model_type][1])
        return math.ceil(round(self.clip_seconds * self.codec_config.sampling_rate) / frame_size)

    @property
    def num_codec_samples(self) -> int:
        """Samples at the codec's own rate that `num_frames` stand for."""
        return self.num_frames * getattr(self.codec_config, _FIELDS[self.codec_config.model_type][1])

    @property
    def vocab_size(self) -> int:
        return order_vocab_size(self.codebook_order, self.codebook_size)

    @property
    def token_axes(self) -> dict[str, int]:
        return order_axes(self.codebook_order, self.num_frames, self.num_quantizers)
