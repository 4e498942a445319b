"""Measure a tokenizer: what it keeps, how it uses its codebook, how stable and how learnable its ids are, its speed.

evaluate_tokenizer.py --tokenizer TOKENIZERS/image --dataset OUT [--judge shapes_world|grid|FOLDER|FILE.py:Name]
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from arguments import parse_args
from transformers import AutoModel

import tokenizers_4m  # noqa: F401  registers the tokenizers
from dataset_scripts.prepare import load_clips
from trainers.evaluation import load_judge
from trainers.tokenizer_evaluation import evaluate_tokenizer, json_figures, load_recogniser, results_table

RESULTS_FILE = "results.json"


@dataclass
class EvaluationArguments:
    tokenizer: str = field(metadata={"help": "folder of one tokenizer"})
    dataset: str = field(metadata={"help": "prepared clips, the OUT of prepare_dataset.py"})
    split: str = field(default="validation", metadata={"help": "whose clips are measured"})
    output_dir: str | None = field(
        default=None, metadata={"help": "where results.json goes; the tokenizer's folder if not given"}
    )
    num_clips: int | None = field(default=None, metadata={"help": "measure at most so many clips"})
    batch_size: int = field(default=32, metadata={"help": "clips per forward pass"})
    learnability_steps: int = field(
        default=300, metadata={"help": "training steps of the small nano4M that learns the tokens; 0: leave it out"}
    )
    recogniser: str | None = field(
        default=None, metadata={"help": "reads words from sound: grid, or FILE.py:Name for a class with transcribe"}
    )
    judge: str | None = field(default=None, metadata={"help": "reads clips before and after: as of evaluate_model.py"})
    feature_network: str | None = field(
        default=None, metadata={"help": "TorchScript file for rFID; fixed random convolutions if not given"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})


def main(argv: list[str] | None = None) -> dict:
    (args,) = parse_args(EvaluationArguments, description=__doc__, argv=argv)
    folder = Path(args.tokenizer)
    try:
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"{folder}: no tokenizer there; make it with train_tokenizer.py")
        check_device(args.device)
        results = evaluate_tokenizer(
            AutoModel.from_pretrained(folder).eval().to(args.device),
            load_clips(args.dataset),
            args.split,
            num_clips=args.num_clips,
            batch_size=args.batch_size,
            learnability_steps=args.learnability_steps,
            recogniser=load_recogniser(args.recogniser) if args.recogniser else None,
            feature_network=args.feature_network,
            judge=load_judge(args.judge) if args.judge else None,
        )
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    file = Path(args.output_dir or folder) / RESULTS_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(json_figures(results), indent=2) + "\n", encoding="utf-8")
    print(results_table({folder.name: results}))
    for name, reason in results["skipped"].items():
        print(f"{name} was skipped: {reason}")
    print(f"all figures: {file}")
    return results


def check_device(name: str) -> None:
    """Raise ValueError unless there is such a device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the second if torch was built without it
        raise ValueError(f"device={name!r}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    main()
