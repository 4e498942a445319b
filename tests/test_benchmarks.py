"""The benchmarks: they run, both sides do the same work, and the operations they count are the model's."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from test_tokenization import make_clips
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baseline import IGNORED, Baseline4M, MaskedDataset, generate
from benchmarks.image_encoding import encode_images
from benchmarks.measures import (
    MODALITIES,
    QUICK,
    as_baseline,
    as_ours,
    baseline_model,
    cut_to_longest,
    masked_batches,
    our_model,
    training_flops,
)
from benchmarks.preparation import CONFIG, read_planned, read_whole, write_video
from benchmarks.run import all_measures, main
from modeling_nano4m import Nano4MModel


@pytest.mark.parametrize("side", ["ours", "baseline"])
@pytest.mark.parametrize("name", all_measures("cpu"))
def test_every_measure_runs(name, side):
    measure = all_measures("cpu")[name]
    figures = getattr(measure, side)(QUICK)
    # Of tiny sizes after other tests, the process may have needed more memory before.
    assert math.isfinite(figures[measure.figure]) and figures[measure.figure] >= 0
    assert measure.figure == "peak_mib" or figures[measure.figure] > 0


def test_the_command_writes_a_table_and_a_file(tmp_path, capsys):
    output = tmp_path / "deep" / "benchmarks.json"
    main(["--quick", "--only", "memory", "--output", str(output)])
    (row,) = json.loads(output.read_text())
    assert (row["name"], row["must"], row["aim"]) == ("memory", 0.6, 0.4)
    assert row["ratio"] == pytest.approx(row["ours"] / row["baseline"]) and row["baseline"] > 1
    turns = row["details"]["turns"]
    assert len(turns["ours"]) == 1 and turns["ours"][0]["threads"] == turns["baseline"][0]["threads"]
    printed = capsys.readouterr().out
    assert f"{row['ratio']:.2f}" in printed and "≤ 0.6" in printed


def test_both_tokenizers_make_as_many_ids_of_a_picture():
    counts = {side: encode_images(side, QUICK)["num_tokens"] for side in ("ours", "baseline")}
    assert counts == {"ours": 4, "baseline": 4}


def test_an_unknown_measure_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "speed"])
    assert "no measure 'speed'" in capsys.readouterr().err


def copy_weights(baseline: Baseline4M, model: Nano4MModel) -> None:
    """Give nano4M the baseline's weights: layers by name, the shared tables to everything that they serve."""
    theirs, weights = baseline.state_dict(), {}
    for name in model.state_dict():
        if name.startswith("embeddings.tokens."):
            weights[name] = theirs["tokens.weight"]
        elif name.startswith("embeddings.positions."):
            weights[name] = theirs["positions.weight"]
        elif name.startswith("embeddings.modalities."):
            weights[name] = theirs["modalities.weight"]
        elif name.startswith("head"):
            weights[name] = theirs["head.weight"]
        else:
            weights[name] = theirs[name]
    model.load_state_dict(weights)


@torch.no_grad()
def test_with_the_same_weights_both_sides_give_every_token_the_same_loss():
    sizes = replace(QUICK, vocab_sizes=(60, 60, 60, 60), num_layers=2)
    baseline, model = baseline_model(sizes), our_model(sizes)
    for parameter in baseline.parameters():  # large enough that a wrong mask or a missing term shows
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.3)
    copy_weights(baseline, model)
    for batch in masked_batches(sizes, 3):
        mean, logits = baseline(**as_baseline(batch))
        labels = as_baseline(batch)["target_ids"]
        ours = as_ours(batch)
        assert ours["input_ids"].shape[1] < sizes.slots or ours["target_ids"].shape[1] < sizes.slots, "nothing is cut"
        output = model(**ours, return_logits=True)
        counted = []
        for index, name in enumerate(MODALITIES):
            mine = (batch["target_modality_ids"] == index) & batch["target_valid_mask"]
            expected = F.cross_entropy(logits[mine], labels[mine], reduction="none")
            found = F.cross_entropy(output.logits[name], labels[mine], reduction="none")
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            if len(expected):
                torch.testing.assert_close(output.losses[name], expected.mean(), rtol=1e-4, atol=1e-4)
            counted.append(expected)
        assert int((labels != IGNORED).sum()) == len(torch.cat(counted)), "padding is not predicted"
        torch.testing.assert_close(mean, torch.cat(counted).mean())


@torch.no_grad()
def test_padding_of_the_baseline_changes_nothing():
    model = baseline_model(QUICK)
    batch = next(masked_batches(QUICK, 1))
    mean, logits = model(**as_baseline(batch))
    alone = []
    for i in range(QUICK.batch_size):
        sample = {key: value[i : i + 1] for key, value in batch.items()}
        alone.append(model(**as_baseline(cut_to_longest(sample)))[1][0])
    torch.testing.assert_close(torch.cat(alone), logits[batch["target_valid_mask"]])
    assert mean.isfinite()


def test_counted_operations_are_those_of_the_unpadded_model():
    sizes = replace(QUICK, batch_size=1, num_layers=3, slots=QUICK.num_tokens)
    batch = cut_to_longest(next(masked_batches(sizes, 1)))
    batch["target_modality_ids"].zero_()  # every query may look at every other, as kernels compute it anyway
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        baseline_model(sizes)(**as_baseline(batch))[0].backward()
    assert training_flops(sizes, batch) == counter.get_total_flops()


def test_the_baseline_masks_as_it_should():
    names, lengths = ("image", "text"), (12, 8)
    rows = [
        {f"{name}_ids": [100 * i + 20 * m + p for p in range(length - 3 * m * i)] for m, (name, length) in stream}
        for i, stream in ((i, list(enumerate(zip(names, lengths, strict=True)))) for i in range(3))
    ]
    dataset = MaskedDataset(Dataset.from_list(rows), list(names), max_inputs=6, max_targets=5)
    filled = set()
    for _ in range(50):
        for i, row in enumerate(rows):
            sample, seen = dataset[i], set()
            for side, slots in (("input", 6), ("target", 5)):
                valid = sample[f"{side}_valid_mask"]
                assert valid.shape == (slots,) and sample[f"{side}_ids"].shape == (slots,)
                columns = (sample[f"{side}_{key}"][valid].tolist() for key in ("ids", "modality_ids", "position_ids"))
                for token_id, modality, position in zip(*columns, strict=True):
                    assert row[f"{names[modality]}_ids"][position] == token_id
                    assert (modality, position) not in seen, "input and target at once"
                    seen.add((modality, position))
                filled.add((side, int(valid.sum())))
            assert (sample["target_ids"][~sample["target_valid_mask"]] == IGNORED).all()
    assert {("input", 6), ("target", 5), ("input", 1), ("target", 1)} <= filled


def test_the_baseline_generates_what_it_is_sure_of():
    """A head that answers with the position: every position is asked for, and none gets another's answer."""
    model = Baseline4M(20, 2, 10, hidden_size=16, intermediate_size=16, num_heads=2)
    with torch.no_grad():
        for layer in [*model.encoder_layers, *model.decoder_layers]:
            for parameter in layer.parameters():
                parameter.zero_()
        model.modalities.weight.zero_()
        model.positions.weight.copy_(torch.eye(10, 16))
        model.head.weight.copy_(100 * torch.eye(20, 16))
    given = torch.tensor([3, 4]), torch.tensor([0, 0]), torch.tensor([1, 2])
    assert generate(model, *given, 1, 10, 10, num_steps=4).tolist() == list(range(10))


def test_both_sides_prepare_the_same_clips(tmp_path):
    write_video(tmp_path / "video.mp4", seconds=15, height=64, key_frames=20)
    sides = [read(tmp_path / "video.mp4", CONFIG) for read in (read_planned, read_whole)]
    assert len(sides[0]) == len(sides[1]) == 2
    for (ours, sound), (theirs, their_sound) in zip(*sides, strict=True):
        assert ours == theirs and len(ours) == 8 and sound.shape == their_sound.shape
        assert sound.std() > 0.1 and their_sound.std() > 0.1


def test_quantizers_are_compared_with_the_library(tmp_path, capsys):
    quantizers = pytest.importorskip("benchmarks.quantizers", reason="the tests' extra is not installed")
    DatasetDict({"train": make_clips(4), "validation": make_clips(2)}).save_to_disk(tmp_path)
    words = "--steps 2 --seeds 1 --image_size 16 --learnability_steps 1"
    quantizers.main(["--dataset", str(tmp_path), *words.split()])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8 and all(float(row[2]) > 0 for row in rows)
