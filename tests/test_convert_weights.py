"""Weights that others trained give the same ids and pictures here as in a plain forward pass over their own names.

The passes below are written from the papers and the published layouts of weights, with functions of torch alone.
"""

import math
import sys
import traceback
import types

import pytest
import torch
import torch.nn.functional as F
from convert_checkpoint import main
from diffusers import VQModel
from transformers import AutoModel

from tokenizers_4m import ImageViT, ImageVQGAN, convert_weights

PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Weights(dict):
    """Random weights that come into being when a pass first asks for them."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def take(self, name: str, *shape: int) -> torch.Tensor:
        if name not in self:
            fan_in = math.prod(shape[1:])
            scale = fan_in**-0.5 if len(shape) > 1 else 0.1
            self[name] = torch.randn(*shape, generator=self.generator) * scale
        return self[name]

    def conv(self, x, name, channels, size, **options):
        weight = self.take(f"{name}.weight", channels, x.shape[1] // options.get("groups", 1), size, size)
        return F.conv2d(x, weight, self.take(f"{name}.bias", channels), **options)

    def linear(self, x, name, channels):
        return F.linear(x, self.take(f"{name}.weight", channels, x.shape[-1]), self.take(f"{name}.bias", channels))

    def norm(self, x, name, groups=None):
        size = x.shape[1] if groups else x.shape[-1]
        weight, bias = 1 + self.take(f"{name}.weight", size), self.take(f"{name}.bias", size)
        self[f"{name}.weight"] = weight
        if groups:
            return F.group_norm(x, groups, weight, bias, eps=1e-6)
        return F.layer_norm(x, (size,), weight, bias, eps=1e-6)


def taming_block(w, x, name, channels):
    h = w.conv(F.silu(w.norm(x, f"{name}.norm1", 32)), f"{name}.conv1", channels, 3, padding=1)
    h = w.conv(F.silu(w.norm(h, f"{name}.norm2", 32)), f"{name}.conv2", channels, 3, padding=1)
    return h + (x if x.shape[1] == channels else w.conv(x, f"{name}.nin_shortcut", channels, 1))


def taming_attention(w, x, name):
    h = w.norm(x, f"{name}.norm", 32)
    q, k, v = (w.conv(h, f"{name}.{part}", x.shape[1], 1).flatten(2) for part in "qkv")
    scores = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(-1)
    return x + w.conv((v @ scores.transpose(1, 2)).view_as(x), f"{name}.proj_out", x.shape[1], 1)


def taming_middle(w, x, name):
    x = taming_block(w, x, f"{name}.block_1", x.shape[1])
    return taming_block(w, taming_attention(w, x, f"{name}.attn_1"), f"{name}.block_2", x.shape[1])


def taming_pass(w, pictures, widths=(32, 32, 64), latents=16, codes=(64, 8)):
    """CompVis VQGAN with attention at the lowest resolution: ids and reconstruction."""
    top = len(widths) - 1
    x = w.conv(pictures, "encoder.conv_in", widths[0], 3, padding=1)
    for level, width in enumerate(widths):
        for i in range(2):
            x = taming_block(w, x, f"encoder.down.{level}.block.{i}", width)
            if level == top:
                x = taming_attention(w, x, f"encoder.down.{level}.attn.{i}")
        if level < top:
            x = w.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", width, 3, stride=2)
    x = F.silu(w.norm(taming_middle(w, x, "encoder.mid"), "encoder.norm_out", 32))
    x = w.conv(w.conv(x, "encoder.conv_out", latents, 3, padding=1), "quant_conv", codes[1], 1)
    codebook = w.take("quantize.embedding.weight", *codes)
    ids = torch.cdist(x.permute(0, 2, 3, 1).flatten(0, 2), codebook).argmin(1).view(len(x), *x.shape[2:])
    x = w.conv(codebook[ids].permute(0, 3, 1, 2), "post_quant_conv", latents, 1)
    x = taming_middle(w, w.conv(x, "decoder.conv_in", widths[-1], 3, padding=1), "decoder.mid")
    for level in reversed(range(len(widths))):
        for i in range(3):
            x = taming_block(w, x, f"decoder.up.{level}.block.{i}", widths[level])
            if level == top:
                x = taming_attention(w, x, f"decoder.up.{level}.attn.{i}")
        if level:
            x = F.interpolate(x, scale_factor=2.0)
            x = w.conv(x, f"decoder.up.{level}.upsample.conv", widths[level], 3, padding=1)
    return ids.flatten(1), w.conv(F.silu(w.norm(x, "decoder.norm_out", 32)), "decoder.conv_out", 3, 3, padding=1)


def vit_transformer(w, x, name, post_mlp):
    batch, width, rows, columns = x.shape
    x = (x + w.take(f"{name}.pos_emb", 1, width, rows, columns)).flatten(2).transpose(1, 2)
    for i in range(2):
        h = w.linear(w.norm(x, f"{name}.blocks.{i}.norm1"), f"{name}.blocks.{i}.attn.qkv", 3 * width)
        q, k, v = h.view(batch, -1, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
        h = ((q @ k.transpose(-2, -1)) * 64**-0.5).softmax(-1) @ v
        x = x + w.linear(h.transpose(1, 2).reshape(x.shape), f"{name}.blocks.{i}.attn.proj", width)
        h = w.linear(w.norm(x, f"{name}.blocks.{i}.norm2"), f"{name}.blocks.{i}.mlp.fc1", 4 * width)
        x = x + w.linear(F.gelu(h), f"{name}.blocks.{i}.mlp.fc2", width)
    if post_mlp:
        h = w.linear(w.norm(x, f"{name}.norm_mlp"), f"{name}.post_mlp.fc1", 4 * width).tanh()
        x = x + w.linear(h, f"{name}.post_mlp.fc2", width)
    return x.transpose(1, 2).unflatten(2, (rows, columns))


def fourm_pass(w, pictures, cosine, extras, width=128, patch=8):
    """4M's VQVAE: ids and reconstruction."""
    x = vit_transformer(w, w.conv(pictures, "encoder.proj", width, patch, stride=patch), "encoder", extras)
    x = w.conv(x, "quant_proj", 6, 1).permute(0, 2, 3, 1)
    codebook = w.take("quantize._codebook.embed", 40, 6)
    w["quantize._codebook.initted"], w["quantize._codebook.cluster_size"] = torch.ones(1), torch.ones(40)
    if cosine:  # searched on the sphere, but looked up as they are
        ids = (F.normalize(x, dim=-1) @ F.normalize(codebook, dim=-1).t()).argmax(-1)
    else:
        w["quantize._codebook.embed_avg"] = codebook.clone()
        ids = torch.cdist(x, codebook).argmin(-1)
    x = vit_transformer(w, w.conv(codebook[ids].permute(0, 3, 1, 2), "post_quant_proj", width, 1), "decoder", extras)
    x = w.linear(x.flatten(2).transpose(1, 2), "decoder.out_proj", 3 * patch**2).transpose(1, 2)
    x = F.fold(x, pictures.shape[2:], patch, stride=patch)
    for i in range(2 if extras else 0):
        h = w.conv(x, f"decoder.out_conv.{i}.dwconv", 3, 7, padding=3, groups=3).permute(0, 2, 3, 1)
        h = w.linear(w.norm(h, f"decoder.out_conv.{i}.norm"), f"decoder.out_conv.{i}.pwconv1", 12)
        h = w.linear(F.gelu(h), f"decoder.out_conv.{i}.pwconv2", 3)
        x = x + (w.take(f"decoder.out_conv.{i}.gamma", 3) * h).permute(0, 3, 1, 2)
    return ids.flatten(1), x


@torch.no_grad()
def check_parity(model, ids, reconstruction):
    assert torch.equal(model.encode(PICTURES[:, None]), ids)
    assert len(ids.unique()) > 5
    torch.testing.assert_close(model.decode(ids)[:, 0], reconstruction, atol=1e-4, rtol=1e-4)


def taming_weights() -> tuple[dict, torch.Tensor, torch.Tensor]:
    weights = Weights()
    ids, reconstruction = taming_pass(weights, PICTURES)
    return dict(weights), ids, reconstruction


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("vqgan_f16_epoch1.pth", lambda weights: weights),
        ("last.ckpt", lambda weights: {"state_dict": weights | {"loss.perceptual_loss.lin0": torch.ones(1)}}),
        (
            "model.ckpt",
            lambda weights: {
                "state_dict": {f"first_stage_model.{k}": v for k, v in weights.items()}
                | {"model.diffusion_model.out.weight": torch.ones(1)},
                "epoch": 3,
            },
        ),
        ("ddp.pth", lambda weights: {"model": {f"module.{k}": v for k, v in weights.items()}, "optimizer": {}}),
    ],
)
def test_vqgan_of_compvis(name, wrap, tmp_path, capsys):
    weights, ids, reconstruction = taming_weights()
    torch.save(wrap(weights), tmp_path / name)
    main(["--checkpoint", str(tmp_path / name), "--output_dir", str(tmp_path / "out"), "--image_size", "32"])
    assert "ImageVQGAN, 32 pixels, stride 4, 64 ids of 64" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(model, ImageVQGAN) and list(model.config.attention_levels) == [2]
    check_parity(model, ids, reconstruction)


@pytest.mark.parametrize("attention", [True, False])
def test_vqmodel_of_diffusers(attention, tmp_path):
    torch.manual_seed(0)
    theirs = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=8,
        num_vq_embeddings=64,
        vq_embed_dim=4,
        norm_num_groups=8,
        mid_block_add_attention=attention,
    ).eval()
    torch.nn.init.normal_(theirs.quantize.embedding.weight)
    theirs.save_pretrained(tmp_path)
    model, missing, unexpected = convert_weights(tmp_path, image_size=32)
    assert not missing and not unexpected and model.config.norm_num_groups == 8
    with torch.no_grad():
        ids = theirs.quantize(theirs.encode(PICTURES).latents)[2][2].view(2, -1)
        check_parity(model, ids, theirs(PICTURES).sample)


@pytest.mark.parametrize("extras", [True, False])
@pytest.mark.parametrize("cosine", [True, False])
def test_vqvae_of_4m(cosine, extras, tmp_path):
    weights = Weights()
    ids, reconstruction = fourm_pass(weights, PICTURES, cosine, extras)
    torch.save({"model": dict(weights)}, tmp_path / "rgb.pth")
    model, _, _ = convert_weights(tmp_path / "rgb.pth", image_size=32)
    assert isinstance(model, ImageViT)
    check_parity(model, ids, reconstruction)
    model, _, _ = convert_weights(tmp_path / "rgb.pth", image_size=64)  # positions are interpolated, as 4M does
    expected = F.interpolate(weights["encoder.pos_emb"], size=(8, 8), mode="bicubic")
    torch.testing.assert_close(model.encoder.pos_emb, expected)


def test_training_goes_on_from_the_weights(tmp_path):
    weights, ids, _ = taming_weights()
    torch.save(weights, tmp_path / "vqgan.pth")
    model, _, _ = convert_weights(tmp_path / "vqgan.pth", image_size=32)
    before = model.token_vectors().clone()
    model.train()(PICTURES[:, None]).loss.backward()
    moved = (model.token_vectors() - before).norm(dim=1) / before.norm(dim=1)
    assert moved.median() < 0.3, "the codebook was thrown away"


def test_names_that_do_not_match_are_reported(tmp_path, capsys):
    weights, _, _ = taming_weights()
    lost = weights.pop("decoder.norm_out.bias")
    torch.save(weights | {"decoder.extra.weight": lost}, tmp_path / "vqgan.pth")
    arguments = ["--checkpoint", str(tmp_path / "vqgan.pth"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="1 missing: decoder.conv_norm_out.bias; 1 unexpected: decoder.extra.weight"):
        main(arguments)
    assert not (tmp_path / "out").exists()
    main([*arguments, "--image_size", "32", "--allow_missing", "true"])
    printed = capsys.readouterr().out
    assert "started at random: decoder.conv_norm_out.bias" in printed and "left out: decoder.extra.weight" in printed


def test_files_that_hold_no_tokenizer_are_named(tmp_path):
    torch.save({"state_dict": {"head.weight": torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: no image tokenizer found"):
        convert_weights(tmp_path / "other.pth")
    torch.save({"hook": print}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="code.ckpt: cannot be read without running code"):
        convert_weights(tmp_path / "code.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: has none of"):
        convert_weights(tmp_path / "empty")
    weights, _, _ = taming_weights()
    both = {"generator": {"weights": 0}, "model": weights, "ema": {f"ema.{name}": v for name, v in weights.items()}}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(ValueError, match="several tokenizers.*'', 'ema.'"):
        convert_weights(tmp_path / "both.pth")
    assert convert_weights(tmp_path / "both.pth", image_size=32, prefix="ema.")[1] == []
    gumbel = {k: v for k, v in weights.items() if "embedding" not in k} | {"quantize.proj.weight": torch.ones(1)}
    torch.save(gumbel, tmp_path / "gumbel.pth")
    with pytest.raises(ValueError, match="Gumbel"):
        convert_weights(tmp_path / "gumbel.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a pointer of git-lfs, .*git lfs pull",
        ),
        (b"404: Not Found\n", "was not written by torch.save, or is damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "was not written by torch.save, or is damaged"),
        (b"\x80\x02}q\x00(K\x01K\x02h\x99u.", "was not written by torch.save, or is damaged"),
    ],
)
def test_files_of_other_kinds_are_named(content, message, tmp_path):
    file = tmp_path / "file.pth"
    file.write_bytes(content)
    with pytest.raises(SystemExit, match=f"error: {file}: {message}") as caught:
        main(["--checkpoint", str(file), "--output_dir", str(tmp_path / "out")])
    assert "weights_only" not in "".join(traceback.format_exception(caught.value)), "torch's unsafe advice"


CONVOLUTIONS = {"encoder.conv_in.weight": (8, 3, 3, 3), "encoder.conv_out.weight": (8, 8, 3, 3)}
CONVOLUTIONS |= {"decoder.conv_in.weight": (8, 8, 3, 3), "quantize.embedding.weight": (4, 8)}
TRANSFORMER = {"encoder.proj.weight": (64, 3, 16, 16), "decoder.blocks.0.norm1.weight": (64,)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({1: (1,), "encoder.conv_in.weight": (8, 3, 3, 3)}, "encoder.conv_out.weight is missing"),
        ({"encoder.conv_in.weight": (8,)}, "encoder.conv_in.weight has 1 dimensions, not 4"),
        (CONVOLUTIONS | {"quantize.embedding.weight": (4,)}, "quantize.embedding.weight has 1 dimensions, not 2"),
        (CONVOLUTIONS, "encoder.down: has no levels"),
        (CONVOLUTIONS | {"encoder.down.0.block.0.conv1.weight": ()}, "a weight of the encoder has too few dimensions"),
        (TRANSFORMER | {"quantize._codebook.embed": (1, 4, 8)}, "quantize._codebook.embed has 3 dimensions, not 2"),
        (
            TRANSFORMER | {"encoder.proj.weight": (8, 3, 4, 4), "quantize._codebook.embed": (4, 8)},
            r"[\s\S]*hidden_size=8 must be a multiple of 64",
        ),
    ],
)
def test_weights_of_other_shapes_are_named(shapes, message, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {name: torch.zeros(shape) for name, shape in shapes.items()}}, file)
    words = ["--checkpoint", str(file), "--output_dir", str(tmp_path / "out"), "--allow_missing", "true"]
    with pytest.raises(SystemExit, match=f"error: {file}: {message}"):
        main(words)


@pytest.mark.parametrize(("content", "message"), [("{bad", "not valid JSON"), ("[1]", "must hold an object")])
def test_a_wrong_configuration_is_named(content, message, tmp_path):
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        convert_weights(tmp_path)


@pytest.mark.parametrize("name", ["model_checkpoint.ModelCheckpoint", "my_callbacks.Mine"])
def test_of_lightning_only_its_own_callbacks_are_passed_over(name, tmp_path, monkeypatch):
    """Lightning 1 keeps the state of a callback under its class."""
    module, _, class_name = f"pytorch_lightning.callbacks.{name}".rpartition(".")
    callback = type(class_name, (), {"__module__": module})
    weights, ids, reconstruction = taming_weights()
    with monkeypatch.context() as patch:
        for package in ("pytorch_lightning", "pytorch_lightning.callbacks", module):
            patch.setitem(sys.modules, package, types.ModuleType(package))
        setattr(sys.modules[module], class_name, callback)
        content = {"callbacks": {callback: {"best_model_score": torch.ones(1)}}, "state_dict": weights}
        torch.save(content | {"pytorch-lightning_version": "1.0.8"}, tmp_path / "last.ckpt")
    if class_name == "Mine":
        with pytest.raises(ValueError, match="last.ckpt: cannot be read without running code .*my_callbacks.Mine"):
            convert_weights(tmp_path / "last.ckpt")
        return
    known = torch.serialization.get_safe_globals()
    check_parity(convert_weights(tmp_path / "last.ckpt", image_size=32)[0], ids, reconstruction)
    assert len(torch.serialization.get_safe_globals()) == len(known)
