"""VQGAN's losses: what they measure, and that a training with them is resumed to the bit."""

import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
import torch.nn.functional as F
import train_tokenizer
import yaml
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resuming import Power, assert_equal, history
from test_tokenization import make_clips
from test_tokenizers import audio_tokenizer, image_tokenizer, text_vq_tokenizer
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dataset_scripts.tokenization import MEDIA_COLUMNS
from tokenizers_4m.quantizer import codebook_usage
from trainers import ClipCollator, TokenizerTrainer, TokenizerTrainingArguments, fit
from trainers.adversary import PatchDiscriminator, adaptive_weight
from trainers.perceptual import LaplacianPyramidDistance, perceptual_distance
from trainers.reconstructions import show_reconstructions

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "tokenizers").glob("*.yaml"))


class PictureCollator:
    """Rows of pictures already normalised; its tokenizer is only asked for its name of them."""

    def __call__(self, rows):
        return {"pixel_values": torch.tensor([row["pixels"] for row in rows])}


class FailingTrainer(TokenizerTrainer):
    fails_at = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Power(self.fails_at))


def fit_adversarially(folder, model, data, collator, fails_at=None, **fields):
    """Train a small tokenizer, from its second step on against a discriminator; `fails_at` a step, if one is given."""
    common = {"max_steps": 6, "save_steps": 2, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    common |= {"adversarial_weight": 0.8, "adversarial_start": 2, "discriminator_layers": 2}
    common |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    common |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    training = TokenizerTrainingArguments(output_dir=str(folder), **{**common, **fields})
    torch.manual_seed(7)
    FailingTrainer.fails_at = fails_at
    return fit(FailingTrainer, model, training, data, collator)


def check_log(folder, loss):
    """`loss` is there from the start, those of the discriminator once it counts, and only in training."""
    entries = history(folder)
    first, second = (next(entry for entry in entries if entry["step"] == step and "loss" in entry) for step in (2, 4))
    assert f"loss_{loss}" in first and "loss_adversarial" not in first
    assert {f"loss_{loss}", "loss_adversarial", "loss_discriminator", "loss_adaptive_weight"} <= second.keys()
    evaluated = next(entry for entry in entries if "eval_loss" in entry)
    assert f"eval_loss_{loss}" in evaluated and "eval_loss_adversarial" not in evaluated
    return evaluated


def check_resumed(train, whole, folder):
    """A training that is cut off and resumed equals `whole`, its discriminator's state too."""
    whole_folder, trainer = whole
    with pytest.raises(InterruptedError):
        train(folder, fails_at=5)
    resumed = train(folder)
    assert_equal(trainer.model.state_dict(), resumed.model.state_dict())
    assert history(whole_folder) == history(folder)
    files = (path / "training" / "checkpoint-6" / "discriminator.pt" for path in (whole_folder, folder))
    assert_equal(*(torch.load(file, weights_only=True) for file in files))


def check_half_precision(train, folder):
    trainer = train(folder, bf16=True, max_steps=4, eval_strategy="no", save_strategy="no")
    assert all(p.isfinite().all() for p in trainer.adversary.discriminator.parameters())
    losses = [entry["loss_discriminator"] for entry in trainer.state.log_history if "loss_discriminator" in entry]
    assert losses and all(0 < loss < 5 for loss in losses)


def train(folder, fails_at=None, **changes):
    fields = {"perceptual_weight": 1.0, "perceptual": "laplacian", "discriminator_channels": 8}
    pixels = torch.randn(11, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).tolist()
    data = {
        "train": Dataset.from_dict({"pixels": pixels[:9]}),
        "validation": Dataset.from_dict({"pixels": pixels[9:]}),
    }
    model = image_tokenizer(mid_block_add_attention=False)
    return fit_adversarially(folder, model, data, PictureCollator(), fails_at, **{**fields, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def test_every_loss_is_logged_once_it_counts(whole):
    evaluated = check_log(whole[0], "perceptual")
    assert "eval_used_codes" in evaluated
    expected = evaluated["eval_loss_l1"] + evaluated["eval_loss_mse"] + evaluated["eval_loss_perceptual"]
    assert evaluated["eval_loss"] == pytest.approx(expected + 0.25 * evaluated["eval_loss_commitment"], rel=1e-3)


def test_a_resumed_training_equals_an_uninterrupted_one(whole, tmp_path):
    check_resumed(train, whole, tmp_path)


def test_the_discriminator_is_no_part_of_the_tokenizer(whole):
    checkpoint = whole[0] / "training" / "checkpoint-6"
    assert not any("discriminator" in name for name in load_file(checkpoint / "model.safetensors"))
    settings = json.loads((whole[0] / "training" / "settings.json").read_text())
    assert settings["training"]["adversarial_start"] == 2 and settings["training"]["perceptual"] == "laplacian"


def test_a_checkpoint_without_discriminator_is_refused(tmp_path):
    train(tmp_path, max_steps=2)
    (tmp_path / "training" / "checkpoint-2" / "discriminator.pt").unlink()
    with pytest.raises(ValueError, match="has no discriminator.pt"):
        train(tmp_path)


def test_half_precision_trains_both(tmp_path):
    check_half_precision(train, tmp_path)


def test_the_discriminator_learns_to_tell_noise_from_pictures():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=8, num_layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for _ in range(30):
        real = F.interpolate(torch.randn(8, 3, 4, 4), scale_factor=8.0)
        real_scores, fake_scores = discriminator(real), discriminator(torch.randn(8, 3, 32, 32))
        loss = F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert real_scores.mean() > 0.5 and fake_scores.mean() < -0.5


def test_the_adaptive_weight_makes_gradients_alike():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    output = layer(torch.randn(8, 4))
    first, second = output.square().mean(), 1e-2 * output.sum()
    weight = adaptive_weight(first, second, layer.weight)
    norms = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm() for loss in (first, weight * second)]
    assert float(norms[1]) == pytest.approx(float(norms[0]), rel=2e-2)
    assert layer.weight.grad is None and not weight.requires_grad


def test_the_pyramid_sees_lost_detail_that_the_mean_error_does_not():
    """Of two changes with the same mean error, blurred edges are further away than another brightness."""
    torch.manual_seed(0)
    pictures = F.interpolate(torch.rand(2, 3, 16, 16), scale_factor=2.0)
    blurred = F.interpolate(F.avg_pool2d(pictures, 4), scale_factor=4.0)
    brighter = pictures + (blurred - pictures).abs().mean()
    distance = LaplacianPyramidDistance()
    assert distance(pictures, pictures) == 0
    assert distance(pictures, blurred) > 1.5 * distance(pictures, brighter) > 0
    torch.testing.assert_close(distance(pictures, blurred), distance(blurred, pictures))


def test_lpips_tells_where_its_weights_must_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="vgg16-397923af.pth.*perceptual=laplacian"):
        perceptual_distance("lpips")
    assert TokenizerTrainingArguments(str(tmp_path), perceptual_weight=1.0).perceptual == "laplacian"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"perceptual_weight": -1.0}, "perceptual_weight=-1.0"),
        ({"perceptual": "ssim"}, "perceptual='ssim'"),
        ({"discriminator_layers": 4}, "at least 48 pixels"),
    ],
)
def test_settings_that_cannot_work_are_named(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **fields)


@pytest.mark.parametrize("make", [image_tokenizer, audio_tokenizer, text_vq_tokenizer], ids=["image", "audio", "text"])
def test_evaluations_leave_reconstructions_to_look_at(make, tmp_path):
    tokenizer, clips = make(), make_clips(4)
    column = MEDIA_COLUMNS[tokenizer.modality]
    data = {"train": clips, "validation": clips}
    data = {split: rows.with_format("numpy", columns=[column]) for split, rows in data.items()}
    fields = {"max_steps": 2, "report_to": "tensorboard", "use_cpu": True, "disable_tqdm": True}
    training = TokenizerTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, **fields)
    fit(TokenizerTrainer, tokenizer, training, data, ClipCollator(tokenizer))
    (folder,) = {path.parent for path in tmp_path.rglob("events.*")}
    tags = EventAccumulator(str(folder)).Reload().Tags()
    if tokenizer.modality == "image":
        assert tags["images"] == ["reconstructions"]
    else:
        kind = {"audio": "audio", "text": "tensors"}[tokenizer.modality]
        shown = [tag for tag in tags[kind] if tag.startswith("reconstructions/")]
        assert len(shown) == 2 * 4 and "reconstructions/0/original" in shown[0]


def test_sounds_too_loud_to_be_played_are_clipped_without_a_word(tmp_path, capsys):
    """As the first reconstructions of a training are."""

    class Loud:
        modality, config = "audio", SimpleNamespace(sampling_rate=16000)

        def encode(self, batch):
            return batch

        def decode(self, batch):
            return 3 * batch

        def postprocess(self, batch):
            return list(batch.numpy())

    with SummaryWriter(str(tmp_path)) as writer:
        show_reconstructions(writer, Loud(), torch.linspace(-1, 1, 100)[None], step=0)
    sounds = EventAccumulator(str(tmp_path)).Reload()
    samples, _ = soundfile.read(BytesIO(sounds.Audio("reconstructions/0/reconstruction")[0].encoded_audio_string))
    assert samples.min() < -0.99 and samples.max() > 0.99 and capsys.readouterr().out == ""


def test_figures_are_of_the_clips_asked_for_whatever_they_are_called(tmp_path):
    """Of each of two evaluation sets, of `predict`, and of an evaluation after that."""
    clips = make_clips(6).with_format("numpy", columns=["frames"])
    sets = {"many": clips, "one": clips.select([0])}
    training = TokenizerTrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        report_to="tensorboard",
        use_cpu=True,
        disable_tqdm=True,
    )
    tokenizer = image_tokenizer().eval()
    trainer = TokenizerTrainer(tokenizer, training, eval_dataset=sets, data_collator=ClipCollator(tokenizer))
    trainer.callback_handler.on_train_begin(training, trainer.state, trainer.control)  # opens TensorBoard
    evaluated = trainer.evaluate()
    predicted = trainer.predict(sets["one"], metric_key_prefix="seen").metrics
    again = trainer.evaluate(sets["many"])
    used = {}
    for name, rows in sets.items():
        ids = tokenizer.encode_media(list(rows["frames"]))[0]
        used[name] = codebook_usage(ids, tokenizer.config.vocab_size)["used_codes"]
    assert used["one"] < used["many"]
    assert (evaluated["eval_many_used_codes"], evaluated["eval_one_used_codes"]) == (used["many"], used["one"])
    assert (predicted["seen_used_codes"], again["eval_used_codes"]) == (used["one"], used["many"])
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_many_used_codes", "eval_one_used_codes", "eval_used_codes"} <= logged
    (folder,) = {path.parent for path in tmp_path.rglob("events.*")}
    titles = {f"{name}reconstructions" for name in ("eval_many_", "eval_one_", "")}
    assert set(EventAccumulator(str(folder)).Reload().Tags()["images"]) == titles


def test_where_the_tokenizer_goes_must_be_said():
    with pytest.raises(SystemExit, match="output_dir: say where"):
        train_tokenizer.main(["--dataset", "clips"])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_trainings_are_looked_at_on_the_way(file):
    fields = yaml.safe_load(file.read_text())
    if "max_steps" not in fields:
        return  # nothing is trained by gradients
    assert fields["eval_strategy"] == "steps" and fields["max_steps"] >= 2 * fields["eval_steps"]
    assert fields["eval_steps"] > fields.get("quantizer_warmup_steps", 0)
    # With a discriminator, the loss that is evaluated rises where pictures begin to look right.
    assert fields.get("load_best_model_at_end", False) == ("adversarial_weight" not in fields)
    assert "adversarial_weight" in fields or fields["save_steps"] == fields["eval_steps"]


def test_the_best_checkpoint_with_a_codebook_is_kept(tmp_path):
    """The learning rate is much too high, so that training leads away from what is good."""
    rows, out = make_clips(8), tmp_path / "out"
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "clips")
    words = "--tokenizer image --codebook_size 32 --block_out_channels 8 16 16 --quantizer_warmup_steps 2 "
    words += "--max_steps 6 --save_steps 1 --eval_strategy steps --eval_steps 1 --load_best_model_at_end true "
    words += "--learning_rate 0.3 --per_device_train_batch_size 4 --report_to none --use_cpu true --disable_tqdm true"
    train_tokenizer.main([*words.split(), "--dataset", str(tmp_path / "clips"), "--output_dir", str(out)])
    entries = history(out)
    losses = {entry["step"]: entry["eval_loss"] for entry in reversed(entries) if "eval_loss" in entry}
    assert sorted(losses) == [3, 4, 5, 6], "the warm-up is not evaluated"
    best = min(losses, key=losses.get)
    assert best < 6
    kept, made = (
        load_file(path) for path in (out / f"training/checkpoint-{best}/model.safetensors", out / "model.safetensors")
    )
    assert_equal(kept, made)

    DatasetDict({"train": rows}).save_to_disk(tmp_path / "unchecked")
    train_tokenizer.main(
        [*words.split(), "--dataset", str(tmp_path / "unchecked"), "--output_dir", str(tmp_path / "b")]
    )
    assert (tmp_path / "b" / "model.safetensors").is_file()
