"""A recipe goes from raw digits to scores in one command, and does nothing twice."""

import json

import pytest
from arguments import field_value
from run_recipe import main
from stages import stage
from test_av_digits import folder  # noqa: F401  (a fixture)
from test_scripts import IMAGE

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
