"""Data, tokenizers, tokens, nano4M and its scores by one recipe.

run_recipe.py configs/recipes/NAME.yaml [--data_dir DATA] [--output_dir OUT]

Finished stages are reused, an interrupted one goes on where it was. Results: OUT/{data,tokenizers,tokens,model,judge},
results.json and its page, results.html.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import evaluate_model
import prepare_dataset
import run_training
import tokenize_dataset
import train_judge
import train_tokenizer
from arguments import parse_args
from stages import attention, precision, stage, title

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class RecipeArguments:
    output_dir: str = field(metadata={"help": "where everything goes"})
    prepare: json.loads = field(metadata={"help": "options of prepare_dataset.py, JSON"})
    tokenizers: json.loads = field(metadata={"help": "configuration file of the tokenizer of each modality, JSON"})
    model: str = field(metadata={"help": "configuration file of nano4M"})
    data_dir: str | None = field(default=None, metadata={"help": "where the raw data are"})
    judge: str | None = field(default=None, metadata={"help": "configuration file of the judge, to train one"})
    evaluation: json.loads = field(default=None, metadata={"help": "options of evaluate_model.py, JSON"})
    seed: int = field(default=0, metadata={"help": "of tokenizers and model; the judge stays the same"})


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_args(RecipeArguments, description=__doc__, argv=argv)
    started = time.perf_counter()
    tokenizers = {modality: config_file(name) for modality, name in args.tokenizers.items()}
    model, judge = config_file(args.model), None if args.judge is None else config_file(args.judge)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)

    title("1/5 data")
    words = options({"data_dir": args.data_dir, **args.prepare})
    clips = prepare_dataset.main([*words, "--output_dir", str(out / "data")])
    data = {split: rows._fingerprint for split, rows in clips.items()}
    seed = ["--seed", str(args.seed)]

    title("2/5 tokenizers")
    for modality, config in tokenizers.items():
        folder = out / "tokenizers" / modality
        train(folder, config, train_tokenizer.main, ["--dataset", str(out / "data"), *seed], [data, args.seed])

    title("3/5 tokens")
    made_by = ["--tokenizers", str(out / "tokenizers")]
    tokens = tokenize_dataset.main(["--dataset", str(out / "data"), *made_by, "--output_dir", str(out / "tokens")])

    title("4/5 nano4M")
    ids = {split: rows._fingerprint for split, rows in tokens.items()}
    words = ["--dataset", str(out / "tokens"), *made_by, *attention(), *seed]
    train(out / "model", model, run_training.main, words, [ids, args.seed])

    title("5/5 scores on clips not trained on")
    words = []
    if judge is not None:
        train(out / "judge", judge, train_judge.main, ["--dataset", str(out / "data")], [data])
        words = ["--judge", str(out / "judge")]
    words += ["--model", str(out / "model"), "--dataset", str(out / "data"), "--output_dir", str(out)]
    evaluate_model.main([*words, *options(args.evaluation or {})])
    print(f"{out}: done in {(time.perf_counter() - started) / 60:.1f} minutes")


def config_file(name: str) -> Path:
    """A configuration file, from where we are or from the project; looked for before anything long begins."""
    path = Path(name) if Path(name).exists() else ROOT / name
    if not path.exists():
        raise SystemExit(f"error: {name}: no such configuration file")
    return path


def train(folder: Path, config: Path, run, words: list[str], made_from: list) -> None:
    """A stage that trains by a configuration file; its result is the same wherever it lies and is trained."""
    text = config.read_text(encoding="utf-8")
    words = [str(config), *words, "--output_dir", str(folder)]
    if "max_steps" in text:  # else nothing is trained by gradients
        words += precision()
    stage(folder, [text, *made_from], run, words)


def options(fields: dict) -> list[str]:
    """`{"name": value}` as `--name value`, leaving out what is None."""
    words = []
    for name, value in fields.items():
        if value is not None:
            items = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in items)]
    return words


if __name__ == "__main__":
    main()
