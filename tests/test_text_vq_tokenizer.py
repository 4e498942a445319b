"""The trained text tokenizer: exact on texts it never saw, deterministic on hostile ones, resumed and loaded."""

import itertools
import json
import random

import pytest
import torch
import train_tokenizer
from datasets import Dataset, DatasetDict
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from test_pipeline import make_pipeline
from test_text_tokenizers import HOSTILE
from test_tokenizers import TEXTS, text_vq_tokenizer
from transformers import TrainerCallback

from modeling_nano4m import Nano4MModel, Nano4MPipeline
from tokenizers_4m import TextVQTokenizer, TextVQTokenizerConfig

SLOTS = ("bin lay place set", "blue green red white", "at by in with", "one two three four", "again now please soon")
SENTENCES = [" ".join(words) for words in itertools.product(*(slot.split() for slot in SLOTS))]
random.Random(0).shuffle(SENTENCES)
TRAIN, VALIDATION = SENTENCES[:200], SENTENCES[200:400]


@pytest.fixture(scope="module")
def trained() -> TextVQTokenizer:
    torch.manual_seed(0)
    config = TextVQTokenizerConfig(
        subword_vocab_size=400,
        max_subwords=8,
        num_latents=5,
        hidden_size=32,
        num_hidden_layers=1,
        codebook_size=16,
        quantizer_warmup_steps=60,
    )
    model = TextVQTokenizer.with_vocabulary(TRAIN, config).train()
    subword_ids = model.preprocess(TRAIN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 200)
        optimizer.zero_grad()
        model(subword_ids[torch.randint(len(TRAIN), (48,))]).loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def test_sentences_never_seen_come_back(trained):
    token_ids, valid_mask = trained.encode_media(VALIDATION)
    assert token_ids.shape == (200, 5) and valid_mask.all() and len(token_ids.unique()) > 12
    again = trained.postprocess(trained.decode(token_ids))
    assert sum(a == b for a, b in zip(again, VALIDATION, strict=True)) >= 190
    output = trained(trained.preprocess(VALIDATION))
    assert output.metrics["exact_match"].tolist() == [a == b for a, b in zip(again, VALIDATION, strict=True)]
    assert trained.postprocess(trained.decode(trained.encode_media(["", "bin"])[0])) == ["", "bin"]


@torch.no_grad()
def test_decoding_the_ids_is_the_reconstruction_exactly(trained):
    for model in (trained, text_vq_tokenizer()):
        subword_ids = model.preprocess([*TEXTS, *VALIDATION[:9], *HOSTILE.values(), "a\ud800b", "bin " * 5000])
        output = model(subword_ids)
        assert torch.equal(model.encode(subword_ids), output.token_ids)
        assert torch.equal(model.decode(output.token_ids), output.reconstruction)
        assert torch.equal(model.decode(output.token_ids), model.decode(output.token_ids))
        # What comes back is put as a text is: it could be encoded again.
        again = output.reconstruction
        ends = (again == 2).long().argmax(-1)
        assert (again[:, 0] == 1).all() and ((again == 2).sum(-1) == 1).all()
        assert torch.equal(again == 0, torch.arange(again.shape[1]) > ends[:, None])


@torch.no_grad()
def test_what_is_beyond_the_budget_does_not_matter(trained):
    sentence = "bin blue at one two three four now"
    assert torch.equal(trained.preprocess([sentence + " soon"]), trained.preprocess([sentence]))
    with pytest.raises(ValueError, match="subword_ids must have shape"):
        trained.encode(torch.zeros(1, 9, dtype=torch.int64))


@torch.no_grad()
def test_company_does_not_matter(trained):
    """Neither other texts of the batch, nor how much padding they need."""
    texts = ["", "bin", *VALIDATION[:6]]
    together = trained.encode(trained.preprocess(texts))
    assert torch.equal(together, torch.cat([trained.encode(trained.preprocess([text])) for text in texts]))


def test_texts_cut_in_training_are_well_formed():
    model = text_vq_tokenizer(cut_probability=0.5).train()
    subword_ids = model.preprocess(["", *TEXTS])
    seen = set()
    for _ in range(50):
        cut = model._cut(subword_ids)
        ends = (cut == 2).long().argmax(-1, keepdim=True)
        places = torch.arange(cut.shape[1])
        assert torch.equal(cut.masked_fill(places == ends, 0), subword_ids.masked_fill(places >= ends, 0))
        assert ((cut == 2).sum(-1) == 1).all()
        seen |= set(model.postprocess(cut))
    assert set(model.postprocess(subword_ids)) < seen and len(seen) > 15
    assert model(model.preprocess([""])).loss.isfinite()
    still = text_vq_tokenizer(cut_probability=0.0).train()
    assert torch.equal(still._cut(subword_ids), subword_ids)


def test_gradients_reach_every_weight():
    model = text_vq_tokenizer().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):  # blocks start as the identity, and see gradients inside from the second step on
        optimizer.zero_grad()
        model(model.preprocess(TEXTS)).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_bad_settings_are_named():
    for field, value in (
        ("max_subwords", 2),
        ("num_latents", 0),
        ("num_attention_heads", 3),
        ("cut_probability", 2.0),
    ):
        with pytest.raises(StrictDataclassError, match=field):
            TextVQTokenizerConfig(**{field: value})
    with pytest.raises(ValueError, match="no text"):
        TextVQTokenizer.with_vocabulary(["", " "], TextVQTokenizerConfig())
    with pytest.raises(ValueError, match="too small"):
        TextVQTokenizer.with_vocabulary(TEXTS, TextVQTokenizerConfig(algorithm="wordpiece", subword_vocab_size=300))


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise InterruptedError


def test_a_training_resumes_and_its_checkpoints_load(tmp_path, monkeypatch):
    splits = {"train": [*TRAIN[:40], ""], "validation": VALIDATION[:10]}
    DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in splits.items()}).save_to_disk(
        tmp_path / "clips"
    )

    def train(name):
        words = f"--tokenizer text_vq --dataset {tmp_path}/clips --output_dir {tmp_path}/{name} --max_subwords 12 "
        words += "--subword_vocab_size 400 --hidden_size 16 --num_hidden_layers 1 --codebook_size 16 --num_latents 5 "
        words += "--max_steps 8 --save_steps 3 --per_device_train_batch_size 8 --quantizer_warmup_steps 2 "
        words += "--report_to none --use_cpu true --disable_tqdm true --eval_strategy steps --eval_steps 4"
        train_tokenizer.main(words.split())
        return load_file(tmp_path / name / "model.safetensors")

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr("trainers.trainer.LogWhenSaving", Interrupt)
        with pytest.raises(InterruptedError):
            train("cut")
    checkpoint = tmp_path / "cut" / "training" / "checkpoint-3"
    loaded = TextVQTokenizer.from_pretrained(checkpoint)
    assert loaded.postprocess(loaded.preprocess(VALIDATION)) == VALIDATION
    resumed = train("cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    first, second = (TextVQTokenizer.from_pretrained(tmp_path / name).fingerprint() for name in ("whole", "cut"))
    assert first == second != loaded.fingerprint()
    history = json.loads((tmp_path / "cut" / "training" / "trainer_state.json").read_text())["log_history"]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [4, 8, 8]
    for entry in evaluated:
        assert {"eval_used_codes", "eval_perplexity", "eval_exact_match", "eval_loss_cross_entropy"} < set(entry)


def test_a_pipeline_takes_it_for_its_text(tmp_path):
    pipe = make_pipeline()
    tokenizer = text_vq_tokenizer()
    config = pipe.model.config
    modalities = {**config.modalities, "text": {**tokenizer.describe(), "order": "any"}}
    model = Nano4MModel(type(config)(**{**config.to_dict(), "modalities": modalities})).eval()
    pipe.register_modules(model=model, text_tokenizer=tokenizer)
    output = pipe(image=Image.new("RGB", (16, 16), "red"), target="text", seed=0)
    assert isinstance(output.texts[0], str) and output.token_ids.shape == (1, 6)
    pipe.save_pretrained(tmp_path)
    again = Nano4MPipeline.from_pretrained(tmp_path)
    assert again.text_tokenizer.fingerprint() == tokenizer.fingerprint()
    sounds = [model(text=TEXTS[0], target="audio", seed=0).audios[0] for model in (pipe, again)]
    assert (sounds[0] == sounds[1]).all()
