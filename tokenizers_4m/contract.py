"""What every tokenizer promises, whatever its modality.

A tokenizer turns media into a fixed grid of discrete token ids and back:

    batch = tokenizer.preprocess(media)     # files, arrays, PIL images or strings -> model input
    token_ids = tokenizer.encode(batch)     # LongTensor (batch, num_tokens), each in [0, vocab_size)
    batch = tokenizer.decode(token_ids)     # exactly the model's own reconstruction
    media = tokenizer.postprocess(batch)    # PIL images, waveforms, strings

Nothing else in the project looks inside a tokenizer, so a new modality needs only a new subclass.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from .remote_code import save_code

# Written on every save and without influence on the ids.
_VOLATILE_CONFIG_FIELDS = ("transformers_version", "_name_or_path", "dtype", "architectures", "auto_map")


class TokenizerConfig4M(PreTrainedConfig):
    """Adds to a config what the contract asks of it. Subclasses define `vocab_size` and `token_axes`."""

    modality = ""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: the tokenizer saves the code of both, see `TokenizerContract.save_pretrained`."""

    @property
    def token_axes(self) -> dict[str, int]:
        """Name and length of each axis of the token grid, slowest first, e.g. `{"time": 25, "codebook": 1}`."""
        raise NotImplementedError

    @property
    def num_tokens(self) -> int:
        """Token ids per clip: the product of the axes."""
        return math.prod(self.token_axes.values())


class TokenizerContract:
    """Mixed into the `PreTrainedModel`s that are image, audio and text tokenizers."""

    @property
    def modality(self) -> str:
        return self.config.modality

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: `save_pretrained` saves the code in any case, and does it for shared modules too."""

    def save_pretrained(self, save_directory: str | Path, *args, push_to_hub: bool = False, **kwargs) -> None:
        """Save weights, configuration and code into one folder; see `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: if asked to `push_to_hub` at once: that would upload only what transformers knows of.
        """
        if push_to_hub:
            raise ValueError(
                "save_pretrained does not push; call push_to_hub(repo_id), which uploads the whole folder"
            )
        self.config.auto_map = save_code(type(self), save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def preprocess(self, media):
        """Turn a list of media (files, arrays, PIL images, strings) into what `encode` takes."""
        raise NotImplementedError

    def encode(self, batch) -> torch.LongTensor:
        """Turn a preprocessed batch into token ids, `(batch, num_tokens)`, int64."""
        raise NotImplementedError

    def decode(self, token_ids: torch.LongTensor):
        """Turn token ids `(batch, num_tokens)` into the batch that the model reconstructs from them."""
        raise NotImplementedError

    def postprocess(self, batch) -> list:
        """Turn a decoded batch into a list of media, one per clip."""
        raise NotImplementedError

    def valid_mask(self, token_ids: torch.LongTensor) -> torch.BoolTensor:
        """True where an id is real, False where it is padding; same shape as `token_ids`."""
        return torch.ones_like(token_ids, dtype=torch.bool)

    def token_vectors(self) -> torch.FloatTensor | None:
        """Vectors `(vocab_size, dim)` that lie close for ids of like meaning; None if the tokenizer has none."""
        return None

    def encode_media(self, media: list) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """Preprocess and encode a list of media; returns ids and their `valid_mask`, `(batch, num_tokens)` each."""
        batch = self.preprocess(media)
        token_ids = self.encode(batch.to(self.device) if isinstance(batch, torch.Tensor) else batch)
        return token_ids, self.valid_mask(token_ids)

    def check_token_ids(self, token_ids: torch.LongTensor) -> None:
        """Raise ValueError unless `token_ids` is `(batch, num_tokens)` with every id in the vocabulary."""
        if token_ids.ndim != 2 or token_ids.shape[1] != self.config.num_tokens:
            raise ValueError(
                f"{type(self).__name__}: token_ids must have shape (batch, {self.config.num_tokens}), "
                f"got {tuple(token_ids.shape)}"
            )
        if token_ids.numel() and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.config.vocab_size:
            raise ValueError(
                f"{type(self).__name__}: token_ids must lie in [0, {self.config.vocab_size}), got "
                f"{int(token_ids.min())} to {int(token_ids.max())}"
            )

    def fingerprint(self) -> str:
        """Hash of weights and configuration: two tokenizers that share it give the same ids."""
        digest = hashlib.sha256()
        config = _without_volatile_fields(self.config.to_dict())
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict:
        """What later stages must know of this tokenizer, and check: identity, vocabulary, axes, special ids."""
        special = {
            name: value
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            if (value := getattr(self.config, name, None)) is not None
        }
        return {
            "fingerprint": self.fingerprint(),
            "model_type": self.config.model_type,
            "vocab_size": self.config.vocab_size,
            "num_tokens": self.config.num_tokens,
            "token_axes": dict(self.config.token_axes),
            **special,
        }


def _without_volatile_fields(config: dict) -> dict:
    kept = {name: value for name, value in config.items() if name not in _VOLATILE_CONFIG_FIELDS}
    return {
        name: _without_volatile_fields(value) if isinstance(value, dict) else value for name, value in kept.items()
    }
