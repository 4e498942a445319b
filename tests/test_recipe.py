"""A recipe goes from raw digits to scores in one command, and does nothing twice."""

import json
import sys

import demo
import prepare_dataset
import pytest
import run_training
import stages
import train_judge
import train_tokenizer
from arguments import field_value
from datasets import DatasetDict
from run_recipe import main
from stages import stage
from test_av_digits import folder  # noqa: F401  (a fixture)
from test_evaluation import make_rows
from test_scripts import IMAGE

from modeling_nano4m import Nano4MModel

SHORT = "max_steps: 2\nper_device_train_batch_size: 8\nreport_to: none\ndisable_tqdm: true\n"
CONFIGS = {
    "image": f"tokenizer: image\ncodebook_size: 32\n{IMAGE}{SHORT}",
    "audio": f"tokenizer: audio\nhidden_size: 16\ncodebook_size: 32\ngriffin_lim_iterations: 2\nfft_size: 256\n"
    f"hop_length: 128\nnum_mels: 16\n{SHORT}",
    "text": "tokenizer: text\nvocab_size: 300\nmax_tokens: 12\n",
    "model": "hidden_size: 32\nintermediate_size: 64\nnum_encoder_layers: 1\nnum_decoder_layers: 1\n"
    f"num_attention_heads: 4\npair_by: label\n{SHORT}",
    "judge": SHORT,
}


@pytest.fixture
def words(folder, tmp_path):  # noqa: F811
    for name, text in CONFIGS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    tokenizers = {name: str(tmp_path / f"{name}.yaml") for name in ("image", "audio", "text")}
    recipe = {
        "output_dir": str(tmp_path / "out"),
        "prepare": {"builder": "av_digits", "num_train": 40},
        "tokenizers": tokenizers,
        "model": str(tmp_path / "model.yaml"),
        "judge": str(tmp_path / "judge.yaml"),
        "evaluation": {"num_samples": 4, "num_candidates": 3, "directions": ["audio_to_text", "text_to_image"]},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return [str(tmp_path / "recipe.yaml"), "--data_dir", str(folder)]


def test_a_recipe_leaves_what_it_promises_and_is_not_done_twice(words, tmp_path, capsys):
    main(words)
    out = tmp_path / "out"
    for name in ("data", "tokenizers/image", "tokenizers/audio", "tokenizers/text", "tokens", "model", "judge"):
        assert (out / name).is_dir(), name
    results = json.loads((out / "results.json").read_text())
    assert set(results["directions"]) == {"audio_to_text", "text_to_image"}
    assert (out / "results.html").exists()
    weights = out / "model" / "model" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    capsys.readouterr()
    main(words)
    assert weights.stat().st_mtime_ns == written
    assert capsys.readouterr().out.count("already there") == 5


def test_a_recipe_names_the_file_that_is_missing(words, tmp_path):
    (tmp_path / "model.yaml").unlink()
    with pytest.raises(SystemExit, match="model.yaml: no such configuration file"):
        main(words)


def change(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("image.yaml", "codebook_size", "codebok_size", "--codebok_size"),
        ("model.yaml", "hidden_size", "hiden_size", "--hiden_size"),
        ("model.yaml", "max_steps: 2", "max_steps: two", "max_steps"),
        ("model.yaml", "max_steps: 2", "max_steps: 2\nema_decay: 2", "ema_decay"),
        ("judge.yaml", "max_steps", "max_stps", "--max_stps"),
        ("recipe.yaml", "num_samples", "num_sampels", "--num_sampels"),
    ],
)
def test_an_error_of_any_stage_is_found_before_the_first(words, tmp_path, capsys, name, old, new, message):
    change(tmp_path / name, old, new)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert message in str(stop.value) + capsys.readouterr().err
    assert ("evaluation" if name == "recipe.yaml" else name) in str(stop.value)
    assert not (tmp_path / "out" / "data").exists()


def test_a_missing_package_of_the_judge_is_found_before_the_first_stage(words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    del recipe["judge"]
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "evaluation": {"judge": "grid"}}))
    with pytest.raises(SystemExit, match="evaluation: judge grid: .*pip install pocketsphinx"):
        main(words)
    assert not (tmp_path / "out" / "data").exists()


@pytest.fixture
def quick(monkeypatch):
    """Which command lines the stages of training get, which here leave nothing behind; the last one stops the run."""
    given = []
    for script in (train_tokenizer, run_training, train_judge):
        monkeypatch.setattr(script, "main", given.append)

    def stop(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.tokenize_dataset, "main", lambda words: DatasetDict())
    monkeypatch.setattr("evaluate_model.main", stop)
    return given


def test_comments_and_the_order_of_fields_train_nothing_anew(words, tmp_path, quick):
    for text, trained in (("", 5), ("# A remark.\n", 0), ("pair_by: label\n", 0), ("dropout: 0.1\n", 1)):
        quick.clear()
        model = CONFIGS["model"].replace("pair_by: label\n", "")
        (tmp_path / "model.yaml").write_text(f"{text}{model}" + ("" if "pair_by" in text else "pair_by: label\n"))
        with pytest.raises(KeyboardInterrupt):
            main(words)
        assert len(quick) == trained, text


def test_every_training_is_told_how_precisely_to_compute_by_whatever_it_ends(words, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(stages, "precision", lambda: ["--optim", "sgd"])
    change(tmp_path / "image.yaml", "max_steps: 2", "num_train_epochs: 1")
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert len(quick) == 5 and all(command[-2:] == ["--optim", "sgd"] for command in quick)


def test_another_seed_goes_to_another_folder_unless_told_where(words, tmp_path, quick):
    for extra, place in (([], "out"), (["--seed", "1"], "out-seed1"), (["--seed=2", "--output_dir=here"], "here")):
        quick.clear()
        with pytest.raises(KeyboardInterrupt):
            main([*words, *(word.replace("here", str(tmp_path / "here")) for word in extra)])
        assert any(str(tmp_path / place / "model") in command for command in quick)
    assert json.loads((tmp_path / "out" / "model" / "stage.json").read_text())["finished"]


def test_other_modality_defaults_are_written_into_the_finished_model(words, tmp_path, capsys):
    main(words)
    model = tmp_path / "out" / "model" / "model"
    written = (model / "model.safetensors").stat().st_mtime_ns
    for text, defaults in (
        ("modality_defaults: {text: {temperature: 0.5}}\n", {"text": {"temperature": 0.5}}),
        ("", {}),
    ):
        (tmp_path / "model.yaml").write_text(CONFIGS["model"] + text)
        main(words)
        assert Nano4MModel.from_pretrained(model).modality_defaults == defaults
    (tmp_path / "model.yaml").write_text(CONFIGS["model"] + "modality_defaults: {text: {temprature: 0.5}}\n")
    with pytest.raises(SystemExit, match="temprature"):
        main(words)
    assert (model / "model.safetensors").stat().st_mtime_ns == written


def test_what_a_stage_remembers_is_never_written_in_part(tmp_path, monkeypatch):
    place = tmp_path / "model"
    monkeypatch.setattr(stages.os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage(place, ["a"], print, [])
    monkeypatch.undo()
    assert not any(place.iterdir()), "what is not complete lies elsewhere, and the stage can begin"
    stage(place, ["a"], print, [])
    assert json.loads((place / "stage.json").read_text())["finished"]


@pytest.mark.parametrize("clips", [{}, {"validation": {"text": [""] * 6}}, {"validation": {"audio_valid": [0] * 6}}])
def test_a_demo_that_could_not_be_scored_trains_nothing(tmp_path, monkeypatch, clips):
    clips = DatasetDict({"train": make_rows(), **{split: make_rows(**changes) for split, changes in clips.items()}})
    monkeypatch.setattr(prepare_dataset, "main", lambda words: clips)
    with pytest.raises(SystemExit, match="no clip for validation has pictures, sound and text"):
        demo.main(["--data_dir", "videos", "--output_dir", str(tmp_path)])
    assert not (tmp_path / "tokenizers").exists()


def test_a_stage_keeps_what_it_replaces_and_touches_nothing_of_others(tmp_path):
    place, runs = tmp_path / "model", []

    def run(words):
        runs.append(words)
        (place / "weights").write_text(words[0])

    stage(place, ["a", 1], run, ["first"])
    stage(place, ["a", 1], run, ["elsewhere"])
    assert runs == [["first"]]
    stage(place, ["b", 1], run, ["second"])
    assert (place / "weights").read_text() == "second"
    assert (tmp_path / "model.old" / "weights").read_text() == "first"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights").write_text("precious")
    with pytest.raises(SystemExit, match="was not made by this script"):
        stage(tmp_path / "mine", ["a"], run, ["third"])
    assert (tmp_path / "mine" / "weights").read_text() == "precious"


@pytest.mark.parametrize("words", [["--tokenizer", "audio"], ["--tokenizer=audio"], ["--x", "1", "--tokenizer=audio"]])
def test_a_field_that_decides_on_others_is_found_however_it_is_spelled(words):
    assert field_value("tokenizer", words) == "audio"
    assert field_value("tok", words) is None
