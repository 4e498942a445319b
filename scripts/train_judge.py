"""Train the judge of AVDigits on the real rows of the split "train" and say how well it reads those of validation.

train_judge.py --dataset OUT --output_dir JUDGE
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from arguments import parse_args
from transformers import TrainingArguments, set_seed

from dataset_scripts.av_digits_judges import AVDigitsJudge, AVDigitsJudgeConfig
from dataset_scripts.prepare import load_clips
from tokenizers_4m import MODALITIES
from trainers import fit
from trainers.evaluation.clips import media_of
from trainers.trainer import PartLossTrainer


@dataclass
class JudgeArguments:
    dataset: str = field(metadata={"help": "prepared AVDigits, the OUT of prepare_dataset.py --builder av_digits"})


class JudgeCollator:
    """Rows of clips to what the judge's `forward` takes."""

    def __init__(self, judge: AVDigitsJudge):
        self.judge = judge

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return {
            "images": self.judge.preprocess_images([row["frames"] for row in rows]),
            "sounds": self.judge.preprocess_sounds([row["audio"] for row in rows], rows[0]["sampling_rate"]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }


def parse(argv: list[str] | None = None) -> tuple[JudgeArguments, TrainingArguments]:
    return parse_args(JudgeArguments, TrainingArguments, description=__doc__, argv=argv)


def main(argv: list[str] | None = None) -> None:
    args, training = parse(argv)
    try:
        clips = load_clips(args.dataset)
        if "label" not in clips["train"].column_names:
            raise ValueError(f"{args.dataset}: no column 'label'; the judge is for data of --builder av_digits")
        set_seed(training.seed)
        judge = AVDigitsJudge(AVDigitsJudgeConfig(num_samples=len(clips["train"][0]["audio"])))
        fit(PartLossTrainer, judge, training, clips, JudgeCollator(judge))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    rows = clips["validation"]
    truths = judge.truths(rows)
    accuracy = {}
    for modality in MODALITIES:
        found = judge.read(modality, media_of(rows, modality), rows[0]["sampling_rate"])
        accuracy[modality] = sum(a == b for a, b in zip(found, truths, strict=True)) / len(truths)
    judge.save_pretrained(training.output_dir)
    (Path(training.output_dir) / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    print(f"{training.output_dir}: reads " + ", ".join(f"{m} {100 * a:.1f} %" for m, a in accuracy.items()))


if __name__ == "__main__":
    main()
