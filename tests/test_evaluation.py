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
    directions,
    divide_rows,
    evaluate_direction,
    fingerprint,
    gain_lines,
    groups_of,
    judge_identity,
    load_clips,
    load_judge,
    local_folder,
    main_figures,
    sample_rows,
    save_best,
    sweep_target,
    table,
    write_page,
)
from trainers.evaluation.bootstrap import interval
from trainers.evaluation.clips import sounding
from trainers.evaluation.directions import gains, others, text_errors
from trainers.evaluation.diversity import closer_to_true, distances, features, relative_diversity, spread
from trainers.evaluation.embed import html_table
from trainers.evaluation.judges import chance, classes_of, right_attributes
from trainers.evaluation.likelihood import log_probabilities, num_scored_tokens
from trainers.evaluation.noise import with_noise
from trainers.evaluation.retrieval import recall
from trainers.evaluation.sweep import best_settings
from trainers.training_data import write_training_data


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
        "cues": [[]] * number,
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
    errors, words = text_errors(["A red disc moves", "a blue ring"], ["a red ring moves", ""])
    assert errors["word_error"] == pytest.approx(4 / 7) and 0 < errors["character_error"] < 1
    assert words == {"measure": "1 - word error", "values": [3, 0], "weights": [4, 3]}
    assert text_errors(["a"], ["a"])[0]["word_error"] == 0


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
    for name, message in {
        "nobody": "judge 'nobody': give shapes_world",
        f"{tmp_path}/mine.py:number": "judge .*number: must be .* with the methods truths and read",
        f"{tmp_path}/none.py:Mine": "judge .*none.py: no such file",
        str(tmp_path): "judge .*: this folder holds no AVDigitsJudge",
    }.items():
        with pytest.raises(ValueError, match=message):
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
    own = {"guidance_scale": 1.0, "temperature": 1.0, "num_inference_steps": 8}
    assert part["own"] == own and part["kept"] == {"top_p": 0.9}
    tried = [{name: point.get(name) for name in own} for point in part["points"]]
    assert own in tried and len(part["points"]) >= 2 * (3 + 3), "the own pair and the own number of steps too"
    assert set(part["best"]) == {"guidance_scale", "temperature", "num_inference_steps"}
    assert set(part["best_by_direction"]) == {"audio_to_image", "text_to_image"}
    pipe.save_pretrained(tmp_path)
    save_best(pipe, {"image": part["best"]}, tmp_path)
    kept = type(pipe).from_pretrained(tmp_path).model.modality_defaults["image"]
    pipe.model.set_modality_defaults({})
    assert kept == {"top_p": 0.9, **part["best"]}
    with pytest.raises(ValueError, match="no clip"):
        sweep_target(pipe, load_clips(pipe, make_rows(2, text=["", ""])), "text")


def test_settings_that_are_no_better_leave_the_models_own(pipe, clips, monkeypatch):
    """Whatever is tried, `generation_quality` says how good it is."""
    goodness = {1.0: 0.5, 2.0: 0.6, 3.0: 0.9}

    def rate(pipe, clips, direction, numbers, batch_size, seed, **sampling):
        value = goodness[sampling["guidance_scale"]]
        by_clip = {"measure": "accuracy", "values": [value], "numbers": [0]}
        return {"by_clip": by_clip, "diversity": {"relative": 1.0}, "seconds_per_sample": 1.0}, []

    monkeypatch.setattr("trainers.evaluation.sweep.generation_quality", rate)
    grids = {"guidance_scales": [1.0, 2.0], "temperatures": [0.5], "steps": [4]}
    own = {"guidance_scale": 3.0, "temperature": 0.7, "num_inference_steps": 8}
    pipe.model.set_modality_defaults({"image": own})
    try:
        assert sweep_target(pipe, clips, "image", **grids)["best"] == own, "better than all of the grid"
        goodness[2.0] = 0.92
        assert sweep_target(pipe, clips, "image", **grids)["best"]["guidance_scale"] == 2.0
        goodness[2.0] = 0.905
        assert sweep_target(pipe, clips, "image", **grids)["best"] == own, "nearly as good and no faster"
    finally:
        pipe.model.set_modality_defaults({})


def test_rows_that_share_a_source_are_of_one_group():
    assert list(groups_of(["a", "b", "a", "c"])) == [0, 1, 0, 2]
    videos = ["p/1 + x.wav", "p/2 + x.wav", "p/2 + y.wav", "p/3 + z.wav"]
    assert list(groups_of(videos)) == [0, 0, 0, 1], "also through another row"
    assert list(groups_of(["C++/a.mp4", "C++/b.mp4"])) == [0, 1], "a plus sign in a name joins nothing"
    assert len(groups_of([])) == 0


def test_an_interval_draws_whole_groups():
    values = np.repeat(np.random.default_rng(1).normal(5, 2, size=100), 4)
    low, high = interval(values)
    wide_low, wide_high = interval(values, groups=np.repeat(np.arange(100), 4))
    assert (wide_high - wide_low) / (high - low) == pytest.approx(2, rel=0.15), "four copies tell no more than one"
    assert interval(values, groups=np.zeros(400)) is None
    ratio = interval(np.ones(6), np.array([0, 0, 0, 0, 0, 2.0]))
    assert ratio[0] > 0 and np.isfinite(ratio).all(), "draws without any weight do not count"


def test_clips_to_choose_settings_by_share_no_source_with_those_reported():
    recordings = [f"{i % 7}.wav" for i in range(42)]
    rows = make_rows(42, video=[f"mnist/{i} + {name}" for i, name in enumerate(recordings)])
    reported, tuning = divide_rows(rows, 20, 10, seed=3)
    assert len(reported) == 20 and len(tuning) == 10
    names = [{name.split(" + ")[1] for name in part["video"]} for part in (reported, tuning)]
    assert not names[0] & names[1] and len(names[1]) == 2
    assert divide_rows(rows, 20, 10, seed=3)[0]["clip_id"] == reported["clip_id"]
    reported, tuning = divide_rows(make_rows(3), 200, 100)
    assert (len(reported), len(tuning)) == (2, 1), "few clips are divided in proportion"
    with pytest.raises(ValueError, match="share their sources"):
        divide_rows(rows.select([0, 7]), 1, 1)


def test_what_a_model_was_trained_on_is_refused(tmp_path):
    """By the names of sources, however often rows are prepared, paired or saved anew."""

    def digits(*videos):
        return make_rows(len(videos), video=list(videos))

    trained = digits("mnist/train/1 + 3_theo_9.wav", "mnist/train/2 + 3_theo_8.wav")
    for name, folder in {"arrow": tmp_path / "a" / "tokens", "parquet": tmp_path / "p" / "tokens"}.items():
        tokens = DatasetDict({"train": trained.select_columns(["clip_id", "video"])})
        if name == "arrow":
            tokens.save_to_disk(folder)
        else:
            folder.mkdir(parents=True)
            tokens["train"].to_parquet(folder / "train-00000-of-00001.parquet")
        (folder / "tokens.json").write_text('{"modalities": {}}')
    again = digits("mnist/train/1 + 3_theo_9.wav", "mnist/train/2 + 3_theo_8.wav")
    shared = digits("mnist/validation/1 + 3_theo_9.wav", "mnist/validation/2 + 3_theo_0.wav")
    apart = digits("mnist/validation/1 + 3_theo_1.wav", "mnist/validation/2 + 3_theo_0.wav")
    clips = DatasetDict({"train": again, "validation": shared, "test": apart})
    for paths in ([tmp_path / "a/tokens"], [tmp_path / "p/tokens"], [f"{tmp_path}/p/tokens/train-*.parquet"]):
        write_training_data(tmp_path, paths)
        with pytest.raises(
            ValueError, match=r"2 of its 2 rows \(100.0%\) share a source, by name.*allow_training_split"
        ):
            check_split(tmp_path, clips, "train")
        with pytest.raises(ValueError, match=r"1 of its 2 rows \(50.0%\)"):
            check_split(tmp_path, clips, "validation")
        assert "1 of its 2 rows" in check_split(tmp_path, clips, "validation", allow_training_split=True)
        assert "none of its 2 rows" in check_split(tmp_path, clips, "test")
    # Of several data sets one names no sources: what is known still counts, the rest is not known.
    (tmp_path / "n").mkdir()
    trained.select_columns(["clip_id"]).to_parquet(tmp_path / "n" / "train-00000-of-00001.parquet")
    write_training_data(tmp_path, [tmp_path / "a/tokens", tmp_path / "n"])
    with pytest.raises(ValueError, match="1 of its 2 rows"):
        check_split(tmp_path, clips, "validation")
    assert "not known" in check_split(tmp_path, clips, "test")
    assert not list(tmp_path.glob("*.npy")) and (tmp_path / "training_data.json").stat().st_size < 1000


def test_what_is_not_recorded_is_not_known(tmp_path):
    clips = DatasetDict({"train": make_rows(3), "validation": make_rows(2)})
    for content in (None, {"trained_on": []}, {"trained_on": [{"name": "x", "split": "train", "fingerprint": "1"}]}):
        if content is not None:
            (tmp_path / "training_data.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="not known.*allow_training_split"):
            check_split(tmp_path, clips, "train")
        assert "not known" in check_split(tmp_path, clips, "validation")
    with pytest.raises(ValueError, match="has only train, validation"):
        check_split(tmp_path, clips, "test")


class PictureJudge(WordJudge):
    """Says that it cannot tell the colour of pictures, and does not know that of all rows."""

    def truths(self, rows):
        return [{"colour": text.split()[1]} if text else None for text in rows["text"]]

    def read(self, modality, media, sampling_rate=None):
        return super().read("text", media) if modality == "text" else [{"colour": None}] * len(media)


def test_what_a_judge_never_reads_is_not_judged(pipe):
    clips = load_clips(pipe, make_rows(6), PictureJudge())
    result, _, _ = evaluate_direction(pipe, clips, Direction(("text",), "image"), num_candidates=0)
    assert not {"accuracy", "judge_on_real", "chance"} & set(result)
    assert result["by_clip"]["measure"] == "closer to true"

    class LateJudge(PictureJudge):
        def read(self, modality, media, sampling_rate=None):
            return [{"colour": None}] * (len(media) - 1) + [{"colour": "red"}]

    clips = load_clips(pipe, make_rows(12), LateJudge())
    result, _, _ = evaluate_direction(pipe, clips, Direction(("text",), "image"), num_candidates=0)
    assert "accuracy" in result, "what counts are all true media, not the first"


def test_rows_whose_truth_is_not_known_are_left_out_of_what_is_judged(pipe):
    texts = [TEXTS[0], TEXTS[1], "", TEXTS[0], TEXTS[1], ""]
    clips = load_clips(pipe, make_rows(6, text=texts), PictureJudge())
    clips.judge.read = lambda modality, media, rate=None: [{"colour": "red"}] * len(media)
    result, _, media = evaluate_direction(pipe, clips, Direction(("audio",), "image"), num_candidates=6)
    assert (result["clips"], result["without_truth"], len(media)) == (6, 2, 6)
    assert result["accuracy"] == result["judge_on_real"] == result["shuffled"] == result["chance"] == 0.5
    assert result["relative_accuracy"] == 1 and result["relative_accuracy_interval"] == [1, 1]
    assert result["retrieval"]["class_chance"] == pytest.approx(2 / 6), "of those whose class is known"

    class Ignorant(WordJudge):
        def truths(self, rows):
            return [None] * len(rows)

    with pytest.raises(ValueError, match="knows none of the 6 rows"):
        load_clips(pipe, make_rows(6), Ignorant())


def test_words_that_a_judge_hears_give_a_word_error(pipe):
    class Listener(WordJudge):
        reads_words = True

        def truths(self, rows):
            return [dict(zip("abc", text.split()[:3], strict=True)) for text in rows["text"]]

        def read(self, modality, media, sampling_rate=None):
            return [{"a": "a", "b": "red"} if modality == "audio" else {}] * len(media)

    clips = load_clips(pipe, make_rows(4), Listener())
    result, _, _ = evaluate_direction(pipe, clips, Direction(("image",), "audio"), num_candidates=0)
    right = np.mean([[text.split()[0] == "a", text.split()[1] == "red", False] for text in clips.media["text"]])
    assert result["word_error"] == pytest.approx(1 - right) and "WER" in table({"image_to_audio": result})
    result, _, _ = evaluate_direction(pipe, clips, Direction(("audio",), "text"), num_candidates=0)
    assert "accuracy" not in result and "character_error" in result, "of texts all words count, not what a judge reads"


def test_sounds_count_only_as_far_as_they_last(pipe):
    config = pipe.audio_tokenizer.config
    lasting = sounding(config, np.array([0.25, 0.5])).numpy()
    assert config.token_axes == {"time": 7, "codebook": 2}
    assert lasting[1].all() and lasting[0].tolist() == [True] * 8 + [False] * 6, "0.25 s is within the fourth step"
    rows = make_rows(4, audio_valid=[4000, 8000, 8000, 8000])
    clips = load_clips(pipe, rows)
    assert list(num_scored_tokens(pipe, clips, "audio", np.arange(4))) == [8, 14, 14, 14]
    assert clips.valid_masks["audio"].all(), "as conditions they are what the model is given"
    expected = pipe.model.score(
        {"text": clips.token_ids["text"][:1]},
        {"audio": clips.token_ids["audio"][:1]},
        {"text": clips.valid_masks["text"][:1], "audio": clips.scored_masks["audio"][:1]},
        seed=[0],
    )
    assert log_probabilities(pipe, clips, ("text",), "audio", *[np.zeros(1, int)] * 2) == pytest.approx(
        expected.numpy()
    )
    # What comes after the end of either is not compared.
    rng = np.random.default_rng(0)
    first = rng.normal(size=8000).astype("float32")
    second = np.concatenate([first[:4000], rng.normal(size=4000).astype("float32")])
    between = distances("audio", *[features("audio", [first, second], 16000, None, np.array([0.2, 0.5]))] * 2)
    assert between[0, 1] == 0 and distances("audio", *[features("audio", [first, second], 16000, None)] * 2)[0, 1] > 0


def test_pairs_of_one_source_tell_nothing_of_diversity(pipe):
    between = np.array([[0, 0, 4.0], [0, 0, 2.0], [4.0, 2.0, 0]])
    assert spread(between, np.zeros(3), np.array([0, 0, 1])) == 3.0 and spread(between, np.zeros(3)) == 2.0
    assert spread(between, np.zeros(3), np.zeros(3)) is None and spread(between, np.full(3, -1)) is None
    assert closer_to_true(between, np.zeros(3)) is None
    assert list(closer_to_true(between, np.array([0, 0, 1]))) == [1.0, 1.0, 1.0]

    class EachItsOwn(WordJudge):
        def truths(self, rows):
            return [{"colour": str(number)} for number in range(len(rows))]

    clips = load_clips(pipe, make_rows(6), EachItsOwn())
    result, _, _ = evaluate_direction(pipe, clips, Direction(("image",), "text"), num_candidates=0)
    assert result["diversity"]["real"] > 0 and result["diversity"]["within"] == "all"


def test_a_pair_of_conditions_is_compared_with_the_better_one_clip_by_clip():
    def part(values, numbers=(0, 1, 2, 3)):
        return {"by_clip": {"measure": "accuracy", "values": values, "numbers": list(numbers)}}

    results = {
        "image_and_audio_to_text": part([1, 1, 0], (0, 1, 3)),
        "image_to_text": part([0, 0, 0, 0]),
        "audio_to_text": part([1, 0, 1, 0]),
        "audio_and_text_to_image": part([1, 1, 1, 1]),
    }
    found = gains(results, np.arange(4))
    assert set(found) == {"image_and_audio_to_text"}, "of the other one no single condition was evaluated"
    assert gains({**results, "image_to_text": {"clips": 0}}, np.arange(4)) == found, "the better of those evaluated"
    gain = found["image_and_audio_to_text"]
    assert (gain["over"], gain["clips"], gain["gain"]) == ("audio_to_text", 3, pytest.approx(1 / 3))
    assert "+0.333 against audio_to_text [+0.000, " in gain_lines(found)
    results["audio_to_text"]["by_clip"]["measure"] = "1 - word error"
    assert gains(results, np.arange(4))["image_and_audio_to_text"]["over"] == "image_to_text"


def test_noise_is_as_loud_as_asked_and_only_on_what_is_given(pipe):
    sound = np.zeros(8000, dtype="float32")
    sound[:4000] = np.sin(np.arange(4000) / 9)
    noisy = with_noise(sound, 4000, 6.0, seed=1)
    noise = noisy - sound
    assert 10 * np.log10(np.sum(sound**2) / np.sum(noise**2)) == pytest.approx(6, abs=1e-3)
    assert not noise[4000:].any() and noisy.dtype == np.float32
    assert (with_noise(sound, 4000, 6.0, seed=1) == noisy).all() and (with_noise(sound, 4000, 6.0, 2) != noisy).any()
    assert not with_noise(np.zeros(80, "float32"), 80, 0.0, 0).any()
    clean, given = (load_clips(pipe, make_rows(3, audio_valid=[8000, 8000, 0]), noise_db=db) for db in (None, -10.0))
    assert (given.media["audio"][0] == clean.media["audio"][0]).all()
    assert (given.inputs("audio", [0])[0][0] != clean.inputs("audio", [0])[0][0]).any()
    assert (given.token_ids["audio"] == clean.token_ids["audio"]).all()
    assert (given.given_ids["audio"][:2] != clean.given_ids["audio"][:2]).any()
    assert clean.given_ids["audio"] is clean.token_ids["audio"]


def test_models_and_judges_are_told_apart(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / "hub" / name).mkdir(parents=True)
        (tmp_path / "hub" / name / "model.safetensors").write_bytes(name.encode())
    monkeypatch.setattr("trainers.evaluation.results.snapshot_download", lambda name: str(tmp_path / "hub" / name[3:]))
    folders = [local_folder(name) for name in ("me/one", "me/two")]
    assert judge_identity(folders[0]) != judge_identity(folders[1]) and local_folder("grid") == "grid"
    assert local_folder(str(tmp_path)) == str(tmp_path)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"one")
    assert judge_identity(str(tmp_path / "copy")) == judge_identity(folders[0]), "wherever it lies"
    assert judge_identity("grid").startswith("grid ") and judge_identity("grid") != judge_identity("shapes_world")
    (tmp_path / "mine.py").write_text("class A: ...")
    assert judge_identity(f"{tmp_path}/mine.py:A").startswith("A ")
    for nothing in ("me/one", str(tmp_path / "empty")):
        with pytest.raises(ValueError, match="to tell it from others"):
            fingerprint(nothing)

    def fail(name):
        raise OSError("offline")

    monkeypatch.setattr("trainers.evaluation.results.snapshot_download", fail)
    with pytest.raises(ValueError, match="me/three: there is no such folder.*offline"):
        local_folder("me/three")


def test_results_are_kept_for_the_same_question_only(tmp_path):
    results = Results(tmp_path / "results.json", {"seed": 0})
    results.put("directions", "a_to_b", {"steps": 8}, {"accuracy": 1.0})
    again = Results(tmp_path / "results.json", {"seed": 0})
    assert again.get("directions", "a_to_b", {"steps": 8})["accuracy"] == 1.0
    assert again.get("directions", "a_to_b", {"steps": 9}) is None
    assert Results(tmp_path / "results.json", {"seed": 1}).get("directions", "a_to_b", {"steps": 8}) is None
    old = json.loads((tmp_path / "results.old.json").read_text())
    assert old["directions"]["a_to_b"]["accuracy"] == 1.0, "what answers another question is not lost"
    assert not (tmp_path / "results.json").exists()
    results.put("directions", "a_to_b", {}, {"values": [1.5, -2e-05], "names": ["[ 1 ]"]})
    text = (tmp_path / "results.json").read_text()
    assert '"values": [ 1.5, -2e-05 ]' in text and json.loads(text) == results.values
    (tmp_path / "results.json").write_text('{"identity": {"seed"')
    assert Results(tmp_path / "results.json", {"seed": 0}).values == {"identity": {"seed": 0}}
