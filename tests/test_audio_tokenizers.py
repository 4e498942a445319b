"""Audio tokenizers in depth: orders of codebooks, codecs, the learned waveform decoder, short sounds."""

from pathlib import Path

import numpy as np
import pytest
import torch
import train_tokenizer
import yaml
from datasets import DatasetDict
from huggingface_hub.errors import StrictDataclassError
from test_tokenization import make_clips
from test_tokenizers import audio_tokenizer, codec_tokenizer, example, istft_tokenizer
from transformers import AutoModel, BertConfig, DacConfig, EncodecConfig, MimiConfig

from modeling_nano4m import Nano4MConfig
from tokenizers_4m import AudioCodecTokenizer, AudioCodecTokenizerConfig
from tokenizers_4m.audio.codebook_order import codes_to_token_ids, order_axes, order_vocab_size, token_ids_to_codes
from tokenizers_4m.audio.waveform_decoder import multi_resolution_stft_loss
from tokenizers_4m.quantizer import codebook_usage

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"
ORDERS = ("flattened", "coarse_to_fine", "delayed")


def encodec_config(**changes) -> EncodecConfig:
    sizes = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [5, 4, 2], "num_lstm_layers": 1}
    codebooks = {"codebook_size": 16, "codebook_dim": 8, "target_bandwidths": [0.8, 2.4]}
    return EncodecConfig(**{**sizes, **codebooks, "sampling_rate": 8000, **changes})


def mimi_config() -> MimiConfig:
    sizes = {"hidden_size": 16, "num_filters": 4, "upsampling_ratios": [5, 4], "upsample_groups": 16}
    transformer = {"num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    codebooks = {"codebook_size": 16, "codebook_dim": 8, "num_quantizers": 3}
    codebooks["vector_quantization_hidden_dimension"] = 8
    return MimiConfig(**sizes, **transformer, **codebooks, num_key_value_heads=2, sampling_rate=8000)


CODECS = {"dac": lambda: None, "encodec": encodec_config, "mimi": mimi_config}


# Orders of codebooks


def test_orders_by_hand():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    assert codes_to_token_ids(codes, "flattened", 9).tolist() == [[1, 4, 2, 5, 3, 6]]
    assert codes_to_token_ids(codes, "coarse_to_fine", 9).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert codes_to_token_ids(codes, "delayed", 9).tolist() == [[1, 9, 2, 4, 3, 5, 9, 6]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("num_codebooks", "num_frames"), [(1, 1), (1, 7), (4, 1), (3, 10), (8, 5)])
def test_orders_are_inverted_exactly(order, num_codebooks, num_frames):
    torch.manual_seed(0)
    codes = torch.randint(16, (5, num_codebooks, num_frames))
    token_ids = codes_to_token_ids(codes, order, 16)
    axes = order_axes(order, num_frames, num_codebooks)
    assert token_ids.shape == (5, axes["time"] * axes["codebook"])
    assert int(token_ids.max()) < order_vocab_size(order, 16) <= 17
    assert torch.equal(token_ids_to_codes(token_ids, order, num_codebooks, 16), codes)
    # The axes say which codebook stands where: shuffle the codes of the last one, and only its ids change.
    changed = codes.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 16
    differs = (codes_to_token_ids(changed, order, 16) != token_ids).view(5, *axes.values())
    codebook = list(axes).index("codebook") + 1
    assert differs.select(codebook, -1).sum() == 5 * num_frames == differs.sum()


def test_empty_cells_of_the_delayed_order():
    codes = torch.randint(16, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    token_ids = codes_to_token_ids(codes, "delayed", 16)
    empty = token_ids == 16
    assert empty.sum() == 2 * 3 * 2  # as many as codebooks are late, at both ends
    guessed = token_ids.masked_fill(empty, 5)
    assert torch.equal(token_ids_to_codes(guessed, "delayed", 3, 16), codes), "empty cells are not read"
    assert (token_ids_to_codes(torch.full_like(token_ids, 16), "delayed", 3, 16) == 0).all()


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_the_order_changes_only_where_ids_stand(order):
    flattened, model = audio_tokenizer(), audio_tokenizer(codebook_order=order)
    waveform = example(model)
    token_ids = model.encode(waveform)
    assert token_ids.shape[1] == model.config.num_tokens and int(token_ids.max()) < model.config.vocab_size
    assert torch.equal(model(waveform).token_ids, token_ids)
    assert torch.equal(model.decode_log_mel(token_ids), flattened.decode_log_mel(flattened.encode(waveform)))
    assert len(model.token_vectors()) == model.config.vocab_size
    assert torch.equal(model.token_vectors()[:16], flattened.token_vectors())


# Codecs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", CODECS)
@torch.no_grad()
def test_codecs_keep_the_contract(kind, order):
    model = codec_tokenizer(CODECS[kind](), codebook_order=order)
    waveform = example(model)
    token_ids, output = model.encode(waveform), model(waveform)
    assert token_ids.shape == (3, model.config.num_tokens) and int(token_ids.max()) < model.config.vocab_size
    assert torch.equal(output.token_ids, token_ids) and output.loss.isfinite()
    assert torch.equal(output.reconstruction, model.decode(token_ids))
    assert output.reconstruction.shape == waveform.shape
    described = model.describe()
    assert described["vocab_size"] == (17 if order == "delayed" else 16)
    modality = {key: described[key] for key in ("vocab_size", "token_axes")}
    assert Nano4MConfig(modalities={"audio": modality}).num_tokens_of("audio") == token_ids.shape[1]
    assert model.decode(torch.full_like(token_ids, model.config.vocab_size - 1)).isfinite().all()


@pytest.mark.parametrize("kind", CODECS)
@torch.no_grad()
def test_published_codecs_are_wrapped_as_they_are(kind, tmp_path):
    codec = codec_tokenizer(CODECS[kind]()).codec
    codec.save_pretrained(tmp_path / "codec")
    model = AudioCodecTokenizer.from_codec(tmp_path / "codec", num_quantizers=2, clip_seconds=0.25)
    assert (model.config.sampling_rate, model.config.num_samples) == (8000, 2000)
    waveform = torch.randn(2, 2000) * 0.1
    codes = token_ids_to_codes(model.encode(waveform), "flattened", 2, 16)
    padded = waveform.unsqueeze(1)  # whole frames, as 2000 is a multiple of 40
    theirs = codec.encode(padded, bandwidth=2.4) if kind == "encodec" else codec.encode(padded)
    theirs = theirs.audio_codes[0] if kind == "encodec" else theirs.audio_codes
    assert torch.equal(codes, theirs[:, :2])
    model.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoModel.from_pretrained(tmp_path / "tokenizer")
    assert loaded.describe() == model.describe()
    assert torch.equal(loaded.decode(loaded.encode(waveform)), model.decode(model.encode(waveform)))


def test_a_codec_learns():
    model = codec_tokenizer().train()
    torch.manual_seed(0)
    waveform = example(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        output = model(waveform)
        output.loss.backward()
        if not losses:
            assert all(p.grad is not None for p in model.codec.encoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append({name: value.item() for name, value in output.losses.items()})
    assert losses[-1]["stft"] < 0.9 * losses[0]["stft"] and set(losses[0]) == {"quantizer", "stft", "l1"}


def test_codes_of_a_codec_do_not_die():
    """Left alone, few of the later codebooks stay in use."""
    model = codec_tokenizer().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for _ in range(10):
        model(torch.randn(8, model.config.num_samples) * 0.1).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        codes = model.eval().encode(torch.randn(32, model.config.num_samples) * 0.1).view(32, -1, 3)
    perplexities = [codebook_usage(codes[..., level], 16)["perplexity"] for level in range(3)]
    assert min(perplexities) > 8, perplexities


def test_codecs_that_do_not_fit_are_named():
    for config, words in (
        (encodec_config(normalize=True, chunk_length_s=1.0, overlap=0.01), "normalize"),
        (encodec_config(audio_channels=2), "mono"),
        (BertConfig(), "'bert'"),
    ):
        with pytest.raises(StrictDataclassError, match=words):
            AudioCodecTokenizerConfig(codec_config=config)
    with pytest.raises(StrictDataclassError, match="num_quantizers=4"):
        AudioCodecTokenizerConfig(codec_config=encodec_config(), num_quantizers=4)
    with pytest.raises(ValueError, match="cannot be trained"):
        model = codec_tokenizer(encodec_config()).train()
        model(example(model))
    assert AudioCodecTokenizerConfig(codec_config={"model_type": "dac", "n_codebooks": 2}).num_quantizers == 2
    assert isinstance(AudioCodecTokenizerConfig().codec_config, DacConfig)


def test_the_script_trains_a_codec(tmp_path):
    DatasetDict({"train": make_clips(6), "validation": make_clips(2)}).save_to_disk(tmp_path / "clips")
    recipe = yaml.safe_load((CONFIGS / "audio_codec_video.yaml").read_text())
    recipe["codec_config"] |= {"encoder_hidden_size": 2, "decoder_hidden_size": 16, "codebook_size": 16}
    recipe |= {"max_steps": 2, "per_device_train_batch_size": 3, "codebook_order": "delayed", "report_to": ["none"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folders = ["--dataset", str(tmp_path / "clips"), "--output_dir", str(tmp_path / "tokenizer"), "--use_cpu", "true"]
    train_tokenizer.main([str(tmp_path / "recipe.yaml"), *folders])
    model = AutoModel.from_pretrained(tmp_path / "tokenizer")
    assert isinstance(model, AudioCodecTokenizer) and model.config.num_samples == 8000
    assert model.config.codebook_order == "delayed" and model.config.vocab_size == 17
    token_ids, valid_mask = model.encode_media([torch.randn(4000) * 0.1])
    assert token_ids.shape == (1, model.config.num_tokens) and valid_mask.all()


# The learned waveform decoder


@torch.no_grad()
def test_istft_decodes_what_the_model_reconstructs():
    model = istft_tokenizer()
    waveform = example(model)
    output = model(waveform)
    assert output.waveform.shape == waveform.shape
    assert torch.equal(model.decode(output.token_ids), output.waveform)
    assert torch.equal(model.decode(output.token_ids), model.decode(model.encode(waveform)))
    assert set(output.losses) == {"l1", "mse", "commitment", "stft", "waveform_mel"}
    assert model.train()(waveform).waveform.shape == (3, 8 * model.config.hop_length)
    assert audio_tokenizer()(waveform).waveform is None


def test_istft_learns_a_sound_and_leaves_the_ids_alone():
    model = istft_tokenizer(num_mels=40).train()
    seconds = torch.arange(model.config.num_samples) / 16000
    waveform = torch.stack([torch.sin(2 * torch.pi * pitch * seconds) * 0.3 for pitch in (300, 500, 800)])
    output = model(waveform)
    (output.losses["stft"] + output.losses["waveform_mel"]).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("waveform_decoder."), name
    optimizer = torch.optim.AdamW(model.waveform_decoder.parameters(), lr=3e-3)
    for _ in range(60):
        output = model(waveform)
        (output.losses["stft"] + output.losses["waveform_mel"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        again = model.vocode(model.log_mel(waveform))
    spectra = torch.fft.rfft(again).abs()
    assert [round(int(peak) * 2, -2) for peak in spectra.argmax(1)] == [300, 500, 800]


def test_stft_loss_hears_magnitudes_and_no_phases():
    torch.manual_seed(0)
    sound = torch.randn(2, 4000) * 0.1
    assert multi_resolution_stft_loss(sound, sound, (256, 512)) == 0
    assert multi_resolution_stft_loss(-sound, sound, (256, 512)) < 1e-6
    softer, louder = (multi_resolution_stft_loss(sound * level, sound, (256, 512)) for level in (0.9, 0.3))
    assert 0 < softer < louder
    silence = torch.zeros(2, 4000, requires_grad=True)
    loss = multi_resolution_stft_loss(silence, torch.zeros(2, 4000), (256, 512))
    loss.backward()
    assert loss == 0 and silence.grad.isfinite().all()


# Short sounds in long clips


def short_sounds(number: int, num_samples: int, length: int) -> torch.Tensor:
    """Tones of many pitches, faded in and out, at the start of clips that are silent from then on."""
    torch.manual_seed(2)
    seconds = torch.arange(length) / 16000
    pitches = 100 * 2 ** (torch.rand(number, 1) * 5)
    tones = torch.sin(2 * torch.pi * pitches * seconds) * 0.3 * torch.sin(torch.pi * seconds / seconds[-1])
    return torch.nn.functional.pad(tones, (0, num_samples - length))


@torch.no_grad()
def test_silence_after_a_sound_changes_nothing():
    """Neither ids nor what training makes of them: normalisation, losses, codebook."""
    short, long = (audio_tokenizer(clip_seconds=seconds, num_layers=1) for seconds in (1.0, 4.0))
    for parameter in short.parameters():  # blocks that start as the identity would look at no neighbours
        parameter.add_(torch.randn(parameter.shape) * 0.05)
    long.load_state_dict(short.state_dict())
    found = []
    for model in (short, long):
        waveform = short_sounds(4, model.config.num_samples, 6000)
        model.fit_normalisation(waveform)
        normalisation = torch.tensor([model.config.log_mel_mean, model.config.log_mel_std])
        token_ids = model.encode(waveform)[:, : 2 * 6000 // 1280]  # two a step of 1,280 samples
        before = model(waveform).losses
        torch.manual_seed(0)
        losses = model.train()(waveform).losses
        found.append([normalisation, token_ids, before["l1"], losses["l1"], losses["mse"], model.quantizer.codebooks])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_silent_clips_have_a_loss():
    model = istft_tokenizer()
    silence = torch.zeros(2, model.config.num_samples)
    model.fit_normalisation(silence)
    assert model(silence).loss.isfinite() and model.train()(silence).loss.isfinite()


def test_whole_numbers_are_samples_of_a_file():
    tokenizer = audio_tokenizer()
    floats = np.sin(np.arange(4000) / 9).astype(np.float32) * 0.6
    whole = (floats * 32768).astype(np.int16)
    torch.testing.assert_close(tokenizer.preprocess([whole]), tokenizer.preprocess([floats]), atol=1e-4, rtol=0)


def test_what_was_measured_can_be_trained_afterwards():
    tokenizer = istft_tokenizer()
    batch = tokenizer.preprocess([np.sin(np.arange(4000) / 9).astype(np.float32)] * 2)
    with torch.inference_mode():
        tokenizer.decode(tokenizer.encode(batch))
    tokenizer.train()(batch).loss.backward()
