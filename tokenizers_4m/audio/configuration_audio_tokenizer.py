"""Configuration of the audio tokenizer."""

import math

from huggingface_hub.dataclasses import strict

from ..contract import TokenizerConfig4M


@strict
class AudioTokenizerConfig(TokenizerConfig4M):
    """Length of the clips, the spectrogram, the network and the codebooks.

    Args:
        sampling_rate: of the waveform, Hz.
        clip_seconds: length of a clip; `num_samples` is this times the sampling rate.
        loudness: root mean square to which every sound is brought before it is encoded, of its samples other than
            zero, so that silence around it does not count; None leaves sounds as loud as they are. With it the ids do
            not tell, and a model need not learn, how far away a microphone was.
        fft_size, hop_length: of the short-time Fourier transform, samples.
        num_mels: mel bands.
        hidden_size: channels of the convolutions.
        num_residual_blocks: per resolution, in encoder and decoder each.
        time_stride: spectrogram frames per token; a power of two.
        num_quantizers: codebooks per time step (residual quantization); ids are flattened time first, so that
            all codebooks of one step stand side by side.
        mse_weight: of the squared error beside the absolute one; edges and other large errors count more with it.
        codebook_size, code_dim, commitment_weight, quantizer_warmup_steps: see
            `tokenizers_4m.quantizer.VectorQuantizer`.
        griffin_lim_iterations: of the phase reconstruction in `decode`.
        log_floor: added to mel magnitudes before the logarithm; what lies far below it makes no difference.
        log_mel_mean, log_mel_std: the log-mel spectrogram is normalised with `(x - mean) / std`; set from data
            by `train_tokenizer.py`.
    """

    model_type = "nano4m_audio_tokenizer"
    modality = "audio"

    sampling_rate: int = 16000
    clip_seconds: float = 3.0
    loudness: float | None = None
    fft_size: int = 1024
    hop_length: int = 320
    num_mels: int = 80
    hidden_size: int = 128
    num_residual_blocks: int = 2
    time_stride: int = 4
    num_quantizers: int = 1
    codebook_size: int = 512
    code_dim: int = 8
    mse_weight: float = 1.0
    commitment_weight: float = 0.25
    quantizer_warmup_steps: int = 0
    griffin_lim_iterations: int = 32
    log_floor: float = 1e-3
    log_mel_mean: float = 0.0
    log_mel_std: float = 1.0

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        if self.time_stride < 1 or self.time_stride & (self.time_stride - 1):
            raise ValueError(f"time_stride={self.time_stride} must be a power of two")
        if self.hop_length * 2 > self.fft_size:
            raise ValueError(f"hop_length={self.hop_length} must be at most half of fft_size={self.fft_size}")

    @property
    def num_samples(self) -> int:
        """Samples per clip."""
        return round(self.clip_seconds * self.sampling_rate)

    @property
    def num_steps(self) -> int:
        """Token time steps per clip; the last one may reach past the end of the clip."""
        return math.ceil(self.num_samples / (self.hop_length * self.time_stride))

    @property
    def vocab_size(self) -> int:
        return self.codebook_size

    @property
    def token_axes(self) -> dict[str, int]:
        return {"time": self.num_steps, "codebook": self.num_quantizers}
