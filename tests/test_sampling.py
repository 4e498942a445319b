"""Draws: every row once an epoch, data sets in proportion, and nothing that depends on who asks."""

import numpy as np
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from trainers import DrawnRows, MaskingCollator, NumberedRows
from trainers.sampling import DrawSampler


def source(name: str, size: int) -> Dataset:
    return Dataset.from_list([{f"{name}_ids": [i], "clip_id": f"{name}{i}"} for i in range(size)])


def drawn(rows, epochs):
    """Rows of some epochs as a DataLoader gives them."""
    sampler = DrawSampler(rows)
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for batch in DataLoader(rows, batch_size=3, sampler=sampler, collate_fn=lambda table: table.to_pylist()):
            yield from batch


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own():
    first, second = ([row["image_ids"][0] for row in drawn(DrawnRows([source("image", 20)]), [e])] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second != sorted(second)
    other = [row["image_ids"][0] for row in drawn(DrawnRows([source("image", 20)], seed=1), [0])]
    assert other != first


def test_draws_count_on_over_epochs_and_mean_the_same_in_any_order():
    rows = DrawnRows([source("image", 5), source("text", 6)], weights=[2, 1])
    in_order = list(drawn(rows, range(3)))
    assert [row["draw"] for row in in_order] == list(range(33))
    shuffled = np.random.default_rng(0).permutation(33).tolist()
    fresh = DrawnRows([source("image", 5), source("text", 6)], weights=[2, 1])
    assert fresh.__getitems__(shuffled).to_pylist() == [in_order[draw] for draw in shuffled]
    assert fresh[32] == in_order[32]


def test_weights_are_kept_and_each_data_set_is_walked_through():
    rows = DrawnRows([source("image", 10), source("text", 30)], weights=[3, 1])
    found = list(drawn(rows, range(3)))
    images = [row["image_ids"][0] for row in found if row["image_ids"]]
    texts = [row["text_ids"][0] for row in found if row["text_ids"]]
    assert (len(images), len(texts)) == (90, 30), "3 to 1"
    assert sorted(texts) == list(range(30)), "no text twice before each came once, over epochs too"
    assert all(sorted(images[i : i + 10]) == list(range(10)) for i in range(0, 90, 10))
    assert all(set(row) == {"image_ids", "text_ids", "draw"} for row in found)


def test_default_weights_are_the_sizes():
    found = list(drawn(DrawnRows([source("image", 7), source("text", 2)]), [4]))
    assert sorted(row["image_ids"][0] for row in found if row["image_ids"]) == list(range(7))
    assert sorted(row["text_ids"][0] for row in found if row["text_ids"]) == [0, 1]


def test_evaluation_rows_are_numbered_in_order():
    rows = NumberedRows([source("image", 2), source("text", 0), source("text", 3)])
    assert [rows[i]["draw"] for i in range(len(rows))] == list(range(5))
    assert rows[1] == {"image_ids": [1], "text_ids": [], "draw": 1}
    assert rows[2] == {"image_ids": [], "text_ids": [0], "draw": 2}


@pytest.mark.parametrize(
    "weights, message",
    [
        ([1], "one positive number for each of the 2"),
        ([1, 0], "one positive number"),
        ([1, -1], "one positive number"),
        ([1, float("nan")], "one positive number"),
        ([1, 1e-6], "none for data set 2"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        DrawnRows([source("image", 5), source("text", 5)], weights)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="data set 2 of 2 has no rows"):
        DrawnRows([source("image", 5), source("text", 5).select([])])


def test_masks_follow_from_draws_whatever_the_number_of_workers():
    modalities = {"image": {"vocab_size": 40, "token_axes": [["index", 12]]}}
    data = Dataset.from_list([{"image_ids": list(range(i, i + 12))} for i in range(20)])

    def batches(num_workers):
        rows = DrawnRows([data])
        collator = MaskingCollator(modalities, 8, 8)
        return list(DataLoader(rows, 4, sampler=DrawSampler(rows), collate_fn=collator, num_workers=num_workers))

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert all((alone[key] == shared[key]).all() for key in alone)


def paired_rows(number: int = 60) -> Dataset:
    """Ids that tell their row and modality; five classes of different sizes."""
    return Dataset.from_dict(
        {
            "audio_ids": [[1000 + i] for i in range(number)],
            "image_ids": [[i] for i in range(number)],
            "text_ids": [[2000 + i] for i in range(number)],
            "label": [min(i % 7, 4) for i in range(number)],
        }
    )


def test_pairs_are_of_one_class_and_others_in_every_epoch():
    data = paired_rows()
    rows = DrawnRows([data], seed=3, pair_by="label")
    label = np.array(data["label"][:])
    epochs = [rows.__getitems__(list(range(e * 60, e * 60 + 60))).to_pydict() for e in range(2)]
    partners = []
    for epoch in epochs:
        audio, image, text = (np.array(epoch[f"{name}_ids"])[:, 0] for name in ("audio", "image", "text"))
        audio, text = audio - 1000, text - 2000
        assert sorted(audio) == list(range(60))  # the first modality walks through all rows
        assert (label[audio] == label[image]).all() and (label[audio] == label[text]).all()
        assert (audio != image).mean() > 0.5 and (image != text).mean() > 0.5
        partners.append(dict(zip(audio.tolist(), image.tolist(), strict=True)))
    assert partners[0] != partners[1]


def test_a_pair_follows_from_seed_and_draw_alone():
    draws = [5, 130, 61, 7]  # of three epochs
    together = DrawnRows([paired_rows()], seed=3, pair_by="label").__getitems__(draws).to_pylist()
    rows = DrawnRows([paired_rows()], seed=3, pair_by="label")
    assert together == [rows[draw] for draw in draws]
    assert together != DrawnRows([paired_rows()], seed=4, pair_by="label").__getitems__(draws).to_pylist()


def test_a_modality_that_a_row_lacks_comes_from_a_row_of_its_class_that_has_it():
    """Every row has one of three modalities; class 2 has no texts at all."""
    names = ("audio", "image", "text")
    number = 90
    data = Dataset.from_dict(
        {
            **{f"{name}_ids": [[i] if i % 3 == k else [] for i in range(number)] for k, name in enumerate(names)},
            "label": [2 if i < 30 and i % 3 < 2 else i % 2 for i in range(number)],
        }
    )
    label = np.array(data["label"][:])
    rows = DrawnRows([data.select(range(number))], seed=3, pair_by="label")
    found = [rows.__getitems__(list(range(e * number, (e + 1) * number))).to_pylist() for e in range(2)]
    for draw, row in enumerate(found[0]):
        place = rows.places(np.array([draw]))[1][0]
        has = [name for name in names if row[f"{name}_ids"]]
        assert has == [name for name in names if name != "text" or label[place] != 2]
        assert {label[row[f"{name}_ids"][0]] for name in has} == {label[place]}
        if place % 3 == 0:
            assert row["audio_ids"] == [place], "the first modality is the row's own where it has it"
    assert found[0] != found[1]
    MaskingCollator({name: {"vocab_size": number, "token_axes": [["index", 1]]} for name in names}, 2, 2)(found[0])


def test_pairing_by_a_column_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="pair_by=digit: the tokens have no such column"):
        DrawnRows([paired_rows()], pair_by="digit")
