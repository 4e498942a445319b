"""Configuration of the audio tokenizer."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from .codebook_order import CodebookOrder, order_axes, order_vocab_size
from .waveforms import AudioConfig


@strict
class AudioTokenizerConfig(AudioConfig):
    """Length of the clips, the spectrogram, the network and the codebooks.

    Args:
        sampling_rate: of the waveform, Hz.
        clip_seconds: length of a clip; `num_samples` is this times the sampling rate.
        loudness: root mean square to which every sound is brought before it is encoded, of its samples other than
            zero, so that silence around it does not count; None leaves sounds as loud as they are. With it the ids do
            not tell, and a model need not learn, how far away a microphone was.
        fft_size, hop_length: of the short-time Fourier transform, samples.
        num_mels: mel bands.
        hidden_size, num_layers: channels and number of the ConvNeXt blocks, in encoder and decoder each.
        time_stride: spectrogram frames per time step of the tokens.
        num_quantizers: codebooks per time step (residual quantization).
        codebook_order: in which order their ids follow each other, see `codebook_order.py`.
        mse_weight: of the squared error beside the absolute one; edges and other large errors count more with it.
        codebook_size, code_dim, commitment_weight, quantizer_warmup_steps: see
            `tokenizers_4m.quantizer.VectorQuantizer`.
        waveform_decoder: what makes the waveform of the spectrogram in `decode`: "griffin_lim", which needs no
            training, or "istft", which is learned together with the rest and better and faster.
        griffin_lim_iterations: of "griffin_lim".
        istft_hidden_size, istft_num_layers: channels and number of the ConvNeXt blocks of "istft".
        istft_segment_frames: spectrogram frames of each clip that a training step of "istft" sees: it costs much
            more a frame than the rest, and many short segments teach it more than a few whole clips.
        stft_weight, waveform_mel_weight: of the losses of "istft", on the magnitudes of its waveform and on their
            log-mel spectrogram.
        log_floor: added to mel magnitudes before the logarithm; what lies far below it makes no difference.
        log_mel_mean, log_mel_std: the log-mel spectrogram is normalised with `(x - mean) / std`; set from data
            by `train_tokenizer.py`.
    """

    model_type = "nano4m_audio_tokenizer"

    sampling_rate: int = 16000
    clip_seconds: float = 3.0
    loudness: float | None = None
    fft_size: int = 1024
    hop_length: int = 320
    num_mels: int = 80
    hidden_size: int = 192
    num_layers: int = 4
    time_stride: int = 4
    num_quantizers: int = 1
    codebook_order: CodebookOrder = "flattened"
    codebook_size: int = 512
    code_dim: int = 8
    mse_weight: float = 1.0
    commitment_weight: float = 0.25
    quantizer_warmup_steps: int = 0
    waveform_decoder: Literal["griffin_lim", "istft"] = "griffin_lim"
    griffin_lim_iterations: int = 32
    istft_hidden_size: int = 256
    istft_num_layers: int = 4
    istft_segment_frames: int = 64
    stft_weight: float = 1.0
    waveform_mel_weight: float = 1.0
    log_floor: float = 1e-3
    log_mel_mean: float = 0.0
    log_mel_std: float = 1.0

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        if self.istft_segment_frames < 8:
            raise ValueError(f"istft_segment_frames={self.istft_segment_frames} must be at least 8")
        if self.time_stride < 1:
            raise ValueError(f"time_stride={self.time_stride} must be at least 1")
        if self.hop_length * 2 > self.fft_size:
            raise ValueError(f"hop_length={self.hop_length} must be at most half of fft_size={self.fft_size}")

    @property
    def num_steps(self) -> int:
        """Token time steps per clip; the last one may reach past the end of the clip."""
        return math.ceil(self.num_samples / (self.hop_length * self.time_stride))

    @property
    def vocab_size(self) -> int:
        return order_vocab_size(self.codebook_order, self.codebook_size)

    @property
    def token_axes(self) -> dict[str, int]:
        return order_axes(self.codebook_order, self.num_steps, self.num_quantizers)
