"""A training that is cut off and resumed ends as if it had never stopped, to the bit."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_masking import make_rows
from test_modeling_nano4m import make_model
from test_trainer import arguments
from transformers import TrainerCallback

from trainers import MaskingCollator, Nano4MTrainer, fit

TIMED = ("runtime", "per_second", "train_loss")  # the last is the mean since resuming


class Power(TrainerCallback):
    """Fails after a step, as power does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


class FailingTrainer(Nano4MTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Power(self.args.fails_at))


def train(folder, fails_at=None, **changes):
    fields = {"max_steps": 10, "save_steps": 3, "logging_steps": 4, "eval_strategy": "steps", "eval_steps": 5}
    fields |= {"muon_learning_rate": 1e-2, "ema_decay": 0.8, "warmup_steps": 2, "gradient_accumulation_steps": 2}
    training = arguments(folder, **{**fields, "per_device_train_batch_size": 3, **changes})
    training.fails_at = fails_at
    data = {"train": Dataset.from_list(make_rows(19)), "validation": Dataset.from_list(make_rows(8, seed=1))}
    model = make_model(dropout=0.2, attention_dropout=0.2)
    # A fresh process would not have the random state that an earlier training left either.
    torch.manual_seed(len(str(folder)))
    return fit(FailingTrainer, model, training, data, MaskingCollator(model.config.modalities, 12, 9, seed=3))


def checkpoint(folder, step):
    folder = folder / "training" / f"checkpoint-{step}"
    weights = load_file(folder / "model.safetensors"), load_file(folder / "averaged_weights.safetensors")
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    return weights, optimizer, torch.load(folder / "rng_state.pth", weights_only=False)["cpu"]


def history(folder):
    entries = json.loads((folder / "training" / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if not any(word in k for word in TIMED)} for entry in entries]


def assert_equal(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_equal(a, b)
    else:
        assert first == second


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


# An epoch has 19 rows: 7 micro-batches, 4 steps. The power fails in the first epoch, at its end and in the second.
@pytest.mark.parametrize("fails_at, num_workers", [(3, 0), (5, 2), (8, 0)])
def test_a_resumed_training_equals_an_uninterrupted_one(whole, tmp_path, fails_at, num_workers):
    folder, trainer = whole
    with pytest.raises(InterruptedError):
        train(tmp_path, fails_at=fails_at, dataloader_num_workers=num_workers)
    resumed = train(tmp_path, dataloader_num_workers=num_workers)
    assert resumed.state.global_step == 10
    assert_equal(trainer.trained_model().state_dict(), resumed.trained_model().state_dict())
    assert_equal(checkpoint(folder, 10), checkpoint(tmp_path, 10))
    assert history(folder) == history(tmp_path)


def test_a_checkpoint_that_was_being_written_is_passed_over(whole, tmp_path):
    with pytest.raises(InterruptedError):
        train(tmp_path, fails_at=8)
    (tmp_path / "training" / "checkpoint-6" / "trainer_state.json").unlink()
    resumed = train(tmp_path)
    assert_equal(whole[1].trained_model().state_dict(), resumed.trained_model().state_dict())


def test_a_finished_training_is_not_trained_further(whole):
    folder, trainer = whole
    before = {name: p.clone() for name, p in trainer.trained_model().state_dict().items()}
    again = train(folder)
    assert again.state.global_step == 10
    assert_equal(before, again.trained_model().state_dict())
