"""Data, tokenizers, tokens, nano4M and its scores by one recipe.

run_recipe.py configs/recipes/NAME.yaml [--data_dir DATA] [--output_dir OUT] [--seed SEED]

Finished stages are reused, an interrupted one goes on where it was. Results: OUT/{data,tokenizers,tokens,model,judge},
results.json and its page, results.html. Another seed than 0 goes to a folder of its own, OUT-seed1, unless told where.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import evaluate_model
import prepare_dataset
import train_judge
from arguments import parse_args, words_of
from stages import Training, check, fingerprints, make_model, title

from trainers.evaluation import load_judge

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
    argv = sys.argv[1:] if argv is None else argv
    (args,) = parse_args(RecipeArguments, description=__doc__, argv=argv)
    started = time.perf_counter()
    is_told = any(word.split("=")[0] == "--output_dir" for word in argv)
    out = Path(args.output_dir if is_told or args.seed == 0 else f"{args.output_dir}-seed{args.seed}")
    dataset, seed = ["--dataset", str(out / "data")], ["--seed", str(args.seed)]
    tokenizers = {modality: [config_file(name), *seed] for modality, name in args.tokenizers.items()}
    scores = ["--model", str(out / "model"), *dataset, "--output_dir", str(out), *words_of(args.evaluation or {})]
    judge = None
    if args.judge is not None:
        judge = Training(out / "judge", train_judge, [config_file(args.judge)], dataset)
        judge.check()
        scores += ["--judge", str(judge.folder)]
    check("evaluation", lambda words: check_scores(words, judge is None), scores)

    def prepare():
        words = words_of({"data_dir": args.data_dir, **args.prepare})
        return prepare_dataset.main([*words, "--output_dir", str(out / "data")])

    out.mkdir(parents=True, exist_ok=True)
    clips = make_model(out, prepare, tokenizers, [config_file(args.model), *seed])
    title("5/5 scores on clips not trained on")
    if judge is not None:
        judge.run(fingerprints(clips))
    evaluate_model.main(scores)
    print(f"{out}: done in {(time.perf_counter() - started) / 60:.1f} minutes")


def config_file(name: str) -> str:
    """A configuration file, from where we are or from the project; looked for before anything long begins."""
    path = Path(name) if Path(name).exists() else ROOT / name
    if not path.exists():
        raise SystemExit(f"error: {name}: no such configuration file")
    return str(path)


def check_scores(words: list[str], is_judge_there: bool) -> None:
    """ValueError, or SystemExit of the parser, if evaluate_model.py would not take these words or load its judge."""
    (args,) = parse_args(evaluate_model.EvaluateArguments, argv=words)
    if is_judge_there and args.judge is not None:
        load_judge(args.judge)


if __name__ == "__main__":
    main()
