"""The tokenizer contract, for all of them: exact round trips, save and load, bad input."""

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoTokenizer, DacConfig

from tokenizers_4m import (
    AudioCodecTokenizer,
    AudioCodecTokenizerConfig,
    AudioTokenizer,
    AudioTokenizerConfig,
    ImageTokenizer,
    ImageTokenizerConfig,
    ImageViT,
    ImageViTConfig,
    ImageVQGAN,
    ImageVQGANConfig,
    TextTokenizer,
    TextTokenizerConfig,
    TextVQTokenizer,
    TextVQTokenizerConfig,
)
from tokenizers_4m.quantizer import VectorQuantizer, codebook_usage

TEXTS = ["a red disc moves left", "a blue ring stays still", "the green cross drifts upwards", "żółw 海 🐢"]


def image_tokenizer(**changes) -> ImageTokenizer:
    torch.manual_seed(0)
    fields = {"image_size": 16, "num_frames": 2, "block_out_channels": (8, 16, 16), "codebook_size": 32}
    model = ImageTokenizer(ImageTokenizerConfig(**{**fields, **changes}))
    model.train()(torch.randn(8, model.config.num_frames, 3, 16, 16))  # starts the codebook
    return model.eval()


def image_vqgan(**changes) -> ImageVQGAN:
    torch.manual_seed(0)
    fields = {"image_size": 16, "num_frames": 2, "block_out_channels": (8, 16, 16), "layers_per_block": 1}
    fields |= {"attention_levels": (2,), "latent_channels": 8, "norm_num_groups": 4, "codebook_size": 32}
    model = ImageVQGAN(ImageVQGANConfig(**{**fields, "code_dim": 8, **changes}))
    model.train()(torch.randn(8, 2, 3, 16, 16))
    return model.eval()


def image_vit(**changes) -> ImageViT:
    torch.manual_seed(0)
    fields = {"image_size": 16, "num_frames": 2, "patch_size": 4, "hidden_size": 64, "num_encoder_layers": 2}
    fields |= {"num_decoder_layers": 2, "post_mlp": True, "out_conv": True, "codebook_size": 32}
    model = ImageViT(ImageViTConfig(**{**fields, **changes}))
    model.train()(torch.randn(8, 2, 3, 16, 16))
    return model.eval()


def audio_tokenizer(**changes) -> AudioTokenizer:
    torch.manual_seed(0)
    fields = {
        "clip_seconds": 0.5,
        "num_mels": 32,
        "hidden_size": 16,
        "codebook_size": 16,
        "num_quantizers": 2,
    }
    model = AudioTokenizer(AudioTokenizerConfig(**{**fields, **changes}))
    model.train()(torch.randn(8, model.config.num_samples) * 0.1)
    return model.eval()


def istft_tokenizer(**changes) -> AudioTokenizer:
    fields = {"waveform_decoder": "istft", "istft_hidden_size": 16, "istft_num_layers": 1, "istft_segment_frames": 8}
    return audio_tokenizer(**{**fields, **changes})


def codec_tokenizer(codec_config=None, **changes) -> AudioCodecTokenizer:
    """A codec of three codebooks at half the rate of the clips."""
    torch.manual_seed(0)
    if codec_config is None:
        sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "downsampling_ratios": [2, 4, 5]}
        codebooks = {"n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}
        codec_config = DacConfig(**sizes, **codebooks, sampling_rate=8000)
    model = AudioCodecTokenizer(AudioCodecTokenizerConfig(codec_config=codec_config, clip_seconds=0.5, **changes))
    for name, buffer in model.named_buffers():
        if name.endswith(("embed", "embed_sum")):  # EnCodec's and Mimi's codes, which start as zero
            buffer.normal_()
    return model.eval()


def text_tokenizer(**changes) -> TextTokenizer:
    return TextTokenizer.train_from_iterator(TEXTS, TextTokenizerConfig(**{"max_tokens": 16, **changes}))


def text_vq_tokenizer(**changes) -> TextVQTokenizer:
    torch.manual_seed(0)
    fields = {"max_subwords": 16, "num_latents": 6, "hidden_size": 16, "num_hidden_layers": 1, "codebook_size": 32}
    model = TextVQTokenizer.with_vocabulary(TEXTS, TextVQTokenizerConfig(**{**fields, **changes}))
    model.train()(model.preprocess(TEXTS))
    return model.eval()


def example(model):
    torch.manual_seed(1)
    if isinstance(model, TextVQTokenizer):
        return model.preprocess(TEXTS[:3])
    if model.modality == "image":
        return torch.randn(3, model.config.num_frames, 3, 16, 16)
    if model.modality == "audio":
        return torch.randn(3, model.config.num_samples) * 0.1
    return TEXTS[:3]


MAKERS = {
    "image": image_tokenizer,
    "image_vqgan": image_vqgan,
    "image_vit": image_vit,
    "audio": audio_tokenizer,
    "audio_istft": istft_tokenizer,
    "audio_codec": codec_tokenizer,
    "text": text_tokenizer,
    "text_vq": text_vq_tokenizer,
}


@pytest.fixture(params=MAKERS)
def model(request):
    return MAKERS[request.param]()


@torch.no_grad()
def test_ids_fill_the_declared_grid(model):
    token_ids = model.encode(example(model))
    assert token_ids.shape == (3, model.config.num_tokens) and token_ids.dtype == torch.int64
    assert np.prod(list(model.config.token_axes.values())) == model.config.num_tokens
    assert 0 <= token_ids.min() and token_ids.max() < model.config.vocab_size
    assert len(set(map(tuple, token_ids.tolist()))) == 3, "different inputs must get different ids"


@torch.no_grad()
def test_decoding_the_ids_is_the_reconstruction_exactly():
    image, audio, text = image_tokenizer(), audio_tokenizer(), text_tokenizer()
    output = image(example(image))
    assert torch.equal(image.encode(example(image)), output.token_ids)
    assert torch.equal(image.decode(output.token_ids), output.reconstruction)
    output = audio(example(audio))
    assert torch.equal(audio.encode(example(audio)), output.token_ids)
    assert torch.equal(audio.decode_log_mel(output.token_ids), output.reconstruction)
    assert torch.equal(audio.decode(output.token_ids), audio.vocode(output.reconstruction))
    assert text.decode(text.encode(TEXTS)) == TEXTS


@torch.no_grad()
def test_auto_classes_load_equal_models(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    token_ids = model.encode(example(model))
    assert torch.equal(loaded.encode(example(model)), token_ids)
    before, after = model.decode(token_ids), loaded.decode(token_ids)
    assert before == after if isinstance(before, list) else torch.equal(before, after)
    assert loaded.fingerprint() == model.fingerprint() and loaded.describe() == model.describe()


def test_fingerprint_follows_the_weights():
    one, other = image_tokenizer(), image_tokenizer()
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert one.fingerprint() != other.fingerprint()
    assert text_tokenizer().fingerprint() != text_tokenizer(lowercase=True).fingerprint()


@torch.no_grad()
def test_batching_does_not_change_the_ids(model):
    together = model.encode(example(model))
    alone = torch.cat([model.encode(example(model)[i : i + 1]) for i in range(3)])
    assert (together == alone).float().mean() > 0.99


def test_wrong_ids_and_shapes_are_named(model):
    with pytest.raises(ValueError, match="must have shape"):
        model.decode(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="must lie in"):
        model.decode(torch.full((1, model.config.num_tokens), model.config.vocab_size))


def test_image_files_and_strips(tmp_path):
    model = image_tokenizer()
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    strip = Image.new("RGB", (32, 16))
    for i, frame in enumerate(frames):
        strip.paste(frame, (16 * i, 0))
    strip.save(tmp_path / "strip.png")
    batch = model.preprocess([frames])
    assert torch.equal(model.preprocess([tmp_path / "strip.png"]), batch)
    assert torch.equal(model.preprocess([np.stack([np.asarray(f) for f in frames])]), batch)
    assert [np.asarray(f).tolist() for f in model.postprocess(batch)[0]] == [np.asarray(f).tolist() for f in frames]
    single = model.preprocess([Image.new("RGB", (40, 30), "red")])
    assert torch.equal(single[0, 0], single[0, 1]) and single.shape[-1] == 16
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png"):
        model.preprocess([tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="3 frames"):
        model.preprocess([frames + frames[:1]])


@pytest.mark.parametrize("image_size", [32, 64, 256])
@pytest.mark.parametrize(
    ("patch_size", "num_levels", "stride"), [(1, 3, 4), (4, 1, 4), (2, 3, 8), (8, 1, 8), (1, 5, 16), (4, 3, 16)]
)
@torch.no_grad()
def test_strides_and_sizes(patch_size, num_levels, stride, image_size):
    sizes = {"patch_size": patch_size, "block_out_channels": (8,) * num_levels, "image_size": image_size}
    config = ImageTokenizerConfig(**sizes, num_frames=1, codebook_size=16, mid_block_add_attention=False)
    assert config.stride == stride and config.num_tokens == (image_size // stride) ** 2
    model, pixel_values = ImageTokenizer(config).eval(), torch.randn(1, 1, 3, image_size, image_size)
    output = model(pixel_values)
    assert output.reconstruction.shape == pixel_values.shape
    assert torch.equal(model.decode(model.encode(pixel_values)), output.reconstruction)


def test_sizes_that_are_no_multiple_of_the_stride_are_named():
    with pytest.raises(StrictDataclassError, match="image_size=40"):
        ImageTokenizerConfig(image_size=40)
    with pytest.raises(StrictDataclassError, match="image_size=40"):
        ImageViTConfig(image_size=40)
    with pytest.raises(StrictDataclassError, match="attention_levels"):
        ImageVQGANConfig(attention_levels=(5,))


def test_sound_files_are_resampled_mixed_and_padded(tmp_path):
    model = audio_tokenizer()
    seconds = np.arange(int(44100 * 0.25)) / 44100
    tone = np.sin(2 * np.pi * 440 * seconds).astype("float32") * 0.5
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], axis=1), 44100)
    waveform = model.preprocess([tmp_path / "tone.wav"])
    assert waveform.shape == (1, model.config.num_samples)
    assert waveform[0, 4100:].abs().max() == 0
    peak = torch.fft.rfft(waveform[0, :4000]).abs().argmax() * 16000 / 4000
    assert abs(peak - 440) < 5
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="broken.wav"):
        model.preprocess([tmp_path / "broken.wav"])
    with pytest.raises(ValueError, match="finite"):
        model.preprocess([np.array([np.nan, 0.0])])


def test_vocoder_keeps_the_pitch():
    model = audio_tokenizer(num_mels=80, clip_seconds=1.0)
    tone = torch.sin(2 * torch.pi * 500 * torch.arange(model.config.num_samples) / 16000)[None] * 0.5
    again = model.vocode(model.log_mel(tone))
    assert again.shape == tone.shape
    assert abs(torch.fft.rfft(again[0]).abs().argmax() * 16000 / 16000 - 500) <= 20
    assert torch.equal(again, model.vocode(model.log_mel(tone))), "decoding must be deterministic"


def test_text_budget_unicode_and_empty():
    model = text_tokenizer()
    empty, long = model.encode(["", "red " * 100])
    assert empty.tolist()[:2] == [1, 2] and (empty[2:] == 0).all()
    assert long[-1] == 2 and model.valid_mask(long[None]).all()
    assert model.decode(model.encode(["", "日本"])) == ["", "日本"]
    ids = model.encode([TEXTS[0]])
    ids[0, -2:] = 40  # after the end: not read
    assert model.decode(ids) == TEXTS[:1]
    assert text_tokenizer(lowercase=True).decode(text_tokenizer(lowercase=True).encode(["RED"])) == ["red"]
    assert model.token_frequencies.sum() == pytest.approx(1) and model.token_frequencies[0] == 0


def test_text_vocabulary_is_an_ordinary_fast_tokenizer(tmp_path):
    model = text_tokenizer()
    model.save_pretrained(tmp_path)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        fast(TEXTS[0], add_special_tokens=False)["input_ids"]
        == model.encode([TEXTS[0]])[0].tolist()[1:][: len(fast(TEXTS[0], add_special_tokens=False)["input_ids"])]
    )
    with pytest.raises(ValueError, match="no text"):
        TextTokenizer.train_from_iterator(["", "  "], TextTokenizerConfig())
    with pytest.raises(ValueError, match="no vocabulary"):
        TextTokenizer(TextTokenizerConfig()).encode(["a"])


def test_quantizer_keeps_its_codes_alive():
    """Ten clusters, and codes that all start in one of them: without re-seeding most would never be used."""
    found = {}
    for threshold in (0.0, 0.1):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(dim=4, codebook_size=32, code_dim=4, dead_code_threshold=threshold).train()
        centres = torch.randn(10, 4) * 10
        quantizer(centres[:1] + 0.01 * torch.randn(256, 4))
        for _ in range(150):
            quantizer(centres[torch.randint(10, (256,))] + 0.01 * torch.randn(256, 4))
        found[threshold] = len(set(quantizer.eval()(centres).token_ids.flatten().tolist()))
    assert found[0.1] == 10 and found[0.0] < 8


def test_codebook_usage():
    usage = codebook_usage(torch.tensor([0, 0, 1, 1]), 16)
    assert usage["used_codes"] == 2 and abs(usage["perplexity"] - 2) < 1e-5


def test_more_codebooks_leave_less_behind():
    torch.manual_seed(0)
    latents = torch.randn(2048, 4)
    errors = []
    for num_quantizers in (1, 3):
        quantizer = VectorQuantizer(4, 16, code_dim=4, num_quantizers=num_quantizers).train()
        for _ in range(30):
            quantizer(latents)
        errors.append(quantizer.eval()(latents).commitment_loss.item())
    assert errors[1] < 0.5 * errors[0]


def test_gradients_reach_the_encoder():
    for model, batch in (
        (image_tokenizer(), torch.randn(2, 2, 3, 16, 16)),
        (audio_tokenizer(), torch.randn(2, 8000)),
    ):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model.train()(batch).loss.backward()
        optimizer.step()  # residual blocks start as the identity, and see gradients inside from the second step on
        optimizer.zero_grad()
        model(batch).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
