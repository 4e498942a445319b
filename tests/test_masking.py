"""The masking collator: no padding predicted, never an empty target, budgets kept, real conditions common."""

import numpy as np
import pytest
import torch
from test_modeling_nano4m import make_model

from trainers import MaskingCollator

MODALITIES = make_model().config.modalities
LENGTHS = {"audio": 10, "image": 12, "text": 8}


def make_rows(size=16, seed=0, **absent):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(size):
        row = {f"{name}_ids": list(range(1, 1 + (0 if absent.get(name) else n))) for name, n in LENGTHS.items()}
        row["text_ids"] = row["text_ids"][: rng.integers(3, 9)]
        rows.append({key: [i % 7 for i in ids] for key, ids in row.items()})
    return rows


def tokens_of(batch, side, i):
    mask = batch[f"{side}_valid_mask"][i]
    columns = (batch[f"{side}_{key}_ids"][i][mask].tolist() for key in ("modality", "position"))
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("condition_probability", [0.0, 1.0])
def test_inputs_and_targets_are_real_and_disjoint(condition_probability):
    collator = MaskingCollator(MODALITIES, 20, 15, condition_probability=condition_probability)
    rows = make_rows()
    for _ in range(50):
        batch = collator(rows)
        for i, row in enumerate(rows):
            inputs, targets = tokens_of(batch, "input", i), tokens_of(batch, "target", i)
            assert targets and not set(inputs) & set(targets) and len(set(targets)) == len(targets)
            for modality, position in inputs + targets:
                assert position < len(row[f"{collator.names[modality]}_ids"]), "padding was chosen"
        for side in ("input", "target"):
            mask = batch[f"{side}_valid_mask"]
            for i, row in enumerate(rows):
                ids = batch[f"{side}_ids"][i][mask[i]].tolist()
                assert ids == [row[f"{collator.names[m]}_ids"][p] for m, p in tokens_of(batch, side, i)]


def test_dirichlet_budgets_are_spent_in_full():
    """What a short modality cannot take goes to the others: all samples of a batch have equally many tokens."""
    collator = MaskingCollator(MODALITIES, 12, 9, condition_probability=0.0, input_alphas=0.1, target_alphas=0.1)
    seen = set()
    for _ in range(100):
        batch = collator(make_rows())
        inputs, targets = (batch[f"{side}_valid_mask"].sum(1) for side in ("input", "target"))
        assert len(set(inputs.tolist())) == 1 and inputs.max() <= 12
        assert targets.max() <= 9
        seen.add((int(inputs[0]), int(targets.max())))
    assert {i for i, _ in seen} == set(range(13)) and {t for _, t in seen} == set(range(1, 10))


def test_condition_batches_look_like_generation():
    collator = MaskingCollator(MODALITIES, condition_probability=1.0, unconditional_probability=0.25)
    rows, kinds = make_rows(4), set()
    for _ in range(300):
        batch = collator(rows)
        target = set(m for i in range(4) for m, _ in tokens_of(batch, "target", i))
        assert len(target) == 1
        conditions = set()
        for modality in {0, 1, 2} - target:
            shown = [p for m, p in tokens_of(batch, "input", 0) if m == modality]
            if shown:
                conditions.add(modality)
                assert len(shown) == len(rows[0][f"{collator.names[modality]}_ids"]), "all of it or nothing"
        kinds.add((target.pop(), frozenset(conditions)))
    assert len(kinds) == 3 * 4, "every target from every subset of the others"


def test_text_to_continue_is_shown_from_the_front():
    collator = MaskingCollator(MODALITIES)
    text = collator.names.index("text")
    for _ in range(100):
        batch = collator(make_rows())
        for i in range(16):
            shown = sorted(p for m, p in tokens_of(batch, "input", i) if m == text)
            asked = sorted(p for m, p in tokens_of(batch, "target", i) if m == text)
            if asked:
                assert shown == list(range(len(shown))) and asked == list(range(len(shown), len(shown) + len(asked)))


def test_absent_modalities_stay_absent():
    collator = MaskingCollator(MODALITIES)
    rows = make_rows(4, text=True, audio=True) + make_rows(4)
    for _ in range(100):
        batch = collator(rows)
        assert batch["target_valid_mask"].any(1).all()
        for i in range(4):
            assert {m for side in ("input", "target") for m, _ in tokens_of(batch, side, i)} <= {1}
    with pytest.raises(ValueError, match="no token"):
        collator([{f"{name}_ids": [] for name in LENGTHS}])
    with pytest.raises(ValueError, match="11 audio ids"):
        collator([{**make_rows(1)[0], "audio_ids": [0] * 11}])


def test_seed_decides_everything():
    first, second, other = (MaskingCollator(MODALITIES, seed=seed) for seed in (3, 3, 4))
    rows = make_rows()
    for _ in range(5):
        a, b, c = first(rows), second(rows), other(rows)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(a[key].shape != c[key].shape or not torch.equal(a[key], c[key]) for key in a)


def test_the_model_takes_the_batches():
    model, collator = make_model(), MaskingCollator(MODALITIES)
    for _ in range(20):
        assert model(**{k: v for k, v in collator(make_rows()).items() if k != "input_steps"}).loss.isfinite()
