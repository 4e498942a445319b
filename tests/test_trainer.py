"""The trainers: true per-part losses, repeatable evaluation, resuming where a training was cut off."""

import copy

import pytest
import torch
from datasets import Dataset, DatasetDict
from test_masking import make_rows
from test_modeling_nano4m import make_batch, make_model

from trainers import MaskingCollator, MuonWithAdamW, Nano4MTrainer, Nano4MTrainingArguments, fit


def arguments(folder, kind=Nano4MTrainingArguments, **changes) -> Nano4MTrainingArguments:
    fields = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "logging_steps": 4,
        "save_steps": 4,
        "learning_rate": 1e-3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return kind(**{**fields, **changes})


def make_trainer(folder, rows, **changes) -> Nano4MTrainer:
    model = make_model()
    return Nano4MTrainer(
        model=model,
        args=arguments(folder, remove_unused_columns=False, **changes),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        data_collator=MaskingCollator(model.config.modalities, 12, 9),
    )


def test_the_logged_parts_average_over_targets_not_over_batches(tmp_path):
    """A modality that is absent from most batches must not look better for it."""
    trainer = make_trainer(tmp_path, make_rows(8), per_device_eval_batch_size=4)
    logged = trainer.evaluate()
    loader = trainer.get_eval_dataloader()
    total, count = {}, {}
    with torch.no_grad():
        for batch in loader:
            output = trainer.model(**batch)
            for name in output.losses:
                number = int(output.num_targets[name])
                total[name] = total.get(name, 0.0) + float(output.losses[name]) * number
                count[name] = count.get(name, 0) + number
    for name in total:
        if count[name]:
            assert logged[f"eval_loss_{name}"] == pytest.approx(total[name] / count[name], rel=1e-4)
        else:
            assert f"eval_loss_{name}" not in logged


def test_an_absent_modality_is_not_logged(tmp_path):
    logged = make_trainer(tmp_path, make_rows(8, audio=True)).evaluate()
    assert "eval_loss_audio" not in logged and {"eval_loss_image", "eval_loss_text"} & set(logged)


def test_evaluation_draws_the_same_masks_every_time(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(8))
    first, second = trainer.evaluate(), trainer.evaluate()
    assert {k: v for k, v in first.items() if "loss" in k} == {k: v for k, v in second.items() if "loss" in k}


def test_fit_resumes_from_the_last_checkpoint(tmp_path):
    data = DatasetDict({"train": Dataset.from_list(make_rows(16)), "validation": Dataset.from_list(make_rows(4))})
    model = make_model()
    collator = MaskingCollator(model.config.modalities, 12, 9)
    fit(Nano4MTrainer, model, arguments(tmp_path, max_steps=4), data, collator)
    assert (tmp_path / "training" / "checkpoint-4").is_dir()
    # What was trained comes back from the checkpoint, not from the model that is handed in.
    again = make_model(initializer_range=0.02)
    fit(Nano4MTrainer, again, arguments(tmp_path, max_steps=4), data, collator)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    fit(Nano4MTrainer, again, arguments(tmp_path, max_steps=8), data, collator)
    assert (tmp_path / "training" / "checkpoint-8").is_dir()
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_muon_moves_the_layers_and_resumes_exactly(tmp_path):
    model = make_model()
    optimizer = MuonWithAdamW(model, muon_learning_rate=1e-2, learning_rate=1e-3, weight_decay=0.1)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == len(list(model.parameters()))
    muon = {id(p) for p in optimizer.parts[0].param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in muon}
    assert names and all("layers" in name for name in names)

    def steps(model, optimizer, number):
        for _ in range(number):
            model(**make_batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(model, optimizer, 2)
    other = make_model()
    other.load_state_dict(model.state_dict())
    resumed = MuonWithAdamW(other, muon_learning_rate=1.0, learning_rate=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups + resumed.param_groups:
        group["lr"] *= 0.5  # as a scheduler does
    steps(model, optimizer, 2)
    steps(other, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_trainer_takes_muon(tmp_path):
    rows = make_rows(8)
    training = arguments(tmp_path, Nano4MTrainingArguments, muon_learning_rate=1e-2)
    model = make_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = DatasetDict({"train": Dataset.from_list(rows)})
    fit(Nano4MTrainer, model, training, data, MaskingCollator(model.config.modalities, 12, 9))
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert (tmp_path / "training" / "checkpoint-8" / "optimizer.pt").exists()
