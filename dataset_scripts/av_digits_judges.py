"""Judge of AVDigits: reads the digit from a picture, a recording or a caption, whether real or generated.

Two small convolutional networks, trained on the real rows of the split `train` by `scripts/train_judge.py`, and a
word search. They know nothing of tokens or of nano4M. How well they read real rows of validation belongs beside every
score.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from dataset_scripts.av_digits import DIGITS, SAMPLING_RATE

BATCH_SIZE = 256
# A picture whose pixels all stay below this, of 1, and a sound whose samples all stay within, of 1, hold no digit.
# Those of MNIST reach 0.99, those of FSDD at least 0.01.
DARK, SILENT = 0.1, 1e-3
DIGIT_WORD = re.compile(rf"\b({'|'.join(DIGITS)})\b")


@strict
class AVDigitsJudgeConfig(PreTrainedConfig):
    """Sizes of the networks.

    Args:
        image_size: pictures are scaled to it, pixels.
        num_samples: sound is cut or filled up to it, samples at 8 kHz.
        hidden_size: channels of the first convolutions.
        dropout: before the last layer of each network.
    """

    model_type = "nano4m_av_digits_judge"

    image_size: int = 32
    num_samples: int = 8000
    hidden_size: int = 16
    dropout: float = 0.3


@dataclass
class JudgeOutput(ModelOutput):
    """
    loss: scalar, the sum of `losses`; losses: cross-entropy of each modality, nats.
    image_logits, audio_logits: `(batch, 10)`.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    image_logits: torch.FloatTensor | None = None
    audio_logits: torch.FloatTensor | None = None


def classifier(in_channels: int, width: int, dropout: float) -> nn.Sequential:
    """Three levels of two convolutions each over `(batch, in_channels, height, width)`; ten logits."""
    layers = []
    for channels in (width, 2 * width, 4 * width):
        for _ in range(2):
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            in_channels = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16 * width, len(DIGITS))
    )


class AVDigitsJudge(PreTrainedModel):
    """Reads digits; see `read` and `truths`, which every judge has."""

    config: AVDigitsJudgeConfig
    config_class = AVDigitsJudgeConfig
    main_input_name = "images"
    attributes = {"digit": DIGITS}

    def __init__(self, config: AVDigitsJudgeConfig):
        super().__init__(config)
        self.image_network = classifier(1, config.hidden_size, config.dropout)
        self.audio_network = classifier(1, config.hidden_size, config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def forward(self, images: torch.Tensor, sounds: torch.Tensor, labels: torch.LongTensor | None = None):
        """Classify `images` `(batch, 1, image_size, image_size)` and `sounds` `(batch, num_samples)`.

        Returns:
            `JudgeOutput`, with losses if there are `labels` `(batch,)`.
        """
        image_logits, audio_logits = self.image_network(images), self.audio_network(self._spectrogram(sounds))
        if labels is None:
            return JudgeOutput(image_logits=image_logits, audio_logits=audio_logits)
        losses = {
            "image": nn.functional.cross_entropy(image_logits, labels),
            "audio": nn.functional.cross_entropy(audio_logits, labels),
        }
        return JudgeOutput(sum(losses.values()), losses, image_logits, audio_logits)

    def preprocess_images(self, media: list) -> torch.Tensor:
        """Clips (lists of PIL images, of which the first is read) or PIL images to the `images` of `forward`."""
        size = (self.config.image_size, self.config.image_size)
        first = [clip[0] if isinstance(clip, (list, tuple)) else clip for clip in media]
        grey = [image.convert("L") if image.size == size else image.convert("L").resize(size) for image in first]
        return torch.from_numpy(np.stack([np.asarray(image) for image in grey])[:, None]).float() / 255

    def preprocess_sounds(self, media: list, sampling_rate: int) -> torch.Tensor:
        """Waveforms `(samples,)` to the `sounds` of `forward`."""
        sounds = torch.zeros(len(media), self.config.num_samples)
        for row, sound in zip(sounds, media, strict=True):
            sound = torch.as_tensor(np.asarray(sound, dtype=np.float32)).flatten()
            sound = torchaudio.functional.resample(sound, sampling_rate, SAMPLING_RATE)[: len(row)]
            row[: len(sound)] = sound
        return sounds

    @torch.inference_mode()
    def read(self, modality: str, media: list, sampling_rate: int | None = None) -> list[dict[str, str | None]]:
        """The digit in each of some media, as `{"digit": "three"}`.

        Args:
            modality: "image" (clips or PIL images), "audio" (waveforms) or "text" (strings).
            media: of any number.
            sampling_rate: of waveforms, Hz.

        Returns:
            A dictionary for each; the digit is None for a text that names none, or several, and for a picture that
            is `DARK` or a sound that is `SILENT` throughout.

        Raises:
            ValueError: there is no such modality.
        """
        if modality not in ("image", "audio", "text"):
            raise ValueError(f"modality {modality!r}: this judge reads image, audio and text")
        if modality == "text":
            found = [set(DIGIT_WORD.findall(text.lower())) for text in media]
            return [{"digit": words.pop() if len(words) == 1 else None} for words in found]
        if not len(media):
            return []
        if modality == "image":
            network, batch = self.image_network, self.preprocess_images(media)
            is_empty = batch.flatten(1).amax(1) < DARK
        else:
            sounds = self.preprocess_sounds(media, sampling_rate)
            is_empty = sounds.abs().amax(1) < SILENT
            network, batch = self.audio_network, self._spectrogram(sounds)
        self.eval()
        digits = torch.cat([network(part.to(self.device)).argmax(-1) for part in batch.split(BATCH_SIZE)])
        pairs = zip(digits.tolist(), is_empty.tolist(), strict=True)
        return [{"digit": None if empty else DIGITS[digit]} for digit, empty in pairs]

    def truths(self, rows) -> list[dict[str, str]]:
        """The digit that each row of AVDigits means."""
        return [{"digit": DIGITS[label]} for label in rows["label"]]

    def _spectrogram(self, sounds: torch.Tensor) -> torch.Tensor:
        """Log-mel spectrograms `(batch, 1, 64, time)`, 16 ms a frame, as loud as each other."""
        mel = self.__dict__.setdefault("_mel", {})
        if sounds.device not in mel:
            mel[sounds.device] = torchaudio.transforms.MelSpectrogram(
                SAMPLING_RATE, n_fft=256, hop_length=128, n_mels=64, power=1.0
            ).to(sounds.device)
        # A training in bfloat16 sees the same spectrograms as `read`.
        with torch.autocast(sounds.device.type, enabled=False):
            sounds = sounds.float()
            level = sounds.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-4)
            return (mel[sounds.device](0.1 * sounds / level) + 1e-2).log()[:, None]
