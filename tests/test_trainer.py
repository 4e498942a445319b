"""The trainers: true per-part losses, repeatable evaluation, resuming where a training was cut off."""

import copy

import pytest
import torch
import torch.nn.functional as F
from arguments import parse_args
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from test_masking import make_rows
from test_modeling_nano4m import make_batch, make_model

from trainers import (
    MaskingCollator,
    MuonWithAdamW,
    Nano4MTrainer,
    Nano4MTrainingArguments,
    StreamedRows,
    changed_settings,
    fit,
)
from trainers.settings import check_settings, settings_of


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
        args=arguments(folder, **changes),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        data_collator=MaskingCollator(model.config.modalities, 12, 9),
    )


def test_training_in_bfloat16_keeps_weights_in_float32(tmp_path):
    whole, half = (make_trainer(tmp_path / str(bf16), make_rows(8), bf16=bf16) for bf16 in (False, True))
    before = {name: parameter.clone() for name, parameter in half.model.named_parameters()}
    losses = [trainer.train().training_loss for trainer in (whole, half)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in half.model.named_parameters())


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


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path):
    """And measures every modality, however few batches there are."""
    losses = []
    for size in (64, 7):
        logged = make_trainer(tmp_path, make_rows(200), per_device_eval_batch_size=size).evaluate()
        losses.append({name: value for name, value in logged.items() if name.startswith("eval_loss")})
    assert set(losses[0]) == {"eval_loss", "eval_loss_audio", "eval_loss_image", "eval_loss_text"}
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def losses_of(logged):
    return {name: value for name, value in logged.items() if "loss" in name}


def test_every_evaluation_has_its_own_parts(tmp_path):
    """Whatever came before it: a prediction, one under another name, one that was broken off."""
    trainer = make_trainer(tmp_path, make_rows(8))
    expected = losses_of(trainer.evaluate())
    other = Dataset.from_list(make_rows(8, seed=5, audio=True))
    predicted = losses_of(trainer.predict(other).metrics)
    assert predicted == losses_of(trainer.predict(other).metrics), "the masks of an evaluation, the same every time"
    assert set(predicted) == {"test_loss", "test_loss_image", "test_loss_text"}
    assert losses_of(trainer.evaluate()) == expected
    named = losses_of(trainer.evaluate(other, metric_key_prefix="test"))
    assert named == predicted
    trainer.count_part(False, "audio", torch.tensor(1e6))
    assert losses_of(trainer.evaluate()) == expected


def test_each_of_several_evaluation_sets_has_parts(tmp_path):
    """Also with averaged weights, which each of them must measure."""
    rows = {"a": Dataset.from_list(make_rows(4)), "b": Dataset.from_list(make_rows(4, seed=2, audio=True))}
    trainer = make_trainer(tmp_path, make_rows(8), ema_decay=0.9, eval_strategy="steps", eval_steps=8)
    trainer.eval_dataset = rows
    trainer.train()
    logged = {name: value for entry in trainer.state.log_history for name, value in losses_of(entry).items()}
    parts = {f"eval_a_loss_{name}" for name in ("audio", "image", "text")} | {"eval_b_loss_image", "eval_b_loss_text"}
    assert parts | {"eval_a_loss", "eval_b_loss"} == {name for name in logged if name.startswith("eval")}
    for name in rows:  # the model that is left has the averaged weights
        found = trainer.evaluate(rows[name], metric_key_prefix=f"eval_{name}")
        assert losses_of(found) == pytest.approx({n: v for n, v in logged.items() if n.startswith(f"eval_{name}_")})


def test_default_arguments_train_and_log_to_tensorboard(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    training = Nano4MTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True)
    model = make_model()
    collator = MaskingCollator(model.config.modalities, 12, 9)
    Nano4MTrainer(model, training, collator, Dataset.from_list(make_rows(8))).train()
    assert list(tmp_path.glob("**/events.out.tfevents.*"))
    for words, expected in (("none", []), ("tensorboard", ["tensorboard"]), ("wandb trackio", ["wandb", "trackio"])):
        words = ["--output_dir", str(tmp_path), "--report_to", *words.split()]
        assert parse_args(Nano4MTrainingArguments, argv=words)[0].report_to == expected
    monkeypatch.setattr("trainers.nano4m_trainer.is_tensorboard_available", lambda: False)
    assert Nano4MTrainingArguments(str(tmp_path)).report_to == []


@pytest.mark.parametrize(
    "changes, match",
    [
        (
            {"ema_decay": 0.9, "load_best_model_at_end": True, "save_only_model": True, "eval_strategy": "steps"},
            "save_only_model leaves out",
        ),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        arguments(tmp_path, **changes)


def test_gradient_checkpointing_changes_no_loss(tmp_path):
    losses = []
    for checkpointing in (False, True):
        changes = {"gradient_checkpointing": checkpointing, "logging_steps": 1, "max_steps": 4}
        trainer = make_trainer(tmp_path, make_rows(8), **changes)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        losses.append([losses_of(entry) for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 4
    for plain, checkpointed in zip(*losses, strict=True):
        assert checkpointed == pytest.approx(plain, rel=1e-5)


def test_rows_that_fill_up_batches_are_evaluated_once(tmp_path, monkeypatch):
    """Of two processes, with the rows 0 and 1, then 2 and 0: what each is told, and what the other has."""
    trainer = make_trainer(tmp_path, make_rows(3))
    for process in (0, 1):
        trainer._evaluated = set()
        monkeypatch.setattr(type(trainer.accelerator), "process_index", process)
        found = []
        for draws in ([0, 1], [2, 0]):
            monkeypatch.setattr(trainer.accelerator, "gather", lambda _, draws=draws: torch.tensor(draws))
            found += trainer._first_time(torch.tensor([draws[process]])).tolist()
        assert found == [[True, True], [True, False]][process]


def test_a_stream_is_resumed_with_the_same_buffer_and_workers(tmp_path):
    model = make_model()
    collator = MaskingCollator(model.config.modalities, 12, 9)
    stream = Dataset.from_list(make_rows(8)).to_iterable_dataset()

    def settings(buffer_size=10, **changes):
        rows = StreamedRows([stream], [1], buffer_size=buffer_size)
        return settings_of(arguments(tmp_path, **changes), model, collator, {"train": rows})

    check_settings(tmp_path, settings(), False, True)
    check_settings(tmp_path, settings(), True, True)
    with pytest.raises(ValueError, match="^shuffle_buffer: "):
        check_settings(tmp_path, settings(buffer_size=20), True, True)
    with pytest.raises(ValueError, match="^dataloader_num_workers: "):
        check_settings(tmp_path, settings(dataloader_num_workers=1), True, True)


def test_fit_resumes_from_the_last_checkpoint(tmp_path):
    data = DatasetDict({"train": Dataset.from_list(make_rows(16)), "validation": Dataset.from_list(make_rows(4))})
    model = make_model()
    collator = MaskingCollator(model.config.modalities, 12, 9)
    fit(Nano4MTrainer, model, arguments(tmp_path, max_steps=4), data, collator)
    assert (tmp_path / "training" / "checkpoint-4").is_dir()
    # What was trained comes back from the checkpoint, not from the model that is handed in.
    again = make_model()
    torch.nn.init.zeros_(again.start_state)
    fit(Nano4MTrainer, again, arguments(tmp_path, max_steps=4), data, collator)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    fit(Nano4MTrainer, again, arguments(tmp_path, max_steps=8), data, collator)
    assert (tmp_path / "training" / "checkpoint-8").is_dir()
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "field, training, masking, model, size",
    [
        ("learning_rate", {"learning_rate": 2e-3}, {}, {}, 16),
        ("batches_per_step", {"gradient_accumulation_steps": 2}, {}, {}, 16),
        ("max_inputs", {}, {"max_inputs": 11}, {}, 16),
        ("dropout", {}, {}, {"dropout": 0.1}, 16),
        ("train", {}, {}, {}, 15),
    ],
)
def test_a_training_with_other_settings_or_data_is_not_resumed(tmp_path, field, training, masking, model, size):
    def run(training=(), masking=(), model=(), size=16):
        made = make_model(**dict(model))
        collator = MaskingCollator(made.config.modalities, **{"max_inputs": 12, "max_targets": 9, **dict(masking)})
        data = {"train": Dataset.from_list(make_rows(16)).select(range(size))}
        fit(
            Nano4MTrainer,
            made,
            arguments(tmp_path, **{"max_steps": 1, "save_steps": 1, **dict(training)}),
            data,
            collator,
        )

    run()
    with pytest.raises(ValueError, match=f"^{field}: .* holds a training with .*choose another output_dir"):
        run(training, masking, model, size)
    run({"max_steps": 2, "logging_steps": 1, "per_device_eval_batch_size": 2})
    assert (tmp_path / "training" / "checkpoint-2").is_dir()


class Premasked:
    """Collates samples whose masks were drawn one by one, so that they are the same in batches of any size."""

    def __call__(self, rows):
        samples = [make_batch(size=1, targets=1 + draw % 5, seed=draw) for draw in rows["draw"].to_pylist()]
        batch = {}
        for key in samples[0]:
            side = key.split("_")[0]
            longest = max(sample[key].shape[1] for sample in samples)
            parts = [F.pad(sample[key], (0, longest - sample[key].shape[1])) for sample in samples]
            lengths = torch.tensor([sample[key].shape[1] for sample in samples])
            batch |= {key: torch.cat(parts), f"{side}_valid_mask": torch.arange(longest) < lengths[:, None]}
        return batch


@pytest.mark.parametrize("size, accumulated", [(2, 4), (3, 3)])
def test_accumulated_batches_do_what_one_large_batch_does(tmp_path, size, accumulated):
    """Though they have different numbers of targets of each modality, and the last may be smaller."""

    def gradients(**changes):
        model = make_model()
        changes |= {"max_steps": 1, "save_strategy": "no", "logging_steps": 1, "max_grad_norm": 0.0}
        training = arguments(tmp_path, optim="sgd", learning_rate=1.0, **changes)
        rows = Dataset.from_list([{"image_ids": [0]}] * 8)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = Nano4MTrainer(model, training, Premasked(), rows)
        trainer.train()
        entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
        return {name: before[name] - p.detach() for name, p in model.named_parameters()}, entry

    one, logged = gradients(per_device_train_batch_size=8)
    many, also_logged = gradients(per_device_train_batch_size=size, gradient_accumulation_steps=accumulated)
    assert max(p.abs().max() for p in one.values()) > 0.01
    for name in one:
        torch.testing.assert_close(one[name], many[name], atol=1e-6, rtol=0)
    assert {key for key in logged if key.startswith("loss_")} == {"loss_audio", "loss_image", "loss_text"}
    for key in logged:
        assert logged[key] == pytest.approx(also_logged[key], abs=1e-5), key


def test_training_stops_at_max_tokens_and_its_schedule_spans_them(tmp_path):
    rows = make_rows(16)
    changes = {"max_steps": -1, "max_tokens": 500, "warmup_steps": 0.1, "lr_scheduler_type": "linear"}
    trainer = make_trainer(tmp_path, rows, logging_steps=1, **changes)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    seen = [entry["tokens_seen"] for entry in logged]
    assert seen[-2] < 500 <= seen[-1] and len(logged) == trainer.state.global_step
    # The rate of a step is that of the tokens seen before it.
    for entry, before in zip(logged, [0, *seen], strict=False):
        share = before / 50 if before < 50 else (500 - before) / 450
        assert entry["learning_rate"] == pytest.approx(1e-3 * share)
    # Counted: exactly the real tokens of the batches that were trained on.
    batches = [batch for epoch in range(6) for batch in epoch_of(trainer, epoch)][: len(logged)]
    counts = [sum(int(batch[f"{side}_valid_mask"].sum()) for side in ("input", "target")) for batch in batches]
    assert sum(counts) == seen[-1] and counts[0] == seen[0]
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir()


@pytest.mark.parametrize("max_steps, said", [(-1, False), (3, True)])
def test_steps_that_may_end_a_training_before_its_tokens_are_announced(tmp_path, caplog, max_steps, said):
    trainer = make_trainer(tmp_path, make_rows(16), max_steps=max_steps, max_tokens=300)
    trainer.train()
    assert caplog.text.count("max_steps=3 ends the training") == said


def epoch_of(trainer, epoch):
    loader = trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def test_a_schedule_without_steps_does_not_go_with_max_tokens(tmp_path):
    changes = {"lr_scheduler_type": "reduce_lr_on_plateau", "max_tokens": 50, "eval_strategy": "steps"}
    with pytest.raises(ValueError, match="lr_scheduler_type=reduce_lr_on_plateau"):
        make_trainer(tmp_path, make_rows(4), **changes).train()


def test_averaged_weights_are_evaluated_and_kept(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(8), ema_decay=0.5, eval_strategy="steps", eval_steps=4, save_steps=1)
    trainer.train()
    trained = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 9)]
    average = trained[0]
    for step, weights in enumerate(trained[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
    for name, p in trainer.trained_model().named_parameters():
        torch.testing.assert_close(p, average[name], atol=1e-6, rtol=1e-5)
        assert "norm" in name or not torch.equal(p, trained[-1][name])
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[-1], rel=1e-6)


def test_averaged_weights_that_were_not_saved_cannot_be_resumed(tmp_path):
    make_trainer(tmp_path, make_rows(8), max_steps=4).train()
    with pytest.raises(ValueError, match="trained without ema_decay"):
        make_trainer(tmp_path, make_rows(8), ema_decay=0.5).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )


def test_gradients_are_clipped(tmp_path):
    changes = {"optim": "sgd", "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 0.01}
    trainer = make_trainer(tmp_path, make_rows(8), **changes)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    moved = [b - p.detach() for b, p in zip(before, trainer.model.parameters(), strict=True)]
    assert float(torch.stack([m.norm() for m in moved]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_default_optimizer_is_fused(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(4))
    assert all(group["fused"] for group in trainer.create_optimizer().param_groups)


@pytest.mark.parametrize("muon_learning_rate", [None, 1e-2])
def test_only_matrices_decay(tmp_path, muon_learning_rate):
    trainer = make_trainer(tmp_path, make_rows(4), weight_decay=0.1, muon_learning_rate=muon_learning_rate)
    groups = trainer.create_optimizer().param_groups
    for group in groups:
        assert {p.ndim == 2 for p in group["params"]} == {group["weight_decay"] > 0}
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))


def test_one_process_is_not_spread_over_several_gpus(tmp_path):
    training = arguments(tmp_path)
    training._n_gpu = 2  # what a machine with two GPUs sets
    model = make_model()
    collator = MaskingCollator(model.config.modalities, 12, 9)
    trainer = fit(Nano4MTrainer, model, training, {"train": Dataset.from_list(make_rows(8))}, collator)
    assert trainer.args.n_gpu == 1 and len(next(iter(trainer.get_train_dataloader()))["target_ids"]) == 4
    assert not isinstance(trainer.model_wrapped, torch.nn.DataParallel)


def test_what_is_told_of_a_training_is_what_shapes_the_model(tmp_path):
    changes = {"lr_scheduler_type": "cosine", "ema_decay": 0.9, "seed": 5, "weight_decay": 0.1, "max_tokens": 99}
    private = {"project": "secret", "run_name": "secret", "hub_token": "secret", "trackio_space_id": "a/secret"}
    settings = changed_settings(arguments(tmp_path, **changes, **private))
    assert settings == {**changes, "learning_rate": 1e-3, "max_steps": 8, "per_device_train_batch_size": 4}


def test_curves_go_to_tensorboard(tmp_path, monkeypatch):
    # transformers writes where this variable says, or into output_dir/runs.
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    make_trainer(tmp_path, make_rows(8), report_to=["tensorboard"]).train()
    assert list(tmp_path.glob("**/events.out.tfevents.*"))


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
