"""Any modality in, any modality out: model, tokenizers and scheduler as one pipeline, saved as one folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download
from PIL import Image
from tqdm.auto import tqdm

from tokenizers_4m import AudioTokenizer, ImageTokenizer, TextTokenizer

from .modeling_nano4m import Nano4MModel
from .sampling_nano4m import expand_seed
from .scheduling_unmasking import UnmaskingScheduler


@dataclass
class Nano4MPipelineOutput(BaseOutput):
    """What was generated, one entry per sample, in the field of its modality.

    images: lists of `num_frames` RGB PIL images.
    audios: float32 arrays `(num_samples,)` at `sampling_rate` Hz.
    texts: strings.
    token_ids: `(batch, num_tokens)` int64, the ids they were decoded from; by modality if several were generated.
    """

    images: list[list[Image.Image]] | None = None
    audios: list[np.ndarray] | None = None
    sampling_rate: int | None = None
    texts: list[str] | None = None
    token_ids: torch.LongTensor | dict[str, torch.LongTensor] | None = None


class Nano4MPipeline(DiffusionPipeline):
    """Generates image, audio or text from any of them.

        pipe = Nano4MPipeline.from_pretrained("outputs/demo/model")
        sound = pipe(image="square.png", target="audio", seed=0)
        soundfile.write("square.wav", sound.audios[0], sound.sampling_rate)

    Components: `model` (`Nano4MModel`), `image_tokenizer`, `audio_tokenizer`, `text_tokenizer`, `scheduler`
    (`UnmaskingScheduler`). A tokenizer is None if the model lacks its modality.
    """

    _optional_components = ["image_tokenizer", "audio_tokenizer", "text_tokenizer"]  # as diffusers calls them

    def __init__(
        self,
        model: Nano4MModel,
        image_tokenizer: ImageTokenizer | None,
        audio_tokenizer: AudioTokenizer | None,
        text_tokenizer: TextTokenizer | None,
        scheduler: UnmaskingScheduler,
    ):
        super().__init__()
        self.register_modules(
            model=model,
            image_tokenizer=image_tokenizer,
            audio_tokenizer=audio_tokenizer,
            text_tokenizer=text_tokenizer,
            scheduler=scheduler,
        )
        for name, tokenizer in self.tokenizers.items():
            length = model.config.num_tokens_of(name) if name in model.config.modalities else None
            if (
                length != tokenizer.config.num_tokens
                or model.config.vocab_size_of(name) != tokenizer.config.vocab_size
            ):
                raise ValueError(
                    f"model and {name} tokenizer do not fit: the tokenizer has {tokenizer.config.num_tokens} tokens "
                    f"of {tokenizer.config.vocab_size} ids"
                )

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Fetch a whole Hub repository for `from_pretrained`, and return the folder it is in.

        diffusers' own download refuses components whose classes are neither its own nor files of the repository.
        """
        hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        return snapshot_download(pretrained_model_name, **{name: kwargs[name] for name in hub if name in kwargs})

    @property
    def tokenizers(self) -> dict[str, torch.nn.Module]:
        """Those there are, `modality -> tokenizer`."""
        found = {"image": self.image_tokenizer, "audio": self.audio_tokenizer, "text": self.text_tokenizer}
        return {name: tokenizer for name, tokenizer in found.items() if tokenizer is not None}

    @property
    def sampling_rate(self) -> int | None:
        """Of the sounds it makes, Hz; None if it makes none."""
        return None if self.audio_tokenizer is None else self.audio_tokenizer.config.sampling_rate

    @torch.inference_mode()
    def __call__(
        self,
        image=None,
        audio=None,
        text=None,
        target: str | list[str] = "image",
        keep: torch.BoolTensor | None = None,
        negative: dict | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | dict[str, float] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | list[int] | None = None,
        num_samples: int = 1,
        batch_size: int = 64,
    ) -> Nano4MPipelineOutput:
        """Generate `target` from the conditions given; from nothing if none is.

        Args:
            image: PIL image, array `(height, width, 3)`, file path, or a list of `num_frames` PIL images or an array
                `(num_frames, height, width, 3)` for a clip; a list of these, for several samples, is told from the
                frames of one clip by its entries being clips, or single pictures not `num_frames` in number.
            audio: array at the tokenizer's sampling rate, `(array, sampling_rate)`, file path, or a list of them.
            text: string, `pathlib.Path` of a text file, or a list of them.
            target: "image", "audio" or "text", or several of them: each becomes a condition of those after it.
            keep: for in- and out-painting, which tokens of the target stay as they are in the medium given for it,
                bool `(num_tokens,)` or in the shape of its token axes, as `(frame, row, column)`.
            negative: conditions to lead away from, `name -> medium or list of them`; needs a guidance scale above 1.
            num_inference_steps, guidance_scale, temperature, top_k, top_p, min_p, seed: see `Nano4MModel.generate`.
            num_samples: how many to generate when no condition is given, or one of each kind.
            batch_size: samples generated at once.

        Raises:
            ValueError: if a condition is unreadable, or conditions differ in number.
        """
        targets = [target] if isinstance(target, str) else list(target)
        for name in targets:
            self._tokenizer(name)
        given = self._lists({"image": image, "audio": audio, "text": text})
        away = self._lists(negative or {})
        sizes = {name: len(media) for name, media in (*given.items(), *away.items())}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"conditions differ in number of samples: {sizes}")
        for name in given:
            if name in targets and (keep is None or name != targets[0]):
                raise ValueError(f"{name} is both condition and target; to complete a part of it, say what to keep")
        if keep is not None:
            length = self.model.config.num_tokens_of(targets[0])
            if targets[0] not in given or keep.numel() != length:
                raise ValueError(f"keep: give a medium for {targets[0]}, and which of its {length} tokens to keep")
        total = next(iter(sizes.values()), 1)
        if total == 1 and num_samples > 1:
            total = num_samples
            given, away = ({name: media * total for name, media in part.items()} for part in (given, away))
        seeds = expand_seed(seed, total)
        own_schedulers = {name for name, own in self.model.modality_defaults.items() if "scheduler" in own}

        token_ids, decoded = {name: [] for name in targets}, {name: [] for name in targets}
        title = f"generate {', '.join(targets)}"
        for start in tqdm(range(0, total, batch_size), desc=title, disable=total <= batch_size):
            part = slice(start, start + batch_size)
            inputs, valid_masks = self._encode({name: media[part] for name, media in given.items()})
            if keep is not None:
                valid_masks[targets[0]] &= keep.flatten().bool().to(valid_masks[targets[0]].device)
            generated = self.model.generate(
                inputs,
                targets,
                valid_masks,
                negative_inputs=self._encode({name: media[part] for name, media in away.items()})[0],
                batch_size=len(seeds[part]),
                num_inference_steps=num_inference_steps,
                # A scheduler that the model keeps for one modality goes before the pipeline's, which is for all.
                scheduler={name: self.scheduler for name in targets if name not in own_schedulers},
                guidance_scale=guidance_scale,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                seed=seeds[part],
            )
            for name, ids in generated.items():
                token_ids[name].append(ids.cpu())
                decoded[name] += self.tokenizers[name].postprocess(self.tokenizers[name].decode(ids))
        token_ids = {name: torch.cat(parts) for name, parts in token_ids.items()}
        output = Nano4MPipelineOutput(token_ids=token_ids[target] if isinstance(target, str) else token_ids)
        for name, media in decoded.items():
            output[f"{name}s"] = media
        if "audio" in decoded:
            output["sampling_rate"] = self.sampling_rate
        return output

    def _lists(self, media: dict) -> dict[str, list]:
        """One list of media per modality, whatever of it was given."""
        lists = {}
        for name, value in media.items():
            if value is None:
                continue
            self._tokenizer(name)
            if name == "image":
                lists[name] = self._list_of_clips(value)
            else:
                single = (str, Path) if name == "text" else (str, Path, tuple, dict, np.ndarray, torch.Tensor)
                lists[name] = [value] if isinstance(value, single) else list(value)
        return lists

    def _encode(self, given: dict[str, list]) -> tuple[dict, dict]:
        """Ids of each condition and which of them are real."""
        inputs, valid_masks = {}, {}
        for name, media in given.items():
            inputs[name], valid_masks[name] = self.tokenizers[name].encode_media(media)
        return inputs, valid_masks

    def _tokenizer(self, target: str):
        if target not in self.tokenizers:
            raise ValueError(f"target must be one of {', '.join(self.tokenizers)}, not {target!r}")
        return self.tokenizers[target]

    def _list_of_clips(self, image) -> list:
        if isinstance(image, (str, Path, Image.Image)):
            return [image]
        if isinstance(image, (np.ndarray, torch.Tensor)):
            image = np.asarray(image)
            return [image] if image.ndim < 5 else list(image)
        num_frames = self.image_tokenizer.config.num_frames
        is_one_clip = num_frames > 1 and len(image) == num_frames and all(isinstance(i, Image.Image) for i in image)
        return [image] if is_one_clip else list(image)
