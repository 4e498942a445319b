"""Reads the weights of image tokenizers that others have published or trained into ours.

- VQGANs of taming-transformers and CompVis (`encoder.down.0.block...`, also inside latent diffusion), and
- diffusers' `VQModel` (`encoder.down_blocks.0.resnets...`) become `ImageVQGAN`;
- 4M's `VQVAE` with ViT encoder and decoder and one codebook (`encoder.blocks.0.norm1...`) becomes `ImageViT`.

Not read: Gumbel codebooks, several codebooks, KL autoencoders, decoders by diffusion (4M's `DiVAE`) and MLPs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from .configuration_image_vit import ImageViTConfig
from .configuration_image_vqgan import ImageVQGANConfig
from .modeling_image_vit import ImageViT
from .modeling_image_vqgan import ImageVQGAN

StateDict = dict[str, torch.Tensor]

# Of folders that diffusers and 4M save.
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors")
# Weights by which each network is recognised, and that stand first in it.
CONVOLUTIONAL, TRANSFORMER = "encoder.conv_in.weight", "encoder.proj.weight"
# What training needs beside the tokenizer; CompVis saves it along.
TRAINING_ONLY = ("loss.", "discriminator.", "model_ema.", "colorize", "quantize._codebook.initted")
TRAINING_ONLY += ("quantize._codebook.cluster_size",)
# Dimensions of the weights that sizes are read off.
DIMENSIONS = {CONVOLUTIONAL: 4, "encoder.conv_out.weight": 4, "decoder.conv_in.weight": 4}
DIMENSIONS |= {"quantize.embedding.weight": 2, TRANSFORMER: 4, "quantize._codebook.embed": 2}
DIMENSIONS |= {"encoder.pos_emb": 4, "decoder.pos_emb": 4}
# How a file begins that git put in place of a large one.
LFS_POINTER = b"version https://git-lfs"
# What has a state in checkpoints of Lightning 1, where the class itself is the key to it.
LIGHTNING_CALLBACKS = tuple(
    f"pytorch_lightning.callbacks.{name}"
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping", "timer.Timer")
)

_FROM_TAMING = [
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.attn\.", r".down_blocks.\1.attentions."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.attn\.", r".up_blocks.\1.attentions."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
]
# Names of attention layers: CompVis, old diffusers, and what they are called now.
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_ATTENTION |= {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_state_dict(path: str | Path, prefix: str | None = None) -> tuple[StateDict, dict]:
    """Weights of a `.ckpt`, `.pth`, `.bin` or `.safetensors` file or of a folder with one, and the folder's config.

    Nothing in a file is executed. Weights may lie one level down, as in `{"state_dict": ...}`, and their names begin
    with any prefix, such as `module.` or `first_stage_model.`; what has another prefix is left out.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: if what is there cannot be read, or has no weights of a known tokenizer, or has those of several
            and no `prefix` says which.
    """
    path, config = Path(path), {}
    if path.is_dir():
        files = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not files:
            raise ValueError(f"{path}: has none of {', '.join(WEIGHT_FILES)}")
        if (path / "config.json").is_file():
            config = _read_config(path / "config.json")
        path = files[0]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    content = _read_weights(path)
    found = {}
    for weights in _dictionaries(content):
        for name in weights:
            for first in (CONVOLUTIONAL, TRANSFORMER):
                if isinstance(name, str) and name.endswith(first):
                    found.setdefault(name.removesuffix(first), weights)
    if prefix is None and len(found) > 1:
        names = ", ".join(repr(name) for name in found)
        raise ValueError(f"{path}: holds several tokenizers; choose one of them with prefix: {names}")
    prefix = next(iter(found), "") if prefix is None else prefix
    if prefix not in found:
        raise ValueError(
            f"{path}: no image tokenizer found, that is no weights named {prefix}{CONVOLUTIONAL} or "
            f"{prefix}{TRANSFORMER}"
        )
    weights = {
        name.removeprefix(prefix): value
        for name, value in found[prefix].items()
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, torch.Tensor)
    }
    for name, number in DIMENSIONS.items():
        if name in weights and weights[name].ndim != number:
            raise ValueError(f"{path}: {prefix}{name} has {weights[name].ndim} dimensions, not {number}")
    return {name: value for name, value in weights.items() if not name.startswith(TRAINING_ONLY)}, config


class _Callback:
    """Stands in for callbacks of Lightning, whose state nobody needs here."""


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download it again, or remove it") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: must hold an object of JSON; download it again, or remove it")
    return config


def _read_weights(path: Path):
    """What a file of weights holds; nothing in it is executed."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise ValueError(f"{path}: is empty; download it again")
    if start == LFS_POINTER:
        raise ValueError(f"{path}: is a pointer of git-lfs, not the weights themselves; get them with git lfs pull")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error}); download it again") from error
    try:
        with torch.serialization.safe_globals([(_Callback, name) for name in LIGHTNING_CALLBACKS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file the unpickler raises whatever it stumbles over
        # Not shown, and not in a traceback either: torch advises to load the file with all the code that it holds.
        code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        raise ValueError(
            f"{path}: cannot be read without running code that it holds ({code[1]}); where it came from, save its "
            f"weights alone: torch.save(model.state_dict(), FILE)"
        )
    raise ValueError(f"{path}: was not written by torch.save, or is damaged; download it again")


def _dictionaries(content) -> Iterator[dict]:
    if isinstance(content, dict):
        yield content
        yield from (value for value in content.values() if isinstance(value, dict))


def convert_weights(
    path: str | Path,
    image_size: int | None = None,
    num_frames: int = 1,
    prefix: str | None = None,
    allow_missing: bool = False,
) -> tuple[ImageVQGAN | ImageViT, list[str], list[str]]:
    """Make the tokenizer whose weights lie at `path`; sizes of the network are read off them.

    Args:
        image_size: pixels; 256, or of 4M what its config says, if not given.
        num_frames: frames per clip of the tokenizer; the weights are of single pictures.
        prefix: of the weights' names, if the file holds several tokenizers.
        allow_missing: start missing weights at random and leave unknown ones out.

    Returns:
        The tokenizer, names of its weights that are missing at `path`, names at `path` that it has no place for.

    Raises:
        ValueError: if the file cannot be read, holds something else, or, unless allowed, names do not match.
    """
    weights, their_config = read_state_dict(path, prefix)
    if CONVOLUTIONAL in weights:
        make_config, model_class, weights = vqgan_config, ImageVQGAN, diffusers_names(weights)
    else:
        make_config, model_class = vit_config, ImageViT
    try:
        model = model_class(make_config(weights, their_config, image_size, num_frames))
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing; without it the network's size is unknown") from error
    except IndexError as error:
        raise ValueError(f"{path}: a weight of the encoder has too few dimensions") from error
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{path}: {error}") from error
    if model_class is ImageViT:
        weights = resize_positions(weights, model)
    codes = weights.pop("quantize.embedding.weight", weights.pop("quantize._codebook.embed", None))
    weights = {_our_name(name): value.squeeze() if _is_projection(name) else value for name, value in weights.items()}
    expected = {name for name in model.state_dict() if not name.startswith("quantizer.") or "project" in name}
    missing, unexpected = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if (missing or unexpected) and not allow_missing:
        lists = {"missing": missing, "unexpected": unexpected}
        report = "; ".join(f"{len(names)} {kind}: {_shorten(names)}" for kind, names in lists.items() if names)
        raise ValueError(
            f"{path}: is not quite a {model_class.__name__}, {report}. To go on all the same, allow_missing"
        )
    try:
        model.load_state_dict({name: weights[name] for name in expected & weights.keys()}, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error
    model.quantizer.load_codes(codes[None].float())
    return model.eval(), missing, unexpected


def diffusers_names(weights: StateDict) -> StateDict:
    """Rename the weights of a CompVis VQGAN to those of diffusers' `VQModel`; those of a `VQModel` stay."""
    top = max((int(found[1]) for name in weights if (found := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    renamed = {}
    for name, value in weights.items():
        # CompVis counts the decoder's levels from the finest on, diffusers in the order of their use.
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up.{top - int(found[1])}.", name)
        for pattern, replacement in _FROM_TAMING:
            name = re.sub(pattern, replacement, name)
        block, attention, rest = name.rpartition(".attentions.")
        if attention:
            place, _, rest = rest.partition(".")
            layer, _, kind = rest.rpartition(".")
            name = f"{block}.attentions.{place}.{_ATTENTION.get(layer, layer)}.{kind}"
            value = value.flatten(1) if value.ndim == 4 else value  # 1x1 convolutions are linear layers now
        renamed[name] = value
    return renamed


def vqgan_config(weights: StateDict, their_config: dict, image_size: int | None, num_frames: int) -> ImageVQGANConfig:
    """Read the configuration off weights with diffusers' names; `their_config` is the `config.json` of a `VQModel`."""
    for name, value, reason in (
        ("norm_type", "group", "spatial normalisation"),
        ("act_fn", "silu", "another activation"),
    ):
        if their_config.get(name, value) != value:
            raise ValueError(f"{name}={their_config[name]!r}: {reason} is not supported")
    if "quantize.proj.weight" in weights:
        raise ValueError("quantize.proj.weight: Gumbel codebooks are not supported")
    latents, taken = weights["encoder.conv_out.weight"].shape[0], weights["decoder.conv_in.weight"].shape[1]
    if "quantize.embedding.weight" not in weights or latents != taken:
        raise ValueError("no codebook (quantize.embedding.weight): autoencoders without one have no token ids")
    levels = range(_count(weights, r"encoder\.down_blocks\.(\d+)\."))
    if not levels:
        raise ValueError("encoder.down: has no levels; without them the network's size is unknown")
    codes = weights["quantize.embedding.weight"]
    return ImageVQGANConfig(
        image_size=image_size or 256,
        num_frames=num_frames,
        block_out_channels=[weights[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels],
        layers_per_block=_count(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        attention_levels=[
            i for i in levels if any(name.startswith(f"encoder.down_blocks.{i}.attentions.") for name in weights)
        ],
        mid_block_add_attention=any(name.startswith("encoder.mid_block.attentions.") for name in weights),
        latent_channels=latents,
        norm_num_groups=their_config.get("norm_num_groups", 32),
        codebook_size=codes.shape[0],
        code_dim=codes.shape[1],
    )


def vit_config(weights: StateDict, their_config: dict, image_size: int | None, num_frames: int) -> ImageViTConfig:
    """Read the configuration off the weights of 4M's `VQVAE`; `their_config` is its `config.json`, if there is one."""
    if "decoder.blocks.0.norm1.weight" not in weights:
        raise ValueError("decoder.blocks: only ViT decoders are supported, none by diffusion and no MLPs")
    if "quantize._codebook.embed" not in weights or their_config.get("num_codebooks", 1) != 1:
        raise ValueError("quantize._codebook.embed: only tokenizers with one codebook are supported")
    codes, patches = weights["quantize._codebook.embed"], weights["encoder.proj.weight"]
    if patches.shape[1] != 3 or their_config.get("n_labels") is not None:
        raise ValueError(f"encoder.proj.weight: takes {patches.shape[1]} channels, pictures have 3")
    # Only Euclidean codebooks keep sums of latents.
    cosine = weights.pop("quantize._codebook.embed_avg", None) is None
    return ImageViTConfig(
        image_size=image_size or their_config.get("image_size", 256),
        num_frames=num_frames,
        patch_size=patches.shape[-1],
        hidden_size=patches.shape[0],
        num_encoder_layers=_count(weights, r"encoder\.blocks\.(\d+)\."),
        num_decoder_layers=_count(weights, r"decoder\.blocks\.(\d+)\."),
        post_mlp="encoder.norm_mlp.weight" in weights,
        out_conv="decoder.out_conv.0.dwconv.weight" in weights,
        quantizer="cosine_vq" if cosine else "vq",
        codebook_size=codes.shape[0],
        code_dim=codes.shape[1],
    )


def resize_positions(weights: StateDict, model: ImageViT) -> StateDict:
    """4M's position embeddings for the model's picture size, as 4M itself interpolates them in every pass."""
    side = model.config.image_size // model.config.stride
    resized = dict(weights)
    for name in ("encoder.pos_emb", "decoder.pos_emb"):
        if name in weights:
            resized[name] = F.interpolate(weights[name].float(), size=(side, side), mode="bicubic")
    return resized


def _our_name(name: str) -> str:
    name = re.sub(r"^(post_quant_conv|post_quant_proj)(\.0)?\.", "quantizer.project_out.", name)
    return re.sub(r"^(quant_conv|quant_proj)(\.0)?\.", "quantizer.project_in.", name)


def _is_projection(name: str) -> bool:
    return _our_name(name).startswith("quantizer.")


def _count(weights: StateDict, pattern: str) -> int:
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def _shorten(names: list[str], number: int = 8) -> str:
    return ", ".join(names[:number]) + (f" and {len(names) - number} more" if len(names) > number else "")
