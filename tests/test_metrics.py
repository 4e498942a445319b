"""The metrics, loaded as `evaluate` loads them from a path, against values that follow from their definitions."""

import math
import socket

import evaluate
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from trainers.metrics import FOLDER, METRICS, AttributeAccuracy, load_metric

RATE = 16_000


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise OSError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def pictures(number: int = 6, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 190, (number, size, size, 3), dtype=np.uint8)


def waveforms(number: int = 3, samples: int = 8000) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(number, samples)) * 0.1).astype("float32")


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_from_its_folder(name):
    metric = evaluate.load(str(FOLDER / name))
    assert metric.description and metric.features


def test_metrics_are_known_by_name():
    assert {"psnr", "ssim", "rfid", "lpips", "stft_distance", "mel_distance", "si_sdr"} <= set(METRICS)
    with pytest.raises(ValueError, match="unknown metric 'fid': there are .*rfid"):
        load_metric("fid")


def test_attributes_are_counted():
    result = AttributeAccuracy().compute(predictions=[["a", ""], ["b", "c"]], references=[["a", "d"], ["b", "c"]])
    assert result == {"accuracy": 0.75}


def test_psnr_of_a_constant_error():
    true = pictures()
    shifted = true + np.uint8(10)
    psnr = load_metric("psnr")
    assert psnr.compute(predictions=shifted, references=true)["psnr"] == pytest.approx(20 * math.log10(25.5), abs=1e-3)
    assert psnr.compute(predictions=true, references=true)["psnr"] == math.inf
    with pytest.raises(ValueError, match="psnr: all pictures must have one size, got .8, 32, 3., .32, 32, 3."):
        psnr.compute(predictions=[true[0], true[0, :8]], references=[true[0], true[0, :8]])


def test_ssim_is_one_for_equals_and_follows_the_formula():
    true, ssim = pictures(), load_metric("ssim")
    assert ssim.compute(predictions=true, references=true)["ssim"] == pytest.approx(1, abs=1e-6)
    # Of two flat pictures only the term of the means is left.
    low, high = np.full((1, 32, 32, 3), 100, np.uint8), np.full((1, 32, 32, 3), 120, np.uint8)
    stabiliser = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + stabiliser) / (100**2 + 120**2 + stabiliser)
    assert ssim.compute(predictions=low, references=high)["ssim"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="ssim: pictures must have 11 pixels"):
        ssim.compute(predictions=true[:, :8, :8], references=true[:, :8, :8])


class FirstPixel(nn.Module):
    """Features whose distribution the test knows."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0].float()


def test_rfid_of_known_gaussians():
    """Equal covariances: the distance is that of the means. Half the spread: it is a quarter of the variances."""
    true, rfid = pictures(40), load_metric("rfid")
    shifted = rfid.compute(predictions=true + np.uint8(5), references=true, feature_network=FirstPixel())
    assert shifted["rfid"] == pytest.approx(3 * 5**2, rel=1e-3) and shifted["feature_network"] == "FirstPixel"
    even = true // 4 * 4
    halved = rfid.compute(predictions=even // 2, references=even, feature_network=FirstPixel())["rfid"]
    pixels = even[:, 0, 0].astype(float)
    expected = ((pixels.mean(0) / 2) ** 2).sum() + pixels.var(0, ddof=1).sum() / 4
    assert halved == pytest.approx(expected, rel=1e-3)


def test_rfid_without_weights_ranks_blur_and_says_what_it_measured_with(tmp_path):
    sharp, rfid = pictures(24), load_metric("rfid")
    blurred = [sharp]
    for _ in range(2):
        wide = blurred[-1].astype(float)
        blurred.append(sum(np.roll(wide, step, axis=axis) for step in (-1, 1) for axis in (1, 2)) / 4)
    results = [rfid.compute(predictions=item.astype(np.uint8), references=sharp) for item in blurred]
    values = [result["rfid"] for result in results]
    assert abs(values[0]) < 1e-4 and values[0] < values[1] < values[2]
    assert "random convolutions" in results[0]["feature_network"]
    torch.jit.script(FirstPixel()).save(tmp_path / "network.pt")
    scripted = rfid.compute(predictions=sharp + 5, references=sharp, feature_network=str(tmp_path / "network.pt"))
    assert scripted["rfid"] == pytest.approx(75, rel=1e-3)


def test_lpips_without_weights_says_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="alexnet.*no weights for LPIPS; put there what https"):
        load_metric("lpips").compute(predictions=pictures(2), references=pictures(2))


def test_lpips_with_weights_is_zero_for_equals(monkeypatch, tmp_path):
    """The network's weights are random here, which the distance of equals does not depend on."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    torch.manual_seed(0)
    random = torchvision.models.squeezenet1_1(weights=None).state_dict()
    torch.save(random, tmp_path / "checkpoints" / weights.url.rpartition("/")[2])
    lpips, true = load_metric("lpips"), pictures(3, 64)
    assert lpips.compute(predictions=true, references=true, net_type="squeeze")["lpips"] == pytest.approx(0, abs=1e-6)
    assert lpips.compute(predictions=true[::-1], references=true, net_type="squeeze")["lpips"] > 1e-4


def test_spectral_distances_of_half_the_level():
    true = waveforms()
    result = load_metric("stft_distance").compute(predictions=true / 2, references=true)
    assert result["spectral_convergence"] == pytest.approx(0.5, abs=1e-4)
    assert result["log_magnitude"] == pytest.approx(math.log(2), abs=1e-3)
    assert result["stft_distance"] == pytest.approx(0.5 + math.log(2), abs=1e-3)
    mel = load_metric("mel_distance")
    found = mel.compute(predictions=true / 2, references=true, sampling_rate=RATE)["mel_distance"]
    assert found == pytest.approx(math.log(2), abs=1e-3)
    assert mel.compute(predictions=true, references=true, sampling_rate=RATE)["mel_distance"] == 0
    silence = np.zeros_like(true)
    assert load_metric("stft_distance").compute(predictions=silence, references=silence)["stft_distance"] == 0
    with pytest.raises(ValueError, match="one length"):
        mel.compute(predictions=true, references=true[:, :100], sampling_rate=RATE)


def test_si_sdr_of_orthogonal_noise_at_any_level():
    time = np.arange(RATE) / RATE
    tone, noise = np.sin(2 * np.pi * 200 * time), np.sin(2 * np.pi * 300 * time)
    si_sdr = load_metric("si_sdr")
    for level in (1.0, 0.1):
        predictions = [(level * (tone + 0.1 * noise)).astype("float32")]
        value = si_sdr.compute(predictions=predictions, references=[tone.astype("float32")])["si_sdr"]
        assert value == pytest.approx(20, abs=0.01)


def test_errors_of_texts():
    references = ["bin blue at f two now", "set red"]
    predictions = ["bin blue at now", "set red please"]  # two words lost, one too many, of eight
    assert load_metric("word_error").compute(predictions=predictions, references=references)["word_error"] == 3 / 8
    error = load_metric("character_error").compute(predictions=["abd", "e"], references=["abc", "e"])
    assert error["character_error"] == 1 / 4
    match = load_metric("exact_match").compute(predictions=["a", "b ", "żółw"], references=["a", "b", "żółw"])
    assert match["exact_match"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="exact_match: there are no texts"):
        load_metric("exact_match").compute(predictions=[], references=[])
    # An empty text among others counts: what is said for it is too much.
    assert load_metric("word_error").compute(predictions=["x", "a"], references=["", "a"])["word_error"] == 1
    with pytest.raises(ValueError, match="references have no words"):
        load_metric("word_error").compute(predictions=["a"], references=[" "])


def test_codebook_use():
    metric = load_metric("codebook_use")
    result = metric.compute(predictions=[[0, 0], [1, 1, 2, 3]], vocab_size=16)
    assert result["codebook_use"] == 4 / 16
    entropy = math.log(3) * 2 / 3 + math.log(6) * 1 / 3
    assert result["entropy"] == pytest.approx(entropy) and result["perplexity"] == pytest.approx(math.exp(entropy))
    with pytest.raises(ValueError, match="vocab_size=2"):
        metric.compute(predictions=[[2]], vocab_size=2)


def test_a_silent_reference_does_not_drown_the_others():
    generator = np.random.default_rng(0)
    silent, noise = np.zeros(8000, dtype=np.float32), generator.normal(size=(2, 8000)).astype(np.float32)
    predictions, references = [noise[0] * 1e-3, noise[1]], [silent, noise[1]]
    distance = load_metric("stft_distance").compute(predictions=predictions, references=references)
    assert distance["spectral_convergence"] < 10
