"""Saved folders carry their code: they load, and give the same outputs, where this project is not installed."""

import json
from pathlib import Path

import pytest
import torch
from isolated_process import run_isolated
from test_modeling_nano4m import make_batch, make_model
from test_tokenizers import MAKERS, audio_tokenizer, example, image_tokenizer
from transformers import AutoConfig, AutoModel

import modeling_nano4m
from modeling_nano4m import Nano4MModel
from tokenizers_4m import AudioTokenizer

# Loads every folder, dumps what the models make of their inputs, and saves them once more.
LOAD_ALL = """
import torch
from transformers import AutoConfig, AutoModel

inputs, outputs = torch.load("inputs.pt"), {}
with torch.no_grad():
    names = ("image", "image_vqgan", "image_vit", "audio", "audio_istft", "audio_codec", "text", "text_vq")
    for name in names:
        config = AutoConfig.from_pretrained(f"saved/{name}", trust_remote_code=True)
        tokenizer = AutoModel.from_pretrained(f"saved/{name}", trust_remote_code=True)
        assert config.num_tokens == tokenizer.config.num_tokens
        token_ids = tokenizer.encode(inputs[name])
        outputs[name] = [tokenizer.fingerprint(), token_ids, tokenizer.decode(token_ids)]
        tokenizer.save_pretrained(f"again/{name}")
    model = AutoModel.from_pretrained("saved/model", trust_remote_code=True)
    generated = model.generate({"text": inputs["text_ids"]}, "image", seed=3)
    outputs["model"] = [model(**inputs["model"]).loss, generated]
    model.save_pretrained("again/model")
try:
    AutoModel.from_pretrained("saved/model", trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("code from the folder ran without leave")
torch.save(outputs, "outputs.pt")
"""


@pytest.fixture(scope="module")
def models():
    return {**{name: make() for name, make in MAKERS.items()}, "model": make_model()}


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote_code")
    inputs = {name: example(models[name]) for name in MAKERS}
    inputs |= {"model": make_batch(), "text_ids": torch.randint(3, 30, (2, 8))}
    for name, model in models.items():
        model.save_pretrained(folder / "saved" / name)
    torch.save(inputs, folder / "inputs.pt")
    run_isolated(LOAD_ALL, folder)
    return folder


@torch.no_grad()
def test_outputs_are_equal_where_the_project_is_not_installed(models, folder):
    inputs, outputs = torch.load(folder / "inputs.pt"), torch.load(folder / "outputs.pt")
    for name in MAKERS:
        fingerprint, token_ids, decoded = outputs[name]
        assert fingerprint == models[name].fingerprint()
        assert torch.equal(token_ids, models[name].encode(inputs[name]))
        expected = models[name].decode(token_ids)
        assert decoded == expected if name == "text" else torch.equal(decoded, expected)
    loss, generated = outputs["model"]
    assert torch.equal(loss, models["model"](**inputs["model"]).loss)
    assert torch.equal(generated, models["model"].generate({"text": inputs["text_ids"]}, "image", seed=3))


def code_and_config(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in [*folder.glob("*.py"), folder / "config.json"]}


def test_what_was_loaded_so_saves_its_code_again(models, folder):
    for name in models:
        saved, again = (code_and_config(folder / kind / name) for kind in ("saved", "again"))
        assert saved == again, name
        auto_map = json.loads(saved["config.json"])["auto_map"]
        assert set(auto_map) == {"AutoConfig", "AutoModel"}
        for reference in auto_map.values():
            module, class_name = reference.split(".")
            assert f"class {class_name}(" in saved[f"{module}.py"]


def test_the_model_needs_no_code_of_the_tokenizers(folder):
    package = {path.name for path in Path(modeling_nano4m.__file__).parent.glob("*.py")}
    saved = {path.name for path in (folder / "saved" / "model").glob("*.py")}
    assert saved == package - {"__init__.py", "pipeline_nano4m.py"}


def test_installed_code_comes_before_that_of_the_folder(folder):
    """Loading what was trained here runs no copy, and asks for no leave."""
    assert type(AutoModel.from_pretrained(folder / "again" / "model")) is Nano4MModel
    assert type(AutoModel.from_pretrained(folder / "again" / "audio")) is AudioTokenizer
    assert type(AutoConfig.from_pretrained(folder / "again" / "audio")) is AudioTokenizer.config_class


def test_saving_changes_no_fingerprint(tmp_path):
    model = audio_tokenizer()
    before = model.fingerprint()
    model.save_pretrained(tmp_path)
    assert model.fingerprint() == before


def test_pushing_half_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="push_to_hub"):
        image_tokenizer().save_pretrained(tmp_path, push_to_hub=True)
    assert not any(tmp_path.iterdir())
