"""Evaluation: known values, controls, what a data set or a judge lacks, and splits that must not be reported."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image
from test_pipeline import make_pipeline
from test_tokenizers import TEXTS

from dataset_scripts.video_clips import clip_features
from trainers.evaluation import (
    Direction,
    Results,
    check_split,
    choose_rows,
    directions,
    evaluate_direction,
    load_clips,
    load_judge,
    main_figures,
    sample_rows,
    save_best,
    sweep_target,
    table,
    tuning_rows,
    write_page,
)
from trainers.evaluation.bootstrap import interval
from trainers.evaluation.directions import others, text_errors
from trainers.evaluation.diversity import closer_to_true, distances, features, relative_diversity, spread
from trainers.evaluation.embed import html_table
from trainers.evaluation.judges import chance, classes_of, right_attributes
from trainers.evaluation.likelihood import log_probabilities, num_scored_tokens
from trainers.evaluation.retrieval import recall
from trainers.evaluation.sweep import best_settings


def make_rows(number: int = 6, **changes) -> Dataset:
    """Clips of one colour each, with a tone and a text."""
    rng = np.random.default_rng(0)
    columns = {
        "clip_id": [f"{i}.mp4#0" for i in range(number)],
        "video": [f"{i}.mp4" for i in range(number)],
        "start": [0.0] * number,
        "end": [0.5] * number,
        "frames": [[Image.new("RGB", (16, 16), (40 * i % 256, 90, 255 - 40 * i % 256))] * 2 for i in range(number)],
        "audio": [rng.normal(size=8000).astype("float32") / 10 for _ in range(number)],
        "audio_valid": [8000] * number,
        "sampling_rate": [16000] * number,
        "text": [TEXTS[i % 2] for i in range(number)],
    }
    return Dataset.from_dict({**columns, **changes}, features=clip_features(2, 8000))


class WordJudge:
    """Knows the colour of a text, nothing of sounds, and gives None for pictures."""

    def truths(self, rows):
        return [{"colour": text.split()[1]} for text in rows["text"]]

    def read(self, modality, media, sampling_rate=None):
        if modality != "text":
            return [None] * len(media)
        return [{"colour": next((word for word in text.split() if word in ("red", "blue")), None)} for text in media]


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def clips(pipe):
    return load_clips(pipe, make_rows(), WordJudge(), batch_size=4)


def test_an_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    low, high = interval(values)
    # The standard error is 2 / sqrt(400) = 0.1.
    assert low < values.mean() < high and 0.3 < high - low < 0.5
    assert interval(values) == interval(values) and interval(np.ones(9)) == [1.0, 1.0]
    assert interval(np.ones(1)) is None
    errors, words = np.array([1, 0, 3, 2]), np.array([4, 4, 6, 2])
    low, high = interval(errors, words)
    assert 0 <= low < 6 / 16 < high <= 1, "a ratio of sums stays one"


def test_recall_of_known_scores():
    perfect = recall(np.eye(20), np.arange(20) % 2)
    assert perfect["r1"] == perfect["r10"] == perfect["class_at_1"] == 1.0
    assert perfect["chance_r5"] == 0.25 and perfect["class_chance"] == 0.5
    assert (perfect["ceiling_r1"], perfect["ceiling_r10"]) == pytest.approx((0.1, 1.0))
    classes = np.arange(20) % 2
    by_class = recall((classes[:, None] == classes).astype(float), classes)
    assert by_class["r5"] == pytest.approx(by_class["ceiling_r5"]) == 0.5 and by_class["class_at_1"] == 1.0
    blind = recall(np.zeros((20, 20)), classes)
    assert [blind[f"r{rank}"] for rank in (1, 5, 10)] == pytest.approx([0.05, 0.25, 0.5]), "ties are broken by chance"
    second = recall(np.roll(np.eye(20), 1, axis=1) * 2 + np.eye(20))
    assert (second["r1"], second["r5"]) == (0.0, 1.0) and second["curve"][:2] == [[1, 0.0], [2, 1.0]]


def test_spread_of_known_media():
    greys = [[Image.new("RGB", (8, 8), (value,) * 3)] for value in (0, 51, 102, 255)]
    between = distances("image", *[features("image", greys, None, (8, 8))] * 2)
    assert between[0, 1] == pytest.approx(0.2, abs=1e-4) and between[1, 0] == pytest.approx(0.2, abs=1e-4)
    assert spread(between, np.array([0, 0, 1, 1])) == pytest.approx((0.2 + 0.6) / 2, abs=1e-4)
    assert spread(between, np.arange(4)) is None
    assert relative_diversity(0.1, 0.4)["relative"] == pytest.approx(0.25)
    assert relative_diversity(0.1, 0.0)["relative"] is None
    sounds = [np.zeros(4000, "float32"), np.zeros(6000, "float32"), np.random.default_rng(0).normal(size=4000)]
    between = distances("audio", *(features("audio", part, 16000, None) for part in (sounds[:1], sounds[1:])))
    assert between[0, 0] == 0 and between[0, 1] > 1, "silence is silence, as far as both go"
    assert list(closer_to_true(np.array([[0.0, 1, 1], [1, 1, 1], [0, 0, 1]]))) == [1.0, 0.5, 0.0]


def test_a_shuffle_never_keeps_a_clips_own_condition():
    for number in (2, 3, 50):
        order = others(number, seed=number)
        assert sorted(order) == list(range(number)) and not (order == np.arange(number)).any()
    assert others(1) is None


def test_errors_of_texts():
    errors = text_errors(["A red disc moves", "a blue ring"], ["a red ring moves", ""])
    assert errors["word_error"] == pytest.approx(4 / 7) and 0 < errors["character_error"] < 1
    assert text_errors(["a"], ["a"])["word_error"] == 0


def test_chance_and_what_a_judge_cannot_read():
    truths = [{"digit": name, "voice": "low"} for name in "0123456789"]
    assert chance(truths) == pytest.approx((0.1 + 1) / 2)
    assert list(classes_of(truths[:2] + truths[:1])) == [0, 1, 0]
    assert not right_attributes(WordJudge(), "image", [None] * 3, None, [{"colour": "red"}] * 3).any()
    assert right_attributes(WordJudge(), "text", ["a red one"], None, [{"colour": "red"}]).all()

    class Silent(WordJudge):
        def read(self, modality, media, sampling_rate=None):
            return None

    with pytest.raises(ValueError, match="Silent.*gave None for 1 media"):
        right_attributes(Silent(), "text", ["a red one"], None, [{"colour": "red"}])


def test_judges_are_found_by_name(tmp_path):
    judge = load_judge("shapes_world")
    assert judge.read("text", ["a red square moves left"])[0]["shape"] == "square"
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    def truths(self, rows): return []\n    def read(self, *args): return []\n\nnumber = 3\n"
    )
    assert type(load_judge(f"{tmp_path}/mine.py:Mine")).__name__ == "Mine"
    for name in ("nobody", f"{tmp_path}/mine.py:number", f"{tmp_path}/none.py:Mine", str(tmp_path)):
        with pytest.raises(ValueError, match="judge"):
            load_judge(name)


def test_likelihoods_are_those_of_the_model(pipe, clips):
    pairs = np.array([0, 1, 2]), np.array([2, 2, 0])
    together = log_probabilities(pipe, clips, ("image",), "text", *pairs, batch_size=2)
    ids, masks = pipe.text_tokenizer.encode_media([clips.media["text"][i] for i in pairs[1]])
    images, _ = pipe.image_tokenizer.encode_media([clips.media["image"][i] for i in pairs[0]])
    expected = pipe.model.score({"image": images}, {"text": ids}, {"text": masks}, seed=[0] * 3)
    assert together == pytest.approx(expected.numpy(), rel=1e-4)
    counted = num_scored_tokens(pipe, clips, "text", np.arange(6))
    real = pipe.text_tokenizer.encode_media(TEXTS[:1])[1].sum()
    assert counted[0] == real - 1, "without the begin token, which is always given"
    assert (num_scored_tokens(pipe, clips, "image", np.arange(6)) == pipe.image_tokenizer.config.num_tokens).all()


def test_every_direction_has_its_figures(pipe, clips):
    names = [direction.name for direction in directions()]
    assert len(names) == len(set(names)) == 12 and "image_and_audio_to_text" in names and "nothing_to_text" in names
    results = {}
    for name in ("audio_to_image", "image_to_text", "image_and_audio_to_text", "nothing_to_audio"):
        direction = next(direction for direction in directions() if direction.name == name)
        result, numbers, media = evaluate_direction(pipe, clips, direction, num_candidates=4)
        assert len(media) == len(numbers) == result["clips"] == 6
        assert result["nats"] > 0 and result["nats_interval"] and result["seconds_per_sample"] > 0
        results[name] = result
    for name in ("audio_to_image", "image_to_text", "image_and_audio_to_text"):
        result = results[name]
        assert result["retrieval"]["candidates"] == 4
        assert "chance" not in result or result["chance"] == pytest.approx(0.5)
        assert result["information"] == pytest.approx(result["nats_unconditional"] - result["nats"])
        assert result["diversity"]["relative"] is None or result["diversity"]["relative"] >= 0
    assert results["image_to_text"]["judge_on_real"] == 1.0 and "word_error" in results["image_to_text"]
    assert not {"accuracy", "chance", "judge_on_real"} & set(results["audio_to_image"]), "nothing can be read of it"
    assert not {"readable", "retrieval"} & set(results["nothing_to_audio"])
    lines = table(results).splitlines()
    assert len(lines) == 5 and "R@10" in lines[0] and "accuracy" not in main_figures(results["nothing_to_audio"])


def test_the_same_seed_gives_the_same_figures_in_any_batch(pipe, clips):
    first, second = (
        evaluate_direction(pipe, clips, Direction(("text",), "image"), batch_size=size, num_candidates=3)[0]
        for size in (2, 64)
    )
    for name in ("nats", "information", "closer_to_true"):
        assert first[name] == pytest.approx(second[name], rel=1e-4)
    assert first["retrieval"]["r1"] == second["retrieval"]["r1"]


def test_rows_that_lack_a_modality_are_left_out(pipe):
    rows = make_rows(4, audio_valid=[8000, 0, 8000, 8000], text=["", "", TEXTS[0], ""])
    clips = load_clips(pipe, rows)
    result, numbers, _ = evaluate_direction(pipe, clips, Direction(("audio",), "image"), num_candidates=9)
    assert list(numbers) == [0, 2, 3] and result["retrieval"]["candidates"] == 3
    one, numbers, media = evaluate_direction(pipe, clips, Direction(("audio",), "text"))
    assert one["clips"] == len(media) == 1 and one["nats_interval"] is None and "nats_shuffled" not in one
    rows = make_rows(3, text=["", " ", ""])
    result, _, media = evaluate_direction(pipe, load_clips(pipe, rows), Direction(("image",), "text"))
    assert result == {"clips": 0, "skipped": "no clip has image and text"} and media == []
    assert "no clip has" in table({"image_to_text": result})


def test_a_single_clip_gives_figures_without_intervals(pipe):
    clips = load_clips(pipe, make_rows(1), WordJudge())
    for direction in directions():
        result, _, _ = evaluate_direction(pipe, clips, direction)
        assert result["clips"] == 1 and result["nats"] > 0 and result["nats_interval"] is None
        assert result["diversity"]["relative"] is None and "shuffled" not in result and "retrieval" not in result
    with pytest.raises(ValueError, match="no clip"):
        load_clips(pipe, make_rows(0))


def test_the_page_escapes_what_was_generated(clips, tmp_path):
    direction = Direction(("image",), "text")
    rows = sample_rows(clips, direction, [0], ["<script>alert(1)</script>"], 16000)
    (tmp_path / "image_to_text.json").write_text(json.dumps(rows))
    part = {"clips": 1, "nats": 1.5, "nats_interval": [1.25, 1.75]}
    results = {"identity": {"split": "validation", "seed": 0}, "directions": {"image_to_text": part}}
    page = write_page(tmp_path / "page.html", results, tmp_path, tmp_path).read_text()
    for text in (page, html_table([{"generated": rows[0]["generated"]}])):
        assert "<script>" not in text and "&lt;script&gt;" in text
    assert "[1.250, 1.750]" in page and "data:image/png" in page


def test_settings_are_chosen_by_quality_then_diversity_then_time():
    grid = [{"guidance_scale": scale} for scale in (1.0, 2.0, 3.0)]
    figures = [(0.5, 0.9, 1), (0.995, 0.5, 1), (1.0, 0.2, 3)]
    points = [
        {**setting, "direction": name, "quality": quality, "diversity": diversity, "seconds_per_sample": seconds}
        for setting, (quality, diversity, seconds) in zip(grid, figures, strict=True)
        for name in ("a", "b")
    ]
    assert best_settings(points, grid, by="diversity") == {"guidance_scale": 2.0}
    points[2]["quality"] = 0.5
    assert best_settings(points, grid, by="diversity") == {"guidance_scale": 3.0}, "all directions count"


def test_a_sweep_finds_settings_that_the_model_keeps(pipe, tmp_path):
    pipe.model.set_modality_defaults({"image": {"top_p": 0.9}})
    grids = {"guidance_scales": [1.0, 2.0], "temperatures": [0.5], "steps": [1, 4, 1000]}
    part = sweep_target(pipe, load_clips(pipe, make_rows()), "image", **grids)
    assert part["measure"] == "closer to true" and len(part["points"]) == 2 * (2 + 3), "the own number too"
    assert set(part["best"]) == {"guidance_scale", "temperature", "num_inference_steps"}
    assert set(part["best_by_direction"]) == {"audio_to_image", "text_to_image"}
    pipe.save_pretrained(tmp_path)
    save_best(pipe, {"image": part["best"]}, tmp_path)
    kept = type(pipe).from_pretrained(tmp_path).model.modality_defaults["image"]
    pipe.model.set_modality_defaults({})
    assert kept == {"top_p": 0.9, **part["best"]}
    with pytest.raises(ValueError, match="no clip"):
        sweep_target(pipe, load_clips(pipe, make_rows(2, text=["", ""])), "text")


def test_clips_to_choose_settings_by_are_not_reported():
    rows = make_rows(6, video=["a", "a", "b", "c", "d", "e"])
    clips = DatasetDict({"train": make_rows(5), "validation": rows})
    reported = choose_rows(rows, 2, seed=3)
    assert len(reported) == 2 and reported["clip_id"] == choose_rows(rows, 2, seed=3)["clip_id"]
    reported = rows.select([0, 2])
    tuning, phrase = tuning_rows(clips, "validation", reported, 3)
    assert not set(tuning["video"]) & {"a", "b"} and "not reported" in phrase
    tuning, phrase = tuning_rows(clips, "validation", reported, 5)
    assert len(tuning) == 5 and "training" in phrase
    with pytest.raises(ValueError, match="no clip is left"):
        tuning_rows(DatasetDict({"validation": rows}), "validation", rows, 3)


def test_a_training_split_is_refused(tmp_path):
    clips = DatasetDict({"train": make_rows(3), "validation": make_rows(2)})
    with pytest.raises(ValueError, match="does not say what it was trained on.*allow_training_split"):
        check_split(tmp_path, clips, "train")
    assert "does not say" in check_split(tmp_path, clips, "validation")
    source = {"name": "x", "split": "train", "fingerprint": clips["validation"]._fingerprint}
    (tmp_path / "training_data.json").write_text(json.dumps({"trained_on": [source]}))
    with pytest.raises(ValueError, match="trained on these clips"):
        check_split(tmp_path, clips, "validation")
    assert "was trained on" in check_split(tmp_path, clips, "validation", allow_training_split=True)
    assert "not trained on" in check_split(tmp_path, clips, "train"), "another data set's training split"
    with pytest.raises(ValueError, match="has only train, validation"):
        check_split(tmp_path, clips, "test")


def test_results_are_kept_for_the_same_question_only(tmp_path):
    results = Results(tmp_path / "results.json", {"seed": 0})
    results.put("directions", "a_to_b", {"steps": 8}, {"accuracy": 1.0})
    again = Results(tmp_path / "results.json", {"seed": 0})
    assert again.get("directions", "a_to_b", {"steps": 8})["accuracy"] == 1.0
    assert again.get("directions", "a_to_b", {"steps": 9}) is None
    assert Results(tmp_path / "results.json", {"seed": 1}).get("directions", "a_to_b", {"steps": 8}) is None
    (tmp_path / "results.json").write_text('{"identity": {"seed"')
    assert Results(tmp_path / "results.json", {"seed": 0}).values == {"identity": {"seed": 0}}
