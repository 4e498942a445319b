"""What train_tokenizer.py promises, for every kind that learns by gradients."""

from pathlib import Path

import pytest
import torch
import train_tokenizer
import yaml
from datasets import DatasetDict
from safetensors.torch import load_file
from test_resuming import history
from test_text_vq_tokenizer import Interrupt
from test_tokenization import make_clips
from transformers import AutoModel

from trainers.tokenizer_evaluation import batches_of

PICTURES = {"block_out_channels": [8, 16, 16], "codebook_size": 32, "layers_per_block": 1}
CODEC = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "downsampling_ratios": [2, 4, 5], "codebook_dim": 4}
KINDS = {
    "image": {**PICTURES, "adversarial_weight": 0.5, "discriminator_layers": 1, "discriminator_channels": 8},
    "image_vqgan": {**PICTURES, "attention_levels": [2], "latent_channels": 8, "norm_num_groups": 4, "code_dim": 8},
    "image_vit": {"patch_size": 4, "hidden_size": 64, "num_encoder_layers": 1, "num_decoder_layers": 1},
    "audio": {"num_mels": 32, "hidden_size": 16, "codebook_size": 16, "num_quantizers": 2},
    "audio_codec": {
        "codec_config": {"model_type": "dac", "n_codebooks": 2, "codebook_size": 16, "sampling_rate": 8000, **CODEC}
    },
    "text_vq": {"max_subwords": 12, "num_latents": 5, "hidden_size": 16, "num_hidden_layers": 1, "codebook_size": 16},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    DatasetDict({"train": make_clips(10), "validation": make_clips(4)}).save_to_disk(folder)
    return folder


def train(kind: str, clips: Path, output: Path) -> list[dict]:
    """The entries of the log of a training in bfloat16 that keeps the best of its evaluated checkpoints."""
    fields = {"tokenizer": kind, **KINDS[kind], "bf16": True, "max_steps": 6, "save_steps": 2, "logging_steps": 2}
    fields |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.01}
    fields |= {"per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True, "report_to": ["tensorboard"]}
    recipe = output.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(fields))
    train_tokenizer.main([str(recipe), "--dataset", str(clips), "--output_dir", str(output)])
    return history(output)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_resumes_and_keeps_its_best_checkpoint(kind, clips, tmp_path, monkeypatch):
    entries = train(kind, clips, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("trainers.trainer.LogWhenSaving", Interrupt)
        with pytest.raises(InterruptedError):
            train(kind, clips, tmp_path / "cut")
    assert train(kind, clips, tmp_path / "cut") == entries
    weights, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)

    losses = {entry["step"]: entry["eval_loss"] for entry in reversed(entries) if "eval_loss" in entry}
    assert sorted(losses) == [2, 4, 6] and all("eval_used_codes" in e for e in entries if "eval_loss" in e)
    best = load_file(tmp_path / "whole" / "training" / f"checkpoint-{min(losses, key=losses.get)}/model.safetensors")
    assert best.keys() == weights.keys() and all(torch.equal(best[key], weights[key]) for key in best)
    assert list((tmp_path / "whole").glob("**/events.out.tfevents*")), "reconstructions to look at"

    tokenizer = AutoModel.from_pretrained(tmp_path / "whole").eval()
    token_ids, valid_mask = tokenizer.encode_media(next(batches_of(make_clips(2), tokenizer.modality, 2)))
    assert token_ids.shape == (2, tokenizer.config.num_tokens) and valid_mask.all()
