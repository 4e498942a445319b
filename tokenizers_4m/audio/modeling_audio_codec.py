"""Audio tokenizer made of a neural codec of transformers: EnCodec, DAC or Mimi, behind the tokenizers' contract.

A codec turns the samples into several codes per frame by residual quantization (SoundStream, Zeghidour et al. 2021,
arXiv:2107.03312): EnCodec (Défossez et al. 2022, arXiv:2210.13438), DAC (Kumar et al. 2023, arXiv:2306.06546), Mimi
(Défossez et al. 2024, arXiv:2410.00037), whose first codebook is semantic.

    tokenizer = AudioCodecTokenizer.from_codec("kyutai/mimi", num_quantizers=4, clip_seconds=3.0)

A small DAC can be trained here. transformers' DAC as it comes does not learn from scratch in a few hundred steps: the
signal fades in narrow layers with its initial weights, and all latents fall to one code.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn
from transformers import AutoModel, DacModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.dac.modeling_dac import DacResidualUnit
from transformers.utils import can_return_tuple

from ..autoencoder import AutoencoderOutput
from ..contract import TokenizerContract
from ..quantizer import draw_seeds, follow_use, use_of_new_codes
from .codebook_order import codes_to_token_ids, token_ids_to_codes
from .configuration_audio_codec import AudioCodecTokenizerConfig
from .waveform_decoder import multi_resolution_stft_loss
from .waveforms import WaveformMedia

FFT_SIZES = (512, 1024, 2048)  # of the loss
DECAY = 0.95  # of the moving average of how often a code is taken
DEAD_CODE_THRESHOLD = 0.1  # of an equal share; as of `VectorQuantizer`


class ScaledDac(DacModel):
    """DAC whose layers pass a signal on as strong as it comes, and whose residual blocks start as the identity.

    Its first sounds are soft: loud ones would saturate its last function, a tanh.
    """

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            gain = 0.1 if module is self.decoder.conv2 else 1.0
            if any(module is block.conv2 for block in self.modules() if isinstance(block, DacResidualUnit)):
                gain = 0.0
            init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.ConvTranspose1d):
            # Each sample is made of kernel size by stride of its inputs.
            inputs = module.in_channels * module.kernel_size[0] / module.stride[0]
            init.normal_(module.weight, std=inputs**-0.5)


class AudioCodecTokenizer(WaveformMedia, TokenizerContract, PreTrainedModel):
    """Turns waveforms of `num_samples` samples into the ids of the codec's codes.

    Only DAC can be trained: the others have no gradient through their quantizers in transformers.
    """

    config: AudioCodecTokenizerConfig
    config_class = AudioCodecTokenizerConfig
    base_model_prefix = ""
    main_input_name = "waveform"

    def __init__(self, config: AudioCodecTokenizerConfig):
        super().__init__(config)
        codec = config.codec_config
        if codec.model_type == "dac":
            self.codec = ScaledDac(codec)
            # How often each code was taken lately, in training.
            self.register_buffer("code_use", torch.zeros(codec.n_codebooks, codec.codebook_size))
        else:
            self.codec = AutoModel.from_config(codec)
        # As loading sets it, so that what is loaded and saved again has the same configuration.
        codec.dtype = self.codec.dtype
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if module is self and self.config.codec_config.model_type == "dac":
            init.zeros_(self.code_use)

    @classmethod
    def from_codec(cls, name_or_path: str | Path, **config_fields) -> "AudioCodecTokenizer":
        """Wrap a codec as it was published, from a folder or the Hub; `config_fields` as `AudioCodecTokenizerConfig`.

        `sampling_rate` is the codec's own if it is not given.
        """
        codec = AutoModel.from_pretrained(name_or_path)
        fields = {"sampling_rate": codec.config.sampling_rate, **config_fields}
        tokenizer = cls(AudioCodecTokenizerConfig(codec_config=codec.config, **fields))
        tokenizer.codec.load_state_dict(codec.state_dict())
        return tokenizer.eval()

    @can_return_tuple
    def forward(self, waveform: torch.FloatTensor) -> AutoencoderOutput:
        """Reconstruct `waveform` `(batch, num_samples)` and score the result: `stft`, `l1`, in training `quantizer`.

        The `reconstruction` has the codec's sampling rate in training, else it is what `decode` returns.

        Raises:
            ValueError: a codec that has no gradient is to be trained.
        """
        losses = {}
        if self.training:
            if self.config.codec_config.model_type != "dac":
                raise ValueError(
                    f"a codec of type {self.config.codec_config.model_type!r} cannot be trained; load a published one "
                    "with AudioCodecTokenizer.from_codec, or choose codec_config of a 'dac'"
                )
            codec = self.config.codec_config
            if self.config.num_quantizers < codec.n_codebooks and not codec.quantizer_dropout:
                raise ValueError(
                    f"num_quantizers={self.config.num_quantizers}: a codec with {codec.n_codebooks} codebooks trains "
                    "them all together; choose codec_config with as many, or with a quantizer_dropout"
                )
            original = self._to_codec_rate(waveform)
            output = self.codec(original.to(self.dtype).unsqueeze(1))
            token_ids = self._in_order(output.audio_codes[:, : self.config.num_quantizers])
            reconstruction = _fit(output.audio_values, self.config.num_codec_samples).float()
            losses["quantizer"] = output.loss.mean()
            self._reseed_dead_codes(output.audio_codes, output.projected_latents.float())
        else:
            original = waveform.float()
            token_ids = self.encode(waveform)
            reconstruction = self.decode(token_ids)
        losses["stft"] = multi_resolution_stft_loss(reconstruction, original, FFT_SIZES)
        losses["l1"] = F.l1_loss(reconstruction, original)
        weights = {"quantizer": 1.0, "stft": self.config.stft_weight, "l1": self.config.l1_weight}
        loss = sum(weights[name] * value for name, value in losses.items())
        return AutoencoderOutput(loss, losses, reconstruction, token_ids)

    def encode(self, waveform: torch.FloatTensor) -> torch.LongTensor:
        """Waveform `(batch, num_samples)` in [-1, 1] to ids `(batch, num_tokens)`, in `codebook_order`.

        Raises:
            ValueError: if `waveform` has another shape.
        """
        samples = self._to_codec_rate(waveform).to(self.dtype).unsqueeze(1)
        number = self.config.num_quantizers
        if self.config.codec_config.model_type == "encodec":
            # The codes of a lower bandwidth are the first of those of a higher one.
            bandwidth = max(self.config.codec_config.target_bandwidths)
            codes = self.codec.encode(samples, bandwidth=bandwidth).audio_codes[0][:, :number]
        elif self.config.codec_config.model_type == "dac":
            codes = self.codec.encode(samples, n_quantizers=number).audio_codes[:, :number]
        else:
            codes = self.codec.encode(samples, num_quantizers=number).audio_codes
        return self._in_order(codes)

    def decode(self, token_ids: torch.LongTensor) -> torch.FloatTensor:
        """Ids `(batch, num_tokens)` to a waveform `(batch, num_samples)` float32 at `config.sampling_rate`.

        Raises:
            ValueError: if the shape is wrong or an id is outside the vocabulary.
        """
        self.check_token_ids(token_ids)
        config = self.config
        codes = token_ids_to_codes(token_ids, config.codebook_order, config.num_quantizers, config.codebook_size)
        if config.codec_config.model_type == "encodec":
            samples = self.codec.decode(codes.unsqueeze(0), [None]).audio_values
        else:
            samples = self.codec.decode(audio_codes=codes).audio_values
        samples = _fit(samples.reshape(len(codes), -1).float(), config.num_codec_samples)
        waveform = torchaudio.functional.resample(samples, config.codec_config.sampling_rate, config.sampling_rate)
        return _fit(waveform, config.num_samples).clamp(-1, 1)

    @torch.no_grad()
    def _reseed_dead_codes(self, audio_codes: torch.LongTensor, projected_latents: torch.Tensor) -> None:
        """Put codes that are hardly taken any more where latents are far from theirs, all at the first step.

        Args:
            audio_codes: `(batch, n_codebooks, frames)`; projected_latents: `(batch, n_codebooks * dim, frames)`.
        """
        parts = projected_latents.chunk(len(self.code_use), dim=1)
        for use, quantizer, ids, latents in zip(
            self.code_use, self.codec.quantizer.quantizers, audio_codes.unbind(1), parts, strict=True
        ):
            ids, latents = ids.flatten(), latents.transpose(1, 2).flatten(0, 1)
            dead, num_latents = follow_use(use, ids, DECAY, DEAD_CODE_THRESHOLD)
            if dead.any():
                codes = quantizer.codebook.weight.data  # the step that is under way does not need its old values
                error = (F.normalize(latents) - F.normalize(codes[ids].float())).square().sum(-1)
                codes[dead] = draw_seeds(latents, error, len(use)).to(codes)[dead]
                use[dead] = use_of_new_codes(num_latents, len(use), DEAD_CODE_THRESHOLD)

    def _to_codec_rate(self, waveform: torch.Tensor) -> torch.Tensor:
        """`(batch, num_codec_samples)`, float32."""
        self.check_waveform(waveform)
        rates = self.config.sampling_rate, self.config.codec_config.sampling_rate
        return _fit(torchaudio.functional.resample(waveform.float(), *rates), self.config.num_codec_samples)

    def _in_order(self, codes: torch.LongTensor) -> torch.LongTensor:
        return codes_to_token_ids(codes, self.config.codebook_order, self.config.codebook_size)


def _fit(waveform: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Cut, or fill up with silence, to `(batch, num_samples)`."""
    waveform = waveform[:, :num_samples]
    return F.pad(waveform, (0, num_samples - waveform.shape[1]))
