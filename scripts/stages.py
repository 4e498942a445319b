"""Stages of a longer run: each is done once, and done again only if what it was made from has changed."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import run_training
import tokenize_dataset
import torch
import train_tokenizer
from arguments import read_yaml
from datasets import DatasetDict
from huggingface_hub.errors import StrictDataclassError

from modeling_nano4m import Nano4MModel


def make_model(
    out: Path, prepare: Callable[[], DatasetDict], tokenizers: dict[str, list[str]], model: list[str]
) -> DatasetDict:
    """Data, tokenizers, tokens and nano4M, in `out/{data,tokenizers,tokens,model}`; four stages of five.

    Args:
        out: folder.
        prepare: leaves the clips in `out/data` and returns them.
        tokenizers: for each modality the configuration file of its tokenizer, and options that override it.
        model: the configuration file of nano4M, and options that override it.

    Returns:
        The clips.

    Raises:
        SystemExit: a configuration is wrong, which is found before the first stage begins.
    """
    dataset, made_by = ["--dataset", str(out / "data")], ["--tokenizers", str(out / "tokenizers")]
    trainings = [
        Training(out / "tokenizers" / modality, train_tokenizer, words, dataset)
        for modality, words in tokenizers.items()
    ]
    last = Training(out / "model", run_training, model, ["--dataset", str(out / "tokens"), *made_by])
    for training in (*trainings, last):
        training.check()

    title("1/5 data")
    clips = prepare()

    title("2/5 tokenizers")
    for training in trainings:
        training.run(fingerprints(clips))

    title("3/5 tokens")
    tokens = tokenize_dataset.main([*dataset, *made_by, "--output_dir", str(out / "tokens")])

    title("4/5 nano4M")
    last.run(fingerprints(tokens), sample_with)
    return clips


@dataclass
class Training:
    """A stage that trains by a configuration file; its result is the same wherever it lies and is trained.

    Args:
        folder: where the result goes.
        script: with `main`, and `parse`, which reads the same command line and does nothing.
        words: the configuration file, and options that override it; the result follows from both.
        places: options that say where its sources are and how to compute.
    """

    folder: Path
    script: ModuleType
    words: list[str]
    places: list[str]

    def __post_init__(self):
        self.command = [*self.words, *self.places, "--output_dir", str(self.folder), *precision()]

    def check(self) -> None:
        """SystemExit if the command line is wrong."""
        check(self.words[0], self.script.parse, self.command)

    def run(self, made_from, adopt: Callable[[Path, dict | None], None] | None = None) -> None:
        """Train, unless it is done; `adopt` gives a finished model other `modality_defaults`, which train nothing."""
        fields = read_yaml(self.words[0])
        defaults = fields.pop("modality_defaults", None)
        stage(self.folder, [fields, self.words[1:], made_from], self.script.main, self.command, defaults, adopt)


def check(what: str, parse: Callable[[list[str]], object], words: list[str]) -> None:
    """Parse a command line before anything long begins; SystemExit naming `what` it is of if it is wrong."""
    try:
        parse(words)
    except SystemExit as error:  # the parser has said why
        raise SystemExit(f"error: {what} cannot be used") from error
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {what}: {error}") from error


def stage(
    folder: Path,
    identity: list,
    run: Callable[[list[str]], object],
    words: list[str],
    settings: dict | None = None,
    adopt: Callable[[Path, dict | None], None] | None = None,
) -> None:
    """Run a stage unless `folder` was finished with the same identity; start over if it was another one.

    What was made with another identity is kept beside it, as `NAME.old`, until the next time.

    Args:
        folder: where the stage leaves its results, and `stage.json`, which remembers.
        identity: all that the results follow from, of what JSON can hold.
        run: the `main` of a script; an interrupted one is called again and may go on where it was.
        words: its command line.
        settings: what a finished result can still be given, of what JSON can hold.
        adopt: gives them to it, called with `folder` and `settings`; not needed without settings.

    Raises:
        SystemExit: `folder` holds something that no stage has made.
    """
    stamp = folder / "stage.json"
    state = json.loads(stamp.read_text()) if stamp.exists() else {}
    identity, settings = json.loads(json.dumps([identity, settings]))
    if state.get("identity") != identity:
        if folder.exists() and any(folder.iterdir()):
            if not stamp.exists():
                raise SystemExit(f"error: {folder} was not made by this script; choose another --output_dir")
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        folder.mkdir(parents=True, exist_ok=True)
        state = {"identity": identity, "finished": False}
        write_at_once(stamp, json.dumps(state))
    if not state["finished"]:
        run(words)
    elif state["settings"] != settings:
        adopt(folder, settings)
    else:
        print(f"{folder}: already there")
        return
    write_at_once(stamp, json.dumps({**state, "finished": True, "settings": settings}))


def write_at_once(path: Path, text: str) -> None:
    """Write a file that is never there in part; what is not complete lies beside its folder."""
    partial = path.parent.with_name(f".{path.parent.name}.{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def sample_with(folder: Path, modality_defaults: dict | None) -> None:
    """Write into a finished pipeline how each modality is generated; SystemExit if it cannot be so."""
    model = Nano4MModel.from_pretrained(folder / "model")
    try:
        model.set_modality_defaults(modality_defaults or {})
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    model.generation_config.save_pretrained(folder / "model")
    print(f"{folder}: already there; its modality_defaults are new")


def fingerprints(data: DatasetDict) -> dict[str, str]:
    """What tells data sets apart, by split."""
    return {split: rows._fingerprint for split, rows in data.items()}


def precision() -> list[str]:
    """bfloat16 where the machine computes in it, which halves the time of training."""
    if torch.cuda.is_available():
        return ["--bf16", "true"]
    return ["--use_cpu", "true", "--bf16", "true"] if torch.cpu._is_avx512_bf16_supported() else []


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)
