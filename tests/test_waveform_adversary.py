"""The adversarial loss of the learned waveform decoder: what it reaches, what it leaves alone, resuming."""

from pathlib import Path

import pytest
import torch
import train_tokenizer
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from test_audio_tokenizers import short_sounds
from test_tokenization import make_clips
from test_tokenizer_trainer import check_half_precision, check_log, check_resumed, fit_adversarially
from test_tokenizers import audio_tokenizer, codec_tokenizer, istft_tokenizer, text_vq_tokenizer
from transformers import AutoModel

from trainers import ClipCollator
from trainers.adversary import Adversary, SpectrogramDiscriminator, adaptive_weight
from trainers.tokenizer_trainer import real_and_made


def train(folder, model=None, fails_at=None, **changes):
    model = istft_tokenizer() if model is None else model
    sounds = short_sounds(10, 8000, 5000)
    sounds = torch.cat([sounds, torch.zeros(1, 8000)]).tolist()  # one clip is silent
    rows = {"train": Dataset.from_dict({"audio": sounds[2:]}), "validation": Dataset.from_dict({"audio": sounds[:2]})}
    data = {split: clips.with_format("numpy") for split, clips in rows.items()}
    fields = {"discriminator_channels": 4, **changes}
    return fit_adversarially(folder, model, data, ClipCollator(model), fails_at, **fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def test_the_loss_is_logged_once_it_counts(whole):
    check_log(whole[0], "stft")


def test_a_resumed_training_equals_an_uninterrupted_one(whole, tmp_path):
    check_resumed(train, whole, tmp_path)


def test_gradients_reach_the_discriminator_and_only_the_waveform_decoder():
    model = istft_tokenizer().train()
    adversary = Adversary(SpectrogramDiscriminator((256, 512), 4, 2), 1e-3, Accelerator(cpu=True))
    waveform = short_sounds(3, model.config.num_samples, 6000)
    outputs = model(waveform)
    real, made = real_and_made(model, {}, outputs)
    adversarial = adversary.judge(made)
    assert adaptive_weight(outputs.loss, adversarial, model.last_layer) > 0
    adversarial.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("waveform_decoder."), name
    weights = list(adversary.discriminator.parameters())
    assert all(parameter.grad is None for parameter in weights)
    adversary.learn(real, made.detach(), num_batches=1)
    assert all(parameter.grad.abs().sum() > 0 for parameter in weights if parameter.ndim > 1)


def test_what_fills_a_clip_up_is_not_judged():
    model = istft_tokenizer().train()
    waveform = torch.zeros(2, model.config.num_samples)
    waveform[0, :2000] = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 0.1
    waveform[0, 500:600] = 0  # a pause is part of the sound
    outputs = model(waveform)
    real, made = real_and_made(model, {}, outputs)
    assert real.shape == made.shape == (2, 8 * model.config.hop_length)
    end = int(real[0].nonzero().max()) + 1
    assert torch.equal(made[0, :end], outputs.waveform[0, :end]) and outputs.waveform[0, end:].any()
    assert not made[0, end:].any() and not made[1].any() and not real[1].any()
    scores = SpectrogramDiscriminator((256, 512), 4, 2)(torch.cat([real, made]))
    assert torch.equal(scores[1], scores[3])
    scores.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.waveform_decoder.parameters())


def test_half_precision_trains_both(tmp_path):
    check_half_precision(train, tmp_path)


def test_the_discriminator_learns_to_tell_phases_that_do_not_fit():
    """Clicks from noise of the same spectrum: of a long transform, only the phases differ."""
    torch.manual_seed(0)
    discriminator = SpectrogramDiscriminator((256, 512), channels=8, num_layers=3)
    optimizer = torch.optim.Adam(discriminator.parameters(), 3e-3)
    for _ in range(40):
        real = torch.zeros(8, 2048).scatter(1, torch.randint(2048, (8, 8)), 1.0)
        spectrum = torch.fft.rfft(real).abs()
        fake = torch.fft.irfft(torch.polar(spectrum, torch.rand(spectrum.shape) * 2 * torch.pi))
        real_scores, fake_scores = discriminator(real), discriminator(fake)
        (torch.relu(1 - real_scores).mean() + torch.relu(1 + fake_scores).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert real_scores.mean() > 0.5 and fake_scores.mean() < -0.5


def test_the_script_saves_a_tokenizer_without_discriminator(tmp_path):
    DatasetDict({"train": make_clips(6), "validation": make_clips(2)}).save_to_disk(tmp_path / "clips")
    words = "--tokenizer audio --waveform_decoder istft --istft_hidden_size 16 --istft_num_layers 1 --hidden_size 16"
    words += " --adversarial_weight 0.8 --discriminator_channels 4 --max_steps 2 --per_device_train_batch_size 2"
    words += " --report_to none --use_cpu true --disable_tqdm true"
    folder = tmp_path / "tokenizer"
    train_tokenizer.main([*words.split(), "--dataset", str(tmp_path / "clips"), "--output_dir", str(folder)])
    expected = set(AutoModel.from_pretrained(folder).state_dict())
    for file in (folder / "model.safetensors", folder / "training" / "checkpoint-2" / "model.safetensors"):
        assert set(load_file(file)) == expected and any("waveform_decoder" in name for name in expected)
    assert Path(folder / "training" / "checkpoint-2" / "discriminator.pt").is_file()


@pytest.mark.parametrize("make", [audio_tokenizer, codec_tokenizer, text_vq_tokenizer], ids=["mel", "codec", "text"])
def test_tokenizers_without_a_learned_waveform_decoder_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match="adversarial_weight: only image.*waveform_decoder=istft.*not this nano4m_"):
        train(tmp_path, make())


def test_sounds_have_no_perceptual_loss(tmp_path):
    with pytest.raises(ValueError, match="perceptual_weight: only image tokenizers"):
        train(tmp_path, perceptual_weight=1.0)
