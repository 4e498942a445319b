"""Audio tokenizer: a vector-quantized autoencoder of log-mel spectrograms.

The waveform becomes a log-mel spectrogram, a few frames of it at a time become one latent, ConvNeXt blocks let it see
its neighbours, a (residual) vector quantizer makes ids of it, and a decoder restores the spectrogram, as in SpecVQGAN
(Iashin and Rahtu 2021, arXiv:2110.08791) but with the whole spectrum of a moment in one token. No layer but the first
and the last runs faster than the tokens. The waveform is recovered from the magnitudes by Griffin-Lim (Griffin and Lim
1984), started from zero phase so that it is deterministic, or by a network that learns it, see `waveform_decoder.py`.

Every layer is a convolution or works on one frame, so that an id depends only on the sound around it: what comes
later in the clip, such as the silence that fills it up, changes nothing.
"""

from dataclasses import dataclass

import torch
import torchaudio
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ..autoencoder import AutoencoderOutput, QuantizedAutoencoder
from ..quantizer import QuantizerOutput, VectorQuantizer
from .codebook_order import codes_to_token_ids, token_ids_to_codes
from .configuration_audio_tokenizer import AudioTokenizerConfig
from .convnext import ConvNeXtBlock
from .waveform_decoder import ISTFTDecoder, multi_resolution_stft_loss
from .waveforms import WaveformMedia

# Token steps of silence after a sound that count as part of it, so that its end and silence are learned, too.
SILENT_STEPS = 2


@dataclass
class AudioTokenizerOutput(AutoencoderOutput):
    """
    losses: beside the others, `stft` and `waveform_mel` of the "istft" decoder.
    waveform: what that decoder makes of `reconstruction`, `(batch, num_samples)` float32; in training of a segment
        of each clip, `(batch, segment_samples)`. None with "griffin_lim".
    original: the true samples of `waveform`, shaped like it, float32.
    """

    waveform: torch.FloatTensor | None = None
    original: torch.FloatTensor | None = None


class AudioTokenizer(WaveformMedia, QuantizedAutoencoder, PreTrainedModel):
    """Turns waveforms of `num_samples` samples into `num_steps * num_quantizers` token ids."""

    config: AudioTokenizerConfig
    config_class = AudioTokenizerConfig
    base_model_prefix = ""
    main_input_name = "waveform"

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__(config)
        channels, stride = config.hidden_size, config.time_stride
        # Each step sees its own frames and half of its neighbours', so that no seams are heard.
        patches = {"kernel_size": stride + 2 * (stride // 2), "stride": stride, "padding": stride // 2}
        self.embed = nn.Conv1d(config.num_mels, channels, **patches)
        self.encoder = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(config.num_layers)))
        self.quantizer = VectorQuantizer(
            channels,
            config.codebook_size,
            config.code_dim,
            num_quantizers=config.num_quantizers,
            warmup_steps=config.quantizer_warmup_steps,
        )
        self.decoder = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(config.num_layers)))
        self.unembed = nn.ConvTranspose1d(channels, config.num_mels, **patches)
        self.waveform_decoder = None
        if config.waveform_decoder == "istft":
            self.waveform_decoder = ISTFTDecoder(
                config.num_mels,
                config.fft_size,
                config.hop_length,
                config.istft_hidden_size,
                config.istft_num_layers,
            )
        self.post_init()

    @property
    def last_layer(self) -> nn.Parameter | None:
        """Weights of the layer that makes the phases, by whose gradients losses are balanced; None if none does."""
        return None if self.waveform_decoder is None else self.waveform_decoder.phase.weight

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @can_return_tuple
    def forward(self, waveform: torch.FloatTensor) -> AudioTokenizerOutput:
        """Reconstruct the spectrogram of `waveform` `(batch, num_samples)`, and the sound, and score the result.

        Samples that are exactly zero up to the end of a clip fill it up. They do not count, apart from the first few:
        of short sounds in long clips, silence would be most of the loss and of what the codebook is fitted to.
        """
        config = self.config
        log_mel = self.log_mel(waveform)
        sounding_steps = self._sounding_steps(waveform)
        quantized = self._quantize(self._latents(log_mel), sounding_steps)
        reconstruction = self._spectrogram(quantized.quantized)

        frames = torch.arange(log_mel.shape[2], device=log_mel.device)
        counted = frames < (sounding_steps * config.time_stride).unsqueeze(1)
        difference = (reconstruction.float() - log_mel).transpose(1, 2)[counted]
        losses = {
            "l1": difference.abs().mean(),
            "mse": difference.square().mean(),
            "commitment": quantized.commitment_loss,
        }
        loss = losses["l1"] + config.mse_weight * losses["mse"] + config.commitment_weight * losses["commitment"]
        generated = original = None
        if self.waveform_decoder is not None:
            # Ids and spectrogram stay what they are without this decoder: its gradient ends here.
            generated, original = self._generate(reconstruction.detach(), waveform, sounding_steps)
            sizes = (config.fft_size // 2, config.fft_size, 2 * config.fft_size)
            losses["stft"] = multi_resolution_stft_loss(generated, original, sizes)
            losses["waveform_mel"] = nn.functional.l1_loss(self._log_mel(generated), self._log_mel(original))
            loss = loss + config.stft_weight * losses["stft"] + config.waveform_mel_weight * losses["waveform_mel"]
        token_ids = self._in_order(quantized.token_ids)
        return AudioTokenizerOutput(loss, losses, reconstruction, token_ids, waveform=generated, original=original)

    def preprocess(self, media: list) -> torch.FloatTensor:
        """As in the base class; and with `config.loudness` set, all sounds equally loud."""
        waveform = super().preprocess(media)
        if self.config.loudness is None:
            return waveform
        count = (waveform != 0).sum(-1, keepdim=True).clamp_min(1)
        level = (waveform.square().sum(-1, keepdim=True) / count).sqrt()
        return waveform * (self.config.loudness / level.clamp_min(1e-5))

    def encode(self, waveform: torch.FloatTensor) -> torch.LongTensor:
        """Waveform `(batch, num_samples)` in [-1, 1] to ids `(batch, num_tokens)`, in `codebook_order`."""
        return self._in_order(self.quantizer(self._latents(self.log_mel(waveform))).token_ids)

    def decode(self, token_ids: torch.LongTensor) -> torch.FloatTensor:
        """Ids `(batch, num_tokens)` to a waveform `(batch, num_samples)` float32.

        Raises:
            ValueError: if the shape is wrong or an id is outside the vocabulary.
        """
        return self.vocode(self.decode_log_mel(token_ids))

    def decode_log_mel(self, token_ids: torch.LongTensor) -> torch.FloatTensor:
        """Ids `(batch, num_tokens)` to the normalised log-mel spectrogram `(batch, num_mels, frames)`."""
        self.check_token_ids(token_ids)
        config = self.config
        codes = token_ids_to_codes(token_ids, config.codebook_order, config.num_quantizers, config.codebook_size)
        return self._spectrogram(self.quantizer.lookup(codes.transpose(1, 2)))

    def token_vectors(self) -> torch.FloatTensor:
        """The codes, `(vocab_size, num_quantizers * code_dim)`; zero for the id of empty cells, if there is one."""
        codes = super().token_vectors()
        return nn.functional.pad(codes, (0, 0, 0, self.config.vocab_size - len(codes)))

    def log_mel(self, waveform: torch.FloatTensor) -> torch.FloatTensor:
        """Normalised log-mel spectrogram `(batch, num_mels, num_steps * time_stride)`, float32.

        Raises:
            ValueError: if `waveform` is not `(batch, num_samples)`.
        """
        self.check_waveform(waveform)
        frames = self.config.num_steps * self.config.time_stride
        missing = frames * self.config.hop_length - waveform.shape[1]
        return self._log_mel(nn.functional.pad(waveform, (0, missing)))[..., :frames]

    @torch.no_grad()
    def fit_normalisation(self, waveform: torch.FloatTensor) -> None:
        """Set `config.log_mel_mean` and `log_mel_std` so that these clips `(batch, num_samples)` come out standard.

        What fills up a clip after its sound does not count: it would make all that sounds look alike.
        """
        self.config.log_mel_mean, self.config.log_mel_std = 0.0, 1.0
        log_mel = self.log_mel(waveform).transpose(1, 2)
        frames = torch.arange(log_mel.shape[1], device=log_mel.device)
        sounding = log_mel[frames < (self._sounding_steps(waveform) * self.config.time_stride).unsqueeze(1)]
        self.config.log_mel_mean, self.config.log_mel_std = sounding.mean().item(), max(sounding.std().item(), 1e-3)

    @torch.no_grad()
    def vocode(self, log_mel: torch.FloatTensor) -> torch.FloatTensor:
        """Waveform `(batch, num_samples)` with the given normalised log-mel spectrogram, by `waveform_decoder`."""
        if self.waveform_decoder is not None:
            waveform = self.waveform_decoder(log_mel.to(self.dtype), self._magnitude(log_mel))
        else:
            # Griffin-Lim with centred windows returns hop * (frames - 1) samples: give it one frame more.
            magnitude = nn.functional.pad(self._magnitude(log_mel), (0, 1), mode="replicate")
            waveform = self._transform("griffin_lim", log_mel.device)(magnitude)
        return waveform[:, : self.config.num_samples].clamp(-1, 1)

    def _in_order(self, codes: torch.LongTensor) -> torch.LongTensor:
        """Codes `(batch, num_steps, num_quantizers)` to ids `(batch, num_tokens)`."""
        return codes_to_token_ids(codes.transpose(1, 2), self.config.codebook_order, self.config.codebook_size)

    def _latents(self, log_mel: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embed(log_mel.to(self.dtype)).transpose(1, 2))

    def _spectrogram(self, latents: torch.Tensor) -> torch.Tensor:
        return self.unembed(self.decoder(latents.to(self.dtype)).transpose(1, 2))

    def _log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            mel = self._transform("mel", waveform.device)(waveform.float())
        # Added rather than a lower limit, so that it can be taken away again and silence stays silent.
        return ((mel + self.config.log_floor).log() - self.config.log_mel_mean) / self.config.log_mel_std

    def _magnitude(self, log_mel: torch.Tensor) -> torch.Tensor:
        """The spectrum of least norm with these mel bands, which `InverseMelScale` would solve for anew every time."""
        mel = (log_mel.float() * self.config.log_mel_std + self.config.log_mel_mean).exp()
        mel = (mel - self.config.log_floor).relu()
        with torch.autocast(mel.device.type, enabled=False):
            return (self._transform("inverse_mel", mel.device) @ mel).relu()

    def _sounding_steps(self, waveform: torch.Tensor) -> torch.LongTensor:
        """Token steps `(batch,)` up to the last sample that is not zero, and `SILENT_STEPS` more."""
        positions = torch.arange(1, waveform.shape[1] + 1, device=waveform.device)
        num_samples = (positions * (waveform != 0)).amax(1)
        step = self.config.hop_length * self.config.time_stride
        return ((num_samples + step - 1) // step + SILENT_STEPS).clamp_max(self.config.num_steps)

    def _quantize(self, latents: torch.Tensor, sounding_steps: torch.LongTensor) -> QuantizerOutput:
        """Quantize `(batch, num_steps, dim)`; in training, all silence after a sound is one latent."""
        if not self.training:
            return self.quantizer(latents)
        steps = torch.arange(latents.shape[1], device=latents.device)
        quantized = self.quantizer(latents[steps < sounding_steps.unsqueeze(1)])
        last = (sounding_steps - 1).unsqueeze(1)
        rows = (sounding_steps.cumsum(0) - sounding_steps).unsqueeze(1) + torch.minimum(steps, last)
        return QuantizerOutput(quantized.quantized[rows], quantized.token_ids[rows], quantized.commitment_loss)

    def _generate(
        self, log_mel: torch.Tensor, waveform: torch.Tensor, sounding_steps: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the learned decoder makes of a spectrogram, and the true waveform: in training random segments."""
        config = self.config
        if not self.training:
            return self.vocode(log_mel), waveform.float()
        length = min(config.istft_segment_frames, log_mel.shape[2])
        # A segment may reach into the silence after a sound, but does not lie in it if the sound is long enough.
        room = (sounding_steps * config.time_stride - length).clamp_min(0)
        starts = (torch.rand(len(room), device=room.device) * (room + 1)).long().unsqueeze(1)
        frames = starts + torch.arange(length, device=room.device)
        segments = log_mel.gather(2, frames.unsqueeze(1).expand(-1, log_mel.shape[1], -1))
        samples = starts * config.hop_length + torch.arange(length * config.hop_length, device=room.device)
        waveform = nn.functional.pad(waveform.float(), (0, log_mel.shape[2] * config.hop_length - waveform.shape[1]))
        generated = self.waveform_decoder(segments.to(self.dtype), self._magnitude(segments))
        return generated, waveform.gather(1, samples)

    def _transform(self, name: str, device: torch.device) -> nn.Module | torch.Tensor:
        # The transforms hold windows and filter banks but nothing learned: they are made on first use and kept
        # outside of the module tree, so that they are neither saved, cast to half precision nor hashed.
        transforms = self.__dict__.setdefault("_transforms", {})
        if (name, device) in transforms:
            return transforms[name, device]

        config = self.config
        with torch.inference_mode(False):  # else the first use would decide that nothing can be trained with them
            stft = {"n_fft": config.fft_size, "hop_length": config.hop_length, "power": 1.0}
            mel = {"n_mels": config.num_mels, "sample_rate": config.sampling_rate}
            if name == "mel":
                transform = torchaudio.transforms.MelSpectrogram(**stft, **mel, norm="slaney", mel_scale="htk")
            elif name == "inverse_mel":
                transform = torch.linalg.pinv(self._transform("mel", device).mel_scale.fb.t())
            else:
                transform = torchaudio.transforms.GriffinLim(
                    **stft, n_iter=config.griffin_lim_iterations, rand_init=False
                )
            transforms[name, device] = transform.to(device)
        return transforms[name, device]
