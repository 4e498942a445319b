"""Publishing: what a training uploads is complete, says what it is, and loads from the Hub on any machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_training
import torch
from datasets import DatasetDict
from huggingface_hub import ModelCard, hf_api
from isolated_process import run_isolated
from loopback_hub import TOKEN, loopback_hub
from PIL import Image
from test_tokenization import make_clips
from test_tokenizers import TEXTS, audio_tokenizer, image_tokenizer, text_tokenizer

from dataset_scripts.tokenization import tokenize_clips
from modeling_nano4m import Nano4MPipeline

ROOT = Path(__file__).parent.parent
TRAINING = "--max_steps 2 --logging_steps 1 --per_device_train_batch_size 4 --learning_rate 0.003"
TRAINING += " --report_to none --use_cpu true --disable_tqdm true"
MODEL = "--hidden_size 32 --intermediate_size 64 --num_encoder_layers 1 --num_decoder_layers 1"
MODEL += " --num_attention_heads 4 --max_inputs 40"


def run_script(name: str, words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return run_python([str(ROOT / "scripts" / name), *words.split()], folder, **environment)


def run_python(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    base = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**base, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hub):
    """What `run_training.py` and `train_tokenizer.py` leave behind when told to push."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizers = {"image": image_tokenizer(), "audio": audio_tokenizer(), "text": text_tokenizer()}
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / "tokenizers" / name)
    clips = DatasetDict({"train": make_clips(10), "validation": make_clips(4)})
    for rows in clips.values():
        rows.info.dataset_name = "made_up"  # as builders do
    clips.save_to_disk(folder / "clips")
    tokenize_clips(clips, tokenizers, folder / "tokens")
    words = f"--dataset tokens --tokenizers tokenizers --output_dir model {MODEL} {TRAINING}"
    words += f" --push_to_hub --hub_model_id someone/tiny --hub_token {TOKEN}"
    done = run_script("run_training.py", words, folder, **{**hub.environment(), "HF_TOKEN": "hf_other"})
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub.url}/someone/tiny/commit/" in done.stdout
    words = "--dataset clips --tokenizer text --max_tokens 16 --output_dir text-tokenizer --push_to_hub"
    done = run_script("train_tokenizer.py", words, folder, **hub.environment())
    assert done.returncode == 0, done.stderr
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def code_on(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def test_everything_arrives_byte_for_byte(folder, hub):
    uploaded = hub.repositories["someone/tiny"]
    made = {name: content for name, content in files_of(folder / "model").items() if not name.startswith("training/")}
    assert uploaded == made
    parts = ("model", "image_tokenizer", "audio_tokenizer", "text_tokenizer")
    assert {f"{part}/model.safetensors" for part in parts} == hub.over_lfs - {"model.safetensors"}
    assert {"README.md", "model_index.json", "scheduler/scheduler_config.json"} <= set(uploaded)
    assert {"model/modeling_nano4m.py", "model/generation_nano4m.py", "audio_tokenizer/quantizer.py"} <= set(uploaded)
    assert not any("checkpoint" in name or TOKEN.encode() in content for name, content in uploaded.items())


def test_what_was_uploaded_loads_as_a_pipeline(folder, hub, tmp_path):
    hub.lay_out("someone/tiny", tmp_path)
    trained, loaded = (Nano4MPipeline.from_pretrained(path) for path in (folder / "model", tmp_path))
    before, after = (pipe(text=TEXTS[0], target="audio", seed=3).token_ids for pipe in (trained, loaded))
    assert torch.equal(before, after)


def test_the_code_on_the_card_works(folder, hub, tmp_path):
    """Downloads from the Hub, and makes the picture that the pipeline makes here: with nano4M installed or without."""
    installed, anywhere = code_on(folder / "model" / "README.md")
    pipe = Nano4MPipeline.from_pretrained(folder / "model")
    frame = pipe(text="a red square moves left", target="image", seed=0).images[0][0]
    picture = tmp_path / "square.png"
    run_isolated(anywhere, tmp_path, **hub.environment())
    assert Image.open(picture).tobytes() == frame.tobytes()
    picture.unlink()
    done = run_python(["-c", installed], tmp_path, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert Image.open(picture).tobytes() == frame.tobytes()


def test_a_tokenizer_is_published_alone(folder, hub, tmp_path):
    assert hub.repositories["user/text-tokenizer"] == files_of(folder / "text-tokenizer")
    card = (folder / "text-tokenizer" / "README.md").read_text()
    (code,) = code_on(folder / "text-tokenizer" / "README.md")
    said = run_isolated(code + "print(media)", tmp_path, **hub.environment())
    assert said.strip() == "a red square moves left"
    assert "| max_tokens | 16 |" in card and "| text_tokenizer |" in card and "## Results" not in card


def test_models_push_their_code_themselves(folder, hub, tmp_path):
    code = "from modeling_nano4m import Nano4MModel; from tokenizers_4m import ImageTokenizer\n"
    code += f'Nano4MModel.from_pretrained("{folder}/model/model").push_to_hub("someone/model")\n'
    code += f'ImageTokenizer.from_pretrained("{folder}/tokenizers/image").push_to_hub("someone/image")\n'
    done = run_python(["-c", code], tmp_path, **hub.environment())
    assert done.returncode == 0, done.stderr
    for name, saved in (("model", folder / "model" / "model"), ("image", folder / "tokenizers" / "image")):
        pushed = hub.repositories[f"someone/{name}"]
        assert {key: pushed[key] for key in files_of(saved) if key != "config.json"} == {
            key: content for key, content in files_of(saved).items() if key != "config.json"
        }


def test_the_card_tells_how_the_model_was_made(folder):
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "any-to-any"
    assert card.data.library_name == "diffusers" and "nano4m" in card.data.tags
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", card.text, re.MULTILINE))
    pipe = Nano4MPipeline.from_pretrained(folder / "model")
    assert rows["model"] == f"{pipe.model.num_parameters():,}"
    assert "| made_up | train | 10 |" in card.text and "| made_up | validation | 4 |" in card.text
    assert rows["learning_rate"] == "0.003" and rows["max_inputs"] == "40" and rows["hidden_size"] == "32"
    assert not {"adam_beta1", "output_dir", "hub_model_id", "push_to_hub", "logging_steps", "max_targets"} & set(rows)
    state = json.loads((folder / "model" / "training" / "trainer_state.json").read_text())
    logged = {name: value for entry in state["log_history"] for name, value in entry.items()}
    names = [name for name in logged if name.startswith(("loss", "eval_loss"))]
    assert {"loss", "eval_loss"} < set(names)
    for name in names:
        column = 1 if name.startswith("eval_") else 0
        assert float(rows[name.removeprefix("eval_")].split(" | ")[column]) == pytest.approx(logged[name], rel=1e-3)


@pytest.mark.parametrize("token, port", [("hf_wrong", None), (TOKEN, 9)])
def test_a_push_that_cannot_work_ends_before_training(folder, hub, monkeypatch, token, port):
    monkeypatch.setattr(hf_api.api, "endpoint", f"http://127.0.0.1:{port}" if port else hub.url)
    monkeypatch.chdir(folder)
    words = f"--dataset tokens --tokenizers tokenizers --output_dir none {MODEL} {TRAINING} --push_to_hub"
    with pytest.raises(SystemExit, match="push_to_hub: cannot create the repository 'none'"):
        run_training.main([*words.split(), "--hub_token", token])
    assert not (folder / "none").exists()
