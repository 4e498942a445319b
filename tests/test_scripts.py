"""The command lines: the whole way from videos to generated files, and errors that name the field."""

import json
import shutil

import numpy as np
import prepare_dataset
import pytest
import run_training
import soundfile
import tokenize_dataset
import train_tokenizer
from datasets import Dataset, Features, List, Value, config, load_from_disk
from datasets import Image as ImageFeature
from evaluate_model import main as evaluate_model
from generate import main as generate
from PIL import Image

from modeling_nano4m import Nano4MPipeline

TRAINING = "--max_steps 2 --per_device_train_batch_size 4 --report_to none --use_cpu true --disable_tqdm true".split()
IMAGE = "patch_size: 4\nblock_out_channels: [8, 16]\nlayers_per_block: 1\nmid_block_add_attention: false\n"
RECIPES = {
    "image": f"tokenizer: image\ncodebook_size: 32\n{IMAGE}",
    "audio": "tokenizer: audio\nhidden_size: 16\ncodebook_size: 32\ngriffin_lim_iterations: 2\n",
    "text": "tokenizer: text\nvocab_size: 300\nmax_tokens: 24\n",
    "model": "hidden_size: 32\nintermediate_size: 64\nnum_encoder_layers: 1\nnum_decoder_layers: 1\n"
    "num_attention_heads: 4\ntarget_weights: {text: 2.0}\nmuon_learning_rate: 0.001\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything the scripts leave, each stage made by its own command line."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    data = f"--data_dir {folder}/videos --output_dir {folder}/data --num_train 12 --num_validation 4"
    prepare_dataset.main(["--builder", "shapes_world", *data.split()])
    for name in ("image", "audio", "text"):
        words = f"{folder}/{name}.yaml --dataset {folder}/data --output_dir {folder}/tokenizers/{name}".split()
        train_tokenizer.main([*words, *TRAINING])
    tokenizers = ["--tokenizers", f"{folder}/tokenizers"]
    words = ["--dataset", f"{folder}/data", "--output_dir", f"{folder}/tokens"]
    tokenize_dataset.main([*tokenizers, *words])
    words = [f"{folder}/model.yaml", "--dataset", f"{folder}/tokens", "--output_dir", f"{folder}/model"]
    run_training.main([*words, *tokenizers, *TRAINING, "--order", "confidence"])
    return folder


def test_every_stage_leaves_what_the_next_one_loads(folder):
    row = load_from_disk(folder / "data")["train"][0]
    assert len(row["frames"]) == 4 and len(row["audio"]) == 32_000
    assert {"image_ids", "audio_ids", "text_ids"} <= set(load_from_disk(folder / "tokens")["train"].column_names)
    pipe = Nano4MPipeline.from_pretrained(folder / "model")
    assert pipe.scheduler.config.order == "confidence"
    state = json.loads((folder / "model" / "training" / "trainer_state.json").read_text())
    assert any("eval_loss" in entry for entry in state["log_history"])


def test_data_sets_are_mixed_and_streamed(folder, tmp_path, monkeypatch):
    """From Arrow and from Parquet files, the second without text; cut off and resumed."""
    # datasets sleeps for five seconds whenever it has read some files to their ends.
    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    tokens = load_from_disk(folder / "tokens")
    for name, rows in {"a": tokens["train"], "b": tokens["train"].remove_columns("text_ids")}.items():
        (tmp_path / name).mkdir()
        shutil.copy(folder / "tokens" / "tokens.json", tmp_path / name)
        rows.shard(2, 0).to_parquet(tmp_path / name / "train-00000-of-00002.parquet")
        rows.shard(2, 1).to_parquet(tmp_path / name / "train-00001-of-00002.parquet")
        tokens["validation"].to_parquet(tmp_path / name / "validation-00000-of-00001.parquet")
    words = [f"{folder}/model.yaml", "--tokenizers", f"{folder}/tokenizers", *TRAINING, "--dataset_weights", "3", "1"]
    sets = ["--dataset", f"{folder}/tokens", f"{tmp_path}/b"]
    run_training.main([*words, *sets, "--output_dir", f"{tmp_path}/mixed"])
    streams = ["--dataset", f"{tmp_path}/a", f"{tmp_path}/b/train-*.parquet", "--streaming", "true"]
    streams += ["--output_dir", f"{tmp_path}/streamed", "--save_steps", "2"]
    run_training.main([*words, *streams])
    run_training.main([*words, *streams, "--max_steps", "4"])
    for name in ("mixed", "streamed"):
        Nano4MPipeline.from_pretrained(tmp_path / name)
        state = json.loads((tmp_path / name / "training" / "trainer_state.json").read_text())
        assert any("eval_loss_text" in entry or "eval_loss_image" in entry for entry in state["log_history"])
    assert state["global_step"] == 4


def test_rows_that_lack_a_modality_go_all_the_way(folder, tmp_path):
    """Captioned pictures, sounds with a text and pictures with a sound: prepared, tokenized, trained on."""
    source = tmp_path / "in"
    source.mkdir()
    lacks = {}
    for index in range(12):
        lacking = ("audio", "image", "text")[index % 3]
        if lacking != "image":
            Image.new("RGB", (60, 50), (20 * index, 90, 90)).save(source / f"{index}.png")
        if lacking != "audio":
            soundfile.write(source / f"{index}.wav", np.sin(np.arange(32_000) * (index + 1) / 50) / 2, 16_000)
        if lacking != "text":
            (source / f"{index}.txt").write_text(f"the number {index}")
        lacks[f"{index}.{'wav' if lacking == 'image' else 'png'}"] = lacking
    words = f"--builder media_rows --data_dir {source} --output_dir {tmp_path}/data --validation_fraction 0.3"
    sizes = "--num_frames 4 --image_size 48 --clip_seconds 2.0"
    prepare_dataset.main([*words.split(), *sizes.split()])
    for name in ("image", "audio", "text"):
        words = f"{folder}/{name}.yaml --dataset {tmp_path}/data --output_dir {tmp_path}/tokenizers/{name}".split()
        train_tokenizer.main([*words, *TRAINING])
    tokenizers = ["--tokenizers", f"{tmp_path}/tokenizers"]
    tokenize_dataset.main([*tokenizers, "--dataset", f"{tmp_path}/data", "--output_dir", f"{tmp_path}/tokens"])
    tokens = load_from_disk(tmp_path / "tokens")
    assert sum(tokens.num_rows.values()) == 12
    for row in (*tokens["train"], *tokens["validation"]):
        empty = [name for name in ("image", "audio", "text") if not row[f"{name}_ids"]]
        assert empty == [lacks[row["video"]]]
    words = [f"{folder}/model.yaml", "--dataset", f"{tmp_path}/tokens", "--output_dir", f"{tmp_path}/model"]
    run_training.main([*words, *tokenizers, *TRAINING, "--logging_steps", "1"])
    history = json.loads((tmp_path / "model" / "training" / "trainer_state.json").read_text())["log_history"]
    for entry in history:
        if "loss" in entry:  # the mean over those there are, whichever these are
            parts = [value for name, value in entry.items() if name.startswith("loss_")]
            assert entry["loss"] == pytest.approx(np.mean(parts), rel=1e-3)
    assert any("eval_loss" in entry and np.isfinite(entry["eval_loss"]) for entry in history)


def test_clips_of_two_modalities_need_no_third_tokenizer(folder, tmp_path):
    source, tokenizers = tmp_path / "in", ["--tokenizers", f"{tmp_path}/tokenizers"]
    source.mkdir()
    for index in range(8):
        Image.new("RGB", (60, 50), (20 * index, 90, 90)).save(source / f"{index}.png")
        (source / f"{index}.txt").write_text(f"the number {index}")
    words = f"--builder media_rows --data_dir {source} --output_dir {tmp_path}/data --num_frames 4 --image_size 48"
    prepare_dataset.main(words.split())
    words = ["--dataset", f"{tmp_path}/data", "--output_dir", f"{tmp_path}/tokens", *tokenizers]
    with pytest.raises(SystemExit, match="no tokenizer in the folders"):
        tokenize_dataset.main(words)
    shutil.copytree(folder / "tokenizers" / "image", tmp_path / "tokenizers" / "image")
    with pytest.raises(SystemExit, match="the clips have text, and there is no text tokenizer"):
        tokenize_dataset.main(words)
    shutil.copytree(folder / "tokenizers" / "text", tmp_path / "tokenizers" / "text")
    tokens = tokenize_dataset.main(words)
    assert "audio_ids" not in tokens["train"].column_names and all(tokens["train"]["image_ids"])
    words = [f"{folder}/model.yaml", "--dataset", f"{tmp_path}/tokens", "--output_dir", f"{tmp_path}/model"]
    run_training.main([*words, *tokenizers, *TRAINING])
    pipe = Nano4MPipeline.from_pretrained(tmp_path / "model")
    assert pipe.audio_tokenizer is None and list(pipe.model.config.modality_names) == ["image", "text"]
    assert len(pipe(text="the number 3", target="image", num_inference_steps=2).images[0]) == 4
    with pytest.raises(ValueError, match="target must be one of image, text"):
        pipe(text="the number 3", target="audio")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Generates image or text from any of them" in card and "audio" not in card


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: .*file"):
        prepare_dataset.main(["--data_dir", f"{tmp_path}/in", "--output_dir", f"{tmp_path}/file/out"])


def test_an_image_tokenizer_trains_on_clips_of_mixed_frames():
    greys = [[Image.new("RGB", (2, 2), (8 * clip + frame,) * 3) for frame in range(4)] for clip in range(6)]
    clips = Dataset.from_dict(
        {"frames": greys, "text": list("abcdef")}, Features({"frames": List(ImageFeature()), "text": Value("string")})
    )
    mixed = train_tokenizer.mix_frames(clips, seed=0)
    seen = [[frame.getpixel((0, 0))[0] for frame in clip] for clip in mixed["frames"]]
    assert sorted(sum(seen, [])) == [8 * clip + frame for clip in range(6) for frame in range(4)]
    assert all(len(clip) == 4 and len({grey // 8 for grey in clip}) > 1 for clip in seen)


def test_generate_takes_files_and_folders(folder, tmp_path):
    video = next((folder / "videos" / "train").glob("*.mp4"))
    generate(
        f"--model {folder}/model --input {video} --target text --output_dir {tmp_path} --seed 1".split()
        + ["--num_inference_steps", "4"]
    )
    assert (tmp_path / f"{video.stem}.txt").exists()

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copy(video, inputs / "dog.mp4")
    Image.new("RGB", (50, 40), "red").save(inputs / "cat.png")
    (inputs / "cat.txt").write_text("a red square")
    (inputs / "notes.md").write_text("not an input")
    generate(f"--model {folder}/model --input_dir {inputs} --target audio --output_dir {tmp_path / 'out'}".split())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat.wav", "dog.wav"]
    sound, rate = soundfile.read(tmp_path / "out" / "cat.wav")
    assert len(sound) == 32_000 and rate == 16_000

    words = f"--model {folder}/model --target image --output_dir {tmp_path / 'words'} --seed 3 --batch_size 2"
    generate([*words.split(), "--input_text", "a blue ring stays still"])
    assert Image.open(tmp_path / "words" / "text.png").size == (4 * 48, 48)


def test_an_evaluation_reports_and_resumes(folder, tmp_path, capsys):
    words = f"--model {folder}/model --dataset {folder}/data --output_dir {tmp_path} --judge shapes_world".split()
    words += ["--num_samples", "3", "--num_candidates", "3", "--directions", "text_to_image", "nothing_to_text"]
    words += "--sweep --sweep_samples 2 --sweep_guidance 1 --sweep_temperatures 1 --sweep_steps 2".split()
    first = evaluate_model(words)
    assert set(first["directions"]) == {"text_to_image", "nothing_to_text"}
    fields = {"accuracy", "shuffled", "chance", "judge_on_real", "nats", "information"}
    assert fields <= set(first["directions"]["text_to_image"])
    assert "none of its 4 rows shares a source" in first["about"]["known"]
    assert (first["about"]["clips"], first["about"]["sources"]) == (2, 2)
    assert set(first["sweep"]) == {"image", "text"}
    assert first["sweep"]["text"]["clips"] == "2 clips of 2 other sources, of the validation split"
    page = (tmp_path / "results.html").read_text()
    assert "text to image" in page and 'src="http' not in page and "data:image/png" in page

    saved = json.loads((tmp_path / "results.json").read_text())
    saved["directions"]["text_to_image"]["nats"] = 42.0  # what is there already is not measured again
    del saved["directions"]["nothing_to_text"]
    (tmp_path / "results.json").write_text(json.dumps(saved))
    again = evaluate_model(words)
    assert again["directions"]["text_to_image"]["nats"] == 42.0
    assert again["directions"]["nothing_to_text"]["nats"] == first["directions"]["nothing_to_text"]["nats"]
    assert "text_to_image" in capsys.readouterr().out

    # Another question moves the answers aside; former settings' curves are not shown.
    noisy = evaluate_model([*words, "--noise_db", "0", "--sweep_steps", "4"])
    assert noisy["directions"]["text_to_image"]["nats"] != 42.0
    assert json.loads((tmp_path / "results.old.json").read_text())["directions"] == again["directions"]
    page = (tmp_path / "results.html").read_text()
    assert "0.0 dB signal to noise" in page and "bootstrap over 2 sources" in page and str(tmp_path) not in page
    words[words.index("nothing_to_text")] = "text_to_audio"
    less = evaluate_model([*words, "--noise_db", "0", "--sweep_steps", "1"])
    assert set(less["sweep"]) == {"image", "audio"}, "that of texts was made with other steps"


def test_better_settings_become_the_models_own_and_are_not_searched_again(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "model", tmp_path / "model")
    searched = []

    def sweep_target(pipe, clips, target, **options):
        searched.append(target)
        own = {"guidance_scale": 1.0, "temperature": 1.0, "num_inference_steps": 8}
        best = {**own, "temperature": 0.5} if target == "image" else own
        points = [
            {"direction": f"text_to_{target}", "stage": "steps", "quality": 1.0, "seconds_per_sample": 1.0, **own}
        ]
        return {"measure": "accuracy", "own": own, "best": best, "kept": {"top_p": 0.9}, "points": points}

    monkeypatch.setattr("evaluate_model.sweep_target", sweep_target)
    words = (
        f"--model {tmp_path}/model --dataset {folder}/data --output_dir {tmp_path} --num_samples 2 --num_candidates 0"
    )
    words += " --directions text_to_image text_to_audio --sweep --save_best"
    for _ in range(2):
        evaluate_model(words.split())
        assert searched == ["audio", "image"]
        own = Nano4MPipeline.from_pretrained(tmp_path / "model").model.modality_defaults
        assert own["image"]["temperature"] == 0.5 and "audio" not in own, "what is not better is not saved"
    page = (tmp_path / "results.html").read_text()
    assert "which are the model&#39;s own" in page or "which are the model's own" in page
    assert "top p 0.9" in page


def test_settings_are_not_saved_in_a_model_of_the_hub(folder):
    words = f"--model me/mine --dataset {folder}/data --output_dir out --sweep --save_best".split()
    with pytest.raises(SystemExit, match="save_best: there is no folder me/mine on this machine"):
        evaluate_model(words)


def test_a_training_split_stays_known_after_another_preparation(folder, tmp_path):
    data = f"--data_dir {folder}/videos --output_dir {tmp_path}/data --num_train 12 --num_validation 4"
    prepare_dataset.main(["--builder", "shapes_world", *data.split()])
    words = f"--model {folder}/model --dataset {tmp_path}/data --split train --output_dir {tmp_path}/out".split()
    with pytest.raises(SystemExit, match="12 of its 12 rows"):
        evaluate_model(words)


def test_the_same_seed_gives_the_same_file(folder, tmp_path):
    for name in ("a", "b", "c"):
        seed = "7" if name != "c" else "8"
        words = f"--model {folder}/model --target image --output_dir {tmp_path / name} --seed {seed}"
        generate([*words.split(), "--input_text", "a red disc moves left"])
    first, second, third = ((tmp_path / name / "text.png").read_bytes() for name in ("a", "b", "c"))
    assert first == second != third


@pytest.mark.parametrize(
    "main, words, message",
    [
        (prepare_dataset.main, "--data_dir nowhere --output_dir out", "nowhere"),
        (prepare_dataset.main, "--data_dir {folder}/videos --output_dir out --num_frames many", "num_frames"),
        (prepare_dataset.main, "--data_dir {folder}/videos --output_dir out --num_frames 0", "num_frames"),
        (prepare_dataset.main, "--data_dir {folder}/videos --output_dir out --num_train 3", "num_train"),
        (train_tokenizer.main, "nothing.yaml --dataset {folder}/data", "nothing.yaml"),
        (train_tokenizer.main, "{folder}/image.yaml --dataset {folder}/data --code_dims 8", "code_dims"),
        (train_tokenizer.main, "{folder}/image.yaml --dataset {folder}/nowhere", "nowhere"),
        (tokenize_dataset.main, "--dataset {folder}/nowhere --tokenizers {folder}/tokenizers", "nowhere"),
        (tokenize_dataset.main, "--dataset {folder}/data --tokenizers {folder}/nowhere", "nowhere"),
        (run_training.main, "--dataset {folder}/data --tokenizers {folder}/tokenizers", "not a token folder"),
        (run_training.main, "{folder}/model.yaml --dataset {folder}/tokens --hidden_size 33", "hidden_size"),
        (
            run_training.main,
            "{folder}/model.yaml --dataset {folder}/tokens {folder}/data",
            "data is not a token",
        ),
        (run_training.main, "--dataset {folder}/tokens --dataset_weights 1 2", "dataset_weights"),
        (run_training.main, "--dataset {folder}/tokens --streaming true", "max_steps"),
        (run_training.main, "--dataset {folder}/tokens --streaming true --max_steps 2", "no Parquet files"),
        (run_training.main, "--dataset {folder}/tokens --ema_decay 1.5", "ema_decay"),
        (
            run_training.main,
            "{folder}/model.yaml --dataset {folder}/tokens --output_dir {folder}/model --max_inputs 9 "
            + " ".join(TRAINING),
            "max_inputs",
        ),
        (run_training.main, "--dataset {folder}/tokens --max_tokens 100 --warmup_steps 5", "warmup_steps"),
        (run_training.main, "{folder}/model.yaml --dataset {folder}/tokens --order up", "order must be"),
        (run_training.main, "{folder}/model.yaml --dataset {folder}/tokens --schedule up", "schedule must be"),
        (
            run_training.main,
            "{folder}/model.yaml --dataset {folder}/tokens --modality_defaults 5",
            "modality_defaults",
        ),
        (
            run_training.main,
            "{folder}/model.yaml --dataset {folder}/tokens --attn_implementation flash_attention_2",
            "FlashAttention2",
        ),
        (
            run_training.main,
            "{folder}/model.yaml --dataset {folder}/tokens --label_smoothing_factor 0.1",
            "label_smoo",
        ),
        (evaluate_model, "--model {folder}/model --dataset {folder}/data --split train", "allow_training_split"),
        (evaluate_model, "--model {folder}/model --dataset {folder}/data --split test", "only train, validation"),
        (evaluate_model, "--model {folder}/model --dataset {folder}/data --directions text_to_text", "text_to_text"),
        (evaluate_model, "--model {folder}/model --dataset {folder}/data --judge nobody", "nobody"),
        (evaluate_model, "--model {folder}/model --dataset {folder}/data --num_samples 0", "num_samples"),
        (evaluate_model, "--model {folder}/model --dataset {folder}/nowhere", "nowhere"),
        (generate, "--model {folder}/model --input nothing.png --target text", "nothing.png"),
        (generate, "--model {folder}/model --input_text x --target smell", "smell"),
        (generate, "--model {folder}/nowhere --input_text x --target text", "nowhere"),
    ],
)
def test_errors_name_the_file_or_field(folder, tmp_path, capsys, main, words, message):
    words = words.format(folder=folder).split()
    if main is run_training.main and "--tokenizers" not in words:
        words += ["--tokenizers", f"{folder}/tokenizers"]
    if "--output_dir" not in words:
        words += ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code not in (0, None)
    said = str(stop.value.code) + capsys.readouterr().err
    assert message in said and "Traceback" not in said
