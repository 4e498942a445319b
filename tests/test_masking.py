"""The masking collator: no padding predicted, never an empty target, budgets kept, real conditions common."""

import collections

import numpy as np
import pyarrow as pa
import pytest
import torch
from arguments import fields_of, parse_args
from datasets import Dataset, Features, List, Value
from test_modeling_nano4m import make_model
from torch.utils.data import DataLoader

from trainers import MaskingCollator, real_token_share
from trainers.mask_draws import random_order, share_out, span_order

MODALITIES = make_model().config.modalities
LENGTHS = {"audio": 10, "image": 12, "text": 8}
NAMES = sorted(LENGTHS)


def make_rows(size=16, seed=0, **absent):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(size):
        row = {f"{name}_ids": list(range(1, 1 + (0 if absent.get(name) else n))) for name, n in LENGTHS.items()}
        row["text_ids"] = row["text_ids"][: rng.integers(3, 9)]
        rows.append({key: [i % 7 for i in ids] for key, ids in row.items()})
    return rows


def budgeted(batch, side):
    """Tokens of each sample, without those that begin a text."""
    begins = (batch[f"{side}_modality_ids"] == NAMES.index("text")) & (batch[f"{side}_position_ids"] == 0)
    return (batch[f"{side}_valid_mask"] & ~begins).sum(1)


def tokens_of(batch, side, i):
    mask = batch[f"{side}_valid_mask"][i]
    columns = (batch[f"{side}_{key}_ids"][i][mask].tolist() for key in ("modality", "position"))
    return list(zip(*columns, strict=True))


def places(batch, side, i, modality):
    return sorted(p for m, p in tokens_of(batch, side, i) if m == NAMES.index(modality))


def assert_equal(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("condition_probability", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"mean_span_length": 2.5}, {"budgets_per_sample": True}])
def test_inputs_and_targets_are_real_and_disjoint(condition_probability, options):
    collator = MaskingCollator(MODALITIES, 20, 15, condition_probability=condition_probability, **options)
    rows = make_rows() + make_rows(2, audio=True) + make_rows(2, image=True, text=True)
    for _ in range(30):
        batch = collator(rows)
        for i, row in enumerate(rows):
            inputs, targets = tokens_of(batch, "input", i), tokens_of(batch, "target", i)
            assert targets and not set(inputs) & set(targets)
            assert len(set(targets)) == len(targets) and len(set(inputs)) == len(inputs)
            for modality, position in inputs + targets:
                assert position < len(row[f"{NAMES[modality]}_ids"]), "padding was chosen"
            for side in ("input", "target"):
                mask = batch[f"{side}_valid_mask"]
                ids = batch[f"{side}_ids"][i][mask[i]].tolist()
                assert ids == [row[f"{NAMES[m]}_ids"][p] for m, p in tokens_of(batch, side, i)]
        for name, tensor in batch.items():
            side, _, kind = name.partition("_")
            assert tensor.dtype == (torch.bool if kind == "valid_mask" else torch.int64)
            assert not tensor[~batch[f"{side}_valid_mask"]].any(), "padding is 0 everywhere"


def test_dirichlet_budgets_are_spent_in_full():
    """What a short modality cannot take goes to the others: all samples of a batch have equally many tokens."""
    collator = MaskingCollator(MODALITIES, 12, 9, condition_probability=0.0, input_alphas=0.1, target_alphas=0.1)
    seen = set()
    for _ in range(150):
        batch = collator(make_rows())
        inputs, targets = (budgeted(batch, side) for side in ("input", "target"))
        assert len(set(inputs.tolist())) == 1 and inputs.max() <= 12
        assert len(set(targets.tolist())) == 1 and targets.max() <= 9
        seen.add((int(inputs[0]), int(targets.max())))
    assert {i for i, _ in seen} == set(range(13)) and {t for _, t in seen} == set(range(1, 10))


@pytest.mark.parametrize("per_sample", [False, True])
def test_budgets_lie_in_their_ranges(per_sample):
    options = {"min_inputs": 5, "min_targets": 4, "condition_probability": 0.0, "budgets_per_sample": per_sample}
    collator = MaskingCollator(MODALITIES, 7, 6, **options)
    batches = [collator(make_rows()) for _ in range(40)]
    sizes = [[budgeted(batch, side) for side in ("input", "target")] for batch in batches]
    assert {int(n) for inputs, _ in sizes for n in inputs} == {5, 6, 7}
    assert {int(n) for _, targets in sizes for n in targets} == {4, 5, 6}
    assert any(len(set(inputs.tolist())) > 1 for inputs, _ in sizes) == per_sample
    # A sample that has fewer tokens than the least budgets gives what it has, and still asks for one.
    batch = MaskingCollator(MODALITIES, 99, 99, min_inputs=99, min_targets=99, condition_probability=0.0)(make_rows(4))
    for i, row in enumerate(make_rows(4)):
        total = sum(map(len, row.values()))
        assert len(tokens_of(batch, "input", i)) == total - 1 and len(tokens_of(batch, "target", i)) == 1


def test_budgets_are_spent_in_proportion_to_the_shares():
    """Between the whole numbers around their proportion, on average exactly; what one lacks goes to the others."""
    draws, rng = 20_000, np.random.default_rng(0)
    # So large alphas that the shares are 1/6, 2/6 and 3/6.
    alphas = np.tile([1e8, 2e8, 3e8], (draws, 1))
    for available, budget, expected in [
        ([40, 40, 40], 15, [2.5, 5, 7.5]),
        ([40, 4, 40], 15, [2.75, 4, 8.25]),  # the second is full
        ([2, 40, 6], 15, [2, 7, 6]),
        ([4, 5, 7], 16, [4, 5, 7]),
        ([0, 9, 9], 4, [0, 1.6, 2.4]),
        ([9, 9, 9], 0, [0, 0, 0]),
    ]:
        counts = share_out(np.tile(available, (draws, 1)), np.full(draws, budget), alphas, rng)
        assert (counts.sum(1) == budget).all() and (counts <= available).all()
        assert (np.abs(counts - expected) < 1.01).all()
        assert counts.mean(0) == pytest.approx(expected, abs=0.02)
    # Whatever the shares, all is spent on what there is.
    available = rng.integers(0, 20, (draws, 3))
    budget = rng.integers(0, available.sum(1) + 1)
    counts = share_out(available, budget, 10.0 ** rng.uniform(-4, 4, (draws, 3)), rng)
    assert (counts.sum(1) == budget).all() and (counts >= 0).all() and (counts <= available).all()


def test_small_alphas_favour_one_modality_and_large_ones_none():
    rng = np.random.default_rng(0)

    def largest(alpha):
        alphas = np.full((500, 3), alpha)
        counts = share_out(np.full((500, 3), 50), np.full(500, 30), alphas, rng)
        return counts.max(1).mean()

    assert largest(1e-4) > 29.5 and largest(1.0) == pytest.approx(20, abs=3) and largest(1e4) < 15


def test_alphas_per_modality_and_mixtures():
    def text_inputs(**options):
        options |= {"condition_probability": 0.0, "min_inputs": 4}
        collator = MaskingCollator(MODALITIES, 4, 4, **options)
        batch = collator(make_rows(64))
        return np.array([sum(place > 0 for place in places(batch, "input", i, "text")) for i in range(64)])

    most, least = {"text": 1e4, "image": 1e-3, "audio": 1e-3}, {"text": 1e-3}
    assert text_inputs(input_alphas=most).mean() > 3 > 0.5 > text_inputs(input_alphas=least).mean()
    assert text_inputs(input_alphas=[most, least], alpha_weights=[0, 1]).mean() < 0.5
    mixed = text_inputs(input_alphas=[most, least], alpha_weights=[1, 1], target_alphas=0.5)
    assert 0.2 < (mixed > 2).mean() < 0.8, "each sample draws its own"


def test_the_command_line_spells_alphas(tmp_path):
    fields = fields_of(MaskingCollator, without=("modalities", "seed"))
    config = tmp_path / "masking.yaml"
    config.write_text("input_alphas: 0.5\ntarget_alphas: [0.1, {text: 2.0}]\nalpha_weights: [3, 1]\nmin_inputs: 2\n")
    (masking,) = parse_args(fields, argv=[str(config)])
    collator = MaskingCollator(MODALITIES, **vars(masking))
    assert collator.alphas.tolist() == [[[0.5] * 3, [0.1] * 3], [[0.5] * 3, [1.0, 1.0, 2.0]]]
    assert collator.alpha_probabilities.tolist() == [0.75, 0.25] and collator.min_inputs == 2
    (masking,) = parse_args(fields, argv=["--input_alphas", "3", '{"text": 0.2}'])
    assert MaskingCollator(MODALITIES, **vars(masking)).alphas[:, 0].tolist() == [[3.0] * 3, [1.0, 1.0, 0.2]]
    (masking,) = parse_args(fields, argv=[])
    assert (MaskingCollator(MODALITIES, **vars(masking)).alphas == MaskingCollator(MODALITIES).alphas).all()


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


def test_target_weights_choose_what_is_completed():
    collator = MaskingCollator(MODALITIES, condition_probability=1.0, target_weights={"audio": 3.0, "image": 0.0})
    rows = make_rows(2)
    asked = collections.Counter(tokens_of(collator(rows), "target", 0)[0][0] for _ in range(400))
    assert asked[1] == 0 and asked[0] / 400 == pytest.approx(0.75, abs=0.08)
    # Where only the modality of weight 0 is there, it is asked for all the same.
    assert collator(make_rows(2, audio=True, text=True))["target_valid_mask"].any(1).all()


def test_text_to_continue_is_shown_from_the_front():
    collator = MaskingCollator(MODALITIES)
    for _ in range(100):
        batch = collator(make_rows())
        for i in range(16):
            shown, asked = places(batch, "input", i, "text"), places(batch, "target", i, "text")
            if asked:
                assert shown == list(range(len(shown))) and asked == list(range(len(shown), len(shown) + len(asked)))


def test_steps_follow_the_order_of_generation():
    collator = MaskingCollator(MODALITIES, condition_probability=1.0)
    rows = make_rows(12) + make_rows(4, image=True)
    orders, stepped = set(), collections.Counter()
    for _ in range(200):
        batch = collator(rows)
        target = NAMES[tokens_of(batch, "target", 0)[0][0]]
        for i, row in enumerate(rows):
            if not row[f"{target}_ids"]:
                assert not batch["input_steps"][i].any(), "masked as in budget batches"
                continue
            known = {}
            steps = batch["input_steps"][i][batch["input_valid_mask"][i]].tolist()
            for (modality, position), step in zip(tokens_of(batch, "input", i), steps, strict=True):
                if NAMES[modality] == target:
                    known[position] = step
                else:
                    assert step == 0, "conditions are there from the start"
            first = 0 if target == "text" else 1  # the token that begins a text is given
            assert sorted(known.values()) == list(range(first, first + len(known)))
            stepped[target] += len(known)
            if target == "text":
                assert all(step == position for position, step in known.items())
            elif target == "image" and len(known) >= 4:
                orders.add(tuple(sorted(known, key=known.get)))
    assert min(stepped.values()) > 0 and len(stepped) == 3 and len(orders) > 20
    budgets = MaskingCollator(MODALITIES, condition_probability=0.0)
    assert not any(budgets(rows)["input_steps"].any() for _ in range(20))


@pytest.mark.parametrize("options", [{}, {"mean_span_length": 2.0}, {"budgets_per_sample": True}])
@pytest.mark.parametrize("condition_probability", [0.0, 1.0])
def test_a_begin_token_is_given_and_never_asked_for(condition_probability, options):
    collator = MaskingCollator(MODALITIES, 12, 9, condition_probability=condition_probability, **options)
    asked = 0
    for _ in range(100):
        batch = collator(make_rows())
        for i in range(16):
            given, targets = places(batch, "input", i, "text"), places(batch, "target", i, "text")
            assert 0 not in targets and (0 in given) == bool(given or targets)
            asked += len(targets)
    assert asked > 1000
    # Where there is nothing else, there must be a target all the same.
    lone = collator([{"audio_ids": [], "image_ids": [], "text_ids": [1]}])
    assert lone["target_ids"].tolist() == [[1]]


def test_every_word_of_a_text_without_begin_token_is_asked_for():
    modalities = {"text": {"vocab_size": 9, "token_axes": {"index": 6}, "order": "left_to_right"}}
    collator = MaskingCollator(modalities, condition_probability=1.0)
    asked = collections.Counter()
    for _ in range(300):
        batch = collator([{"text_ids": [1, 2, 3, 4, 5, 6]}])
        asked.update(batch["target_position_ids"][0].tolist())
    assert asked[0] / 300 == pytest.approx(1 / 6, abs=0.07) and asked[5] == 300


@pytest.mark.parametrize(
    "options, match",
    [
        ({"max_inputs": 1.5}, "max_inputs=1.5"),
        ({"max_targets": 2.5}, "max_targets=2.5"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"condition_probability": np.nan}, "condition_probability=nan"),
        ({"target_weights": {"text": np.nan}}, "target_weights="),
        ({"target_weights": {"text": np.inf}}, "target_weights="),
        ({"input_alphas": [1.0, 2.0], "alpha_weights": [1.0, np.nan]}, "alpha_weights="),
        ({"alpha_weights": [np.inf]}, "alpha_weights="),
        ({"alpha_weights": []}, "alpha_weights="),
        ({"mean_span_length": np.inf}, "mean_span_length=inf"),
    ],
)
def test_options_without_meaning_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        MaskingCollator(MODALITIES, **options)


def test_a_batch_needs_rows():
    empty = pa.table({f"{name}_ids": pa.array([], pa.list_(pa.int32())) for name in NAMES})
    for rows in ([], empty, {name: empty[name] for name in empty.column_names}):
        with pytest.raises(ValueError, match="at least one row"):
            MaskingCollator(MODALITIES)(rows)


def test_spans_keep_neighbours_together():
    rng = np.random.default_rng(0)
    present, mean = np.full(400, 100), 4.0
    order = span_order(present, 128, mean, rng)[:, :100]
    assert (np.sort(order, axis=1) == np.arange(100)).all()
    together = (np.diff(order.astype(int), axis=1) == 1).mean()
    assert together == pytest.approx(1 - 1 / mean, abs=0.02)
    assert len(set(order[:, 0].tolist())) > 70, "the first span may lie anywhere"
    loose = random_order(present, 128, rng)[:, :100]
    assert (np.diff(loose.astype(int), axis=1) == 1).mean() < 0.02
    assert (np.sort(loose, axis=1) == np.arange(100)).all()


def test_text_is_masked_in_spans_in_budget_batches_only():
    modalities = {"text": {"vocab_size": 300, "token_axes": [["index", 200]], "order": "left_to_right"}}
    rows = [{"text_ids": list(range(200))} for _ in range(16)]
    runs, first = [], set()
    collator = MaskingCollator(modalities, 60, 60, condition_probability=0.0, mean_span_length=5.0, min_targets=30)
    for _ in range(20):
        batch = collator(rows)
        for i in range(16):
            asked = np.array(sorted(p for _, p in tokens_of(batch, "target", i)))
            runs.append(len(asked) / (1 + (np.diff(asked) > 1).sum()))
            first.add(int(asked[0]))
    assert 4 < np.mean(runs) < 9 and len(first) > 20
    complete = MaskingCollator(modalities, condition_probability=1.0, mean_span_length=5.0)(rows)
    for i in range(16):
        shown, asked = ([p for _, p in tokens_of(complete, side, i)] for side in ("input", "target"))
        assert shown + asked == list(range(len(shown) + len(asked)))


def test_absent_modalities_stay_absent():
    collator = MaskingCollator(MODALITIES)
    rows = make_rows(4, text=True, audio=True) + make_rows(4)
    for _ in range(100):
        batch = collator(rows)
        assert batch["target_valid_mask"].any(1).all()
        for i in range(4):
            assert {m for side in ("input", "target") for m, _ in tokens_of(batch, side, i)} <= {1}
    for _ in range(20):
        batch = collator(make_rows(4, audio=True))
        assert not any(places(batch, side, i, "audio") for side in ("input", "target") for i in range(4))
        single = collator([{"audio_ids": [], "image_ids": None, "text_ids": [3]}])
        assert single["target_ids"].tolist() == [[3]] and not single["input_valid_mask"].any()


def as_dataset(rows, feature=None):
    features = Features({key: feature or List(Value("int32")) for key in rows[0]})
    return Dataset.from_list(rows, features)


def test_every_form_of_the_rows_gives_the_same_batch():
    rows = make_rows(6) + make_rows(2, audio=True)
    data = as_dataset(make_rows(3, seed=5) + rows)
    table = data.with_format("arrow")[3:]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    scattered = data.with_format("arrow")[list(range(3, 11))]
    assert scattered.column(0).num_chunks > 1
    forms = {
        "columns": columns,
        "arrays": {key: [np.array(ids, dtype=np.int16) for ids in column] for key, column in columns.items()},
        "numpy rows": data.with_format("numpy").__getitems__(list(range(3, 11))),
        "table": table,
        "scattered table": scattered,
        "large lists": table.cast(pa.schema([(key, pa.large_list(pa.int64())) for key in table.column_names])),
        "columns of the table": {key: table[key] for key in columns},
        "arrays of the table": {key: table[key].combine_chunks() for key in columns},
        "missing, not empty": pa.table({k: pa.array([ids or None for ids in c]) for k, c in columns.items()}),
    }
    for form in forms.values():
        for options in ({"condition_probability": 0.0}, {"condition_probability": 1.0}):
            assert_equal(MaskingCollator(MODALITIES, **options)(form), MaskingCollator(MODALITIES, **options)(rows))
    fixed = make_rows(5)
    for row in fixed:
        row["text_ids"] = (row["text_ids"] * 3)[:8]
    lists = {key: pa.array([row[key] for row in fixed], pa.list_(pa.int32(), len(fixed[0][key]))) for key in fixed[0]}
    assert_equal(MaskingCollator(MODALITIES)(pa.table(lists)), MaskingCollator(MODALITIES)(fixed))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"audio_ids": [0] * 11}, "11 audio ids"),
        ({"audio_ids": [7]}, "audio id 7"),
        ({"image_ids": [-1]}, "image id -1"),
        ({"text_ids": [1.5]}, "text_ids"),
        ({"text_ids": 3}, "text_ids"),
        ({"text_ids": [3, None]}, "text_ids"),
        ({"text_ids": "words"}, "text_ids"),
        ({name: [] for name in ("audio_ids", "image_ids", "text_ids")}, "row 1 .* no token"),
    ],
)
def test_rows_that_do_not_fit_are_named(changes, message):
    rows = [make_rows(1)[0], {**make_rows(1)[0], **changes}]
    with pytest.raises(ValueError, match=message):
        MaskingCollator(MODALITIES)(rows)


def test_columns_that_are_missing_or_unequal_are_named():
    rows = make_rows(2)
    with pytest.raises(ValueError, match="lack the column 'image_ids'"):
        MaskingCollator(MODALITIES)([{k: v for k, v in row.items() if k != "image_ids"} for row in rows])
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    with pytest.raises(ValueError, match="differ in length"):
        MaskingCollator(MODALITIES)({**columns, "text_ids": columns["text_ids"][:1]})
    with pytest.raises(ValueError, match="'text_ids' must hold"):
        MaskingCollator(MODALITIES)(pa.table({**columns, "text_ids": ["a", "b"]}))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_targets": 0}, "min_targets=1 must lie between 1 and max_targets=0"),
        ({"min_targets": 0}, "min_targets"),
        ({"min_inputs": 5, "max_inputs": 4}, "min_inputs=5 .* max_inputs=4"),
        ({"max_inputs": -1}, "max_inputs=-1"),
        ({"condition_probability": 1.5}, "condition_probability=1.5"),
        ({"unconditional_probability": float("nan")}, "unconditional_probability=nan"),
        ({"target_weights": {"smell": 1.0}}, "target_weights: unknown modality 'smell'"),
        ({"target_weights": dict.fromkeys(NAMES, 0.0)}, "target_weights"),
        ({"target_weights": {"text": -1.0}}, "target_weights"),
        ({"input_alphas": 0.0}, "input_alphas=0.0"),
        ({"target_alphas": [1.0, {"text": -1}]}, "target_alphas"),
        ({"input_alphas": "much"}, "input_alphas='much'"),
        ({"input_alphas": {"smell": 1.0}}, "input_alphas: unknown modality 'smell'"),
        ({"input_alphas": [1.0, 2.0], "target_alphas": [1.0, 2.0, 3.0]}, "input_alphas has 2 entries"),
        ({"input_alphas": []}, "input_alphas has 0 entries"),
        ({"alpha_weights": [1.0, 2.0]}, "alpha_weights"),
        ({"input_alphas": [1.0, 2.0], "alpha_weights": [0.0, 0.0]}, "alpha_weights"),
        ({"mean_span_length": 0.5}, "mean_span_length=0.5"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MaskingCollator(MODALITIES, **options)


def test_seed_decides_everything():
    first, second, other = (MaskingCollator(MODALITIES, seed=seed) for seed in (3, 3, 4))
    rows = make_rows()
    for _ in range(5):
        a, b, c = first(rows), second(rows), other(rows)
        assert_equal(a, b)
    assert any(a[key].shape != c[key].shape or not torch.equal(a[key], c[key]) for key in a)


def test_draws_decide_everything_whatever_the_workers():
    rows = [{**row, "draw": 1000 + i} for i, row in enumerate(make_rows(24))]
    batches = {
        (workers, seed): list(
            DataLoader(rows, 4, collate_fn=MaskingCollator(MODALITIES, seed=seed), num_workers=workers)
        )
        for workers, seed in ((0, 0), (2, 0), (0, 1))
    }
    for alone, shared in zip(batches[0, 0], batches[2, 0], strict=True):
        assert_equal(alone, shared)
    sizes = {key: [(b["input_ids"].shape, b["target_ids"].shape) for b in value] for key, value in batches.items()}
    assert sizes[0, 0] != sizes[0, 1] and len(set(sizes[0, 0])) > 1
    # A collator that went through other batches before draws the same for a draw, in any form of the rows.
    used = MaskingCollator(MODALITIES)
    used(make_rows())
    columns = {key: [row[key] for row in rows[:4]] for key in rows[0]}
    assert_equal(used(pa.table(columns)), batches[0, 0][0])
    assert_equal(used({**columns, "draw": np.arange(1000, 1004)}), batches[0, 0][0])


def test_hardly_any_place_is_padding():
    """Texts of different lengths, as in the demo, must not make the batches ragged."""
    modalities = {
        "image": {"vocab_size": 256, "token_axes": [["frame", 4], ["row", 3], ["column", 3]]},
        "audio": {"vocab_size": 512, "token_axes": [["time", 38]]},
        "text": {"vocab_size": 512, "token_axes": [["index", 20]], "order": "left_to_right"},
    }
    rng, collator = np.random.default_rng(0), MaskingCollator(modalities)
    lengths = [10] * 36 + [11] * 38 + [12] * 15 + [13] * 9 + [14, 16]
    shares = []
    for _ in range(200):
        rows = [
            {"image_ids": np.zeros(36, int), "audio_ids": np.zeros(38, int), "text_ids": np.zeros(n, int)}
            for n in rng.choice(lengths, 32)
        ]
        shares.append(real_token_share(collator(rows)))
    assert np.mean(shares) > 0.95


def test_the_model_takes_the_batches():
    model, collator = make_model(), MaskingCollator(MODALITIES)
    for _ in range(20):
        batch = collator(make_rows())
        assert model(**batch).loss.isfinite()
