"""Two processes do what one does that accumulates as many batches, to 1e-4, and leave what one can load."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from datasets import DatasetDict
from safetensors.torch import load_file
from test_tokenization import make_clips
from train_in_processes import train
from transformers import AutoModel

from modeling_nano4m import Nano4MModel
from tokenizers_4m.quantizer import codebook_usage
from trainers.tokenizer_evaluation import batches_of, clips_of

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "tests" / "train_in_processes.py"
LAUNCHERS = {
    "ddp": ["accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "accelerate" / "cpu_2proc.yaml")],
    "fsdp2": ["torch.distributed.run", "--nproc_per_node", "2"],
}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return folder, train(folder, gradient_accumulation_steps=4)


def launch(kind, *words):
    """Run a program in two processes over gloo; returns what it printed."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    port_word = "--main_process_port" if kind == "ddp" else "--master_port"
    command = [sys.executable, "-m", *LAUNCHERS[kind], port_word, str(port), *map(str, words)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-5000:]
    return result.stdout


def history(folder):
    entries = json.loads((folder / "training" / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "train_loss" not in entry]  # a mean since resuming


def assert_same_curves(one, other):
    assert [sorted(entry) for entry in one] == [sorted(entry) for entry in other]
    for first, second in zip(one, other, strict=True):
        for key in first:
            if "loss" in key or key in ("tokens_seen", "learning_rate", "step"):
                assert first[key] == pytest.approx(second[key], abs=1e-4), (key, first, second)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does(single, tmp_path, kind):
    """DDP as `accelerate launch` starts it. FSDP2 for real, though accelerate starts it on GPUs only: on CPUs a
    trainer of the test's own insists on it. Both with Muon, averaged weights, accumulation and evaluation."""
    words = [PROGRAM, tmp_path] + (["--sharded"] if kind == "fsdp2" else [])
    launch(kind, *words)
    folder, trainer = single
    assert_same_curves(history(folder), history(tmp_path))
    last, expected = tmp_path / "training" / "checkpoint-6", folder / "training" / "checkpoint-6"
    for name in ("model.safetensors", "averaged_weights.safetensors"):
        for key, weights in load_file(expected / name).items():
            torch.testing.assert_close(load_file(last / name)[key], weights, atol=1e-4, rtol=1e-4)
    # Without the library that trained them in parts, the checkpoint and the finished model load as any other.
    loaded = Nano4MModel.from_pretrained(last).state_dict()
    assert all(torch.equal(loaded[key], weights) for key, weights in load_file(last / "model.safetensors").items())
    finished = Nano4MModel.from_pretrained(tmp_path)
    assert finished.generation_config.modality_defaults == {"image": {"top_p": 0.9}}
    for key, weights in trainer.trained_model().state_dict().items():
        torch.testing.assert_close(finished.state_dict()[key], weights, atol=1e-4, rtol=1e-4)
    # Cut off after two steps, the one training goes on in a single process and the other in two.
    for step in (4, 6):
        (tmp_path / "training" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    if kind == "ddp":
        train(tmp_path, gradient_accumulation_steps=4)
    else:
        launch(kind, *words)
    assert_same_curves(history(folder), history(tmp_path))


KINDS = {
    "image": "--block_out_channels 8 16 16 --adversarial_weight 0.8 --perceptual_weight 1 --discriminator_layers 1 "
    "--discriminator_channels 8",
    "audio": "--num_mels 32 --hidden_size 16 --num_quantizers 2",
    "text_vq": "--max_subwords 12 --num_latents 5 --hidden_size 16 --num_hidden_layers 1",
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_and_save_one_tokenizer(kind, tmp_path):
    clips = DatasetDict({"train": make_clips(10), "validation": make_clips(4)})
    clips.save_to_disk(tmp_path / "clips")
    words = f"--tokenizer {kind} --codebook_size 32 {KINDS[kind]} --max_steps 2 --report_to none"
    words += " --per_device_train_batch_size 2 --per_device_eval_batch_size 1 --use_cpu true --disable_tqdm true"
    output = tmp_path / kind
    program = ROOT / "scripts" / "train_tokenizer.py"
    said = launch("ddp", program, *words.split(), "--dataset", tmp_path / "clips", "--output_dir", output)
    assert said.count("ids of 32 per clip") == 1 and (output / "README.md").exists()
    # How much of the codebook is used counts the clips of both.
    tokenizer = AutoModel.from_pretrained(output)
    rows = clips_of(clips, "validation", tokenizer.modality)
    token_ids, _ = tokenizer.encode_media(next(batches_of(rows, tokenizer.modality, len(rows))))
    logged = {name: value for entry in history(output) for name, value in entry.items()}
    usage = {name.removeprefix("eval_"): value for name, value in logged.items()}
    for name, value in codebook_usage(token_ids, 32).items():
        assert usage[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("name", ["single_gpu", "ddp_8gpu", "fsdp2", "cpu_2proc"])
def test_accelerate_reads_the_configuration(name):
    """And the layers that FSDP wraps are those of the model."""
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == {"single_gpu": 1, "cpu_2proc": 2}.get(name, 8)
    if name == "fsdp2":
        wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        assert wrapped == Nano4MModel._no_split_modules and config.fsdp_config["fsdp_version"] == 2
