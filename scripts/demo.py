"""The whole of nano4M in one run: data, tokenizers, tokens, model, scores, report.

demo.py [--data_dir VIDEOS] [--fast]

Without --data_dir it makes its own world of moving shapes. Finished stages are reused, an interrupted training
goes on from its last checkpoint. Results: outputs/demo/{data,tokenizers,tokens,model}, report.html, scores.json.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import prepare_dataset
import torch
from arguments import parse_args
from datasets import DatasetDict
from report import write_report
from stages import make_model, title, write_at_once

from dataset_scripts.tokenization import rows_with
from modeling_nano4m import Nano4MPipeline
from tokenizers_4m import MODALITIES
from trainers.evaluation import ShapesWorldJudge, choose_rows, directions, evaluate_direction, load_clips, table

NUM_SCORED = 200  # clips
ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
# What --fast makes smaller: enough to see every stage work, not enough to learn much.
FAST = {
    "data": ["--num_train", "200", "--num_validation", "24"],
    "image": ["--max_steps", "40", "--quantizer_warmup_steps", "10"],
    "audio": ["--max_steps", "40", "--quantizer_warmup_steps", "10"],
    "text": [],
    "model": ["--max_steps", "60", "--warmup_steps", "10"],
}


@dataclass
class DemoArguments:
    data_dir: str | None = field(default=None, metadata={"help": "folder of videos; the made-up world if not given"})
    output_dir: str = field(default="outputs/demo", metadata={"help": "where everything goes"})
    fast: bool = field(default=False, metadata={"help": "a few minutes' run that shows all stages but learns little"})


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_args(DemoArguments, description=__doc__, argv=argv)
    started = time.perf_counter()
    out = Path(args.output_dir)
    if args.fast and args.output_dir == "outputs/demo":
        out = Path("outputs/demo-fast")
    out.mkdir(parents=True, exist_ok=True)
    extra = FAST if args.fast else {name: [] for name in FAST}
    own_world = args.data_dir is None
    recipe = "shapes" if own_world else "video"

    source = ["--builder", "shapes_world", "--data_dir", str(out / "videos"), *extra["data"]]
    if not own_world:
        source = ["--builder", "video_clips", "--data_dir", args.data_dir, "--num_frames", "4", "--image_size", "64"]
    source += ["--output_dir", str(out / "data"), "--num_proc", "2"]
    tokenizers = {
        modality: [str(CONFIGS / "tokenizers" / f"{modality}_{recipe}.yaml"), *extra[modality]]
        for modality in ("image", "audio", "text")
    }
    model = [str(CONFIGS / "nano4m" / f"{recipe}.yaml"), *extra["model"]]
    clips = make_model(out, lambda: prepare(source), tokenizers, model)

    title("5/5 scores on clips not trained on")
    finished, made_from = out / "stage.json", (out / "model" / "stage.json").read_text()
    if finished.exists() and finished.read_text() == made_from and (out / "report.html").exists():
        print(table(json.loads((out / "scores.json").read_text())["directions"]))
        print(f"{out / 'report.html'}: already there")
        return
    pipe = Nano4MPipeline.from_pretrained(out / "model").to("cuda" if torch.cuda.is_available() else "cpu")
    judge = ShapesWorldJudge() if own_world else None
    held_out = load_clips(pipe, choose_rows(clips["validation"], NUM_SCORED), judge)
    # Retrieval and directions with other numbers of conditions take longer: scripts/evaluate_model.py has them.
    evaluated = {
        direction: evaluate_direction(pipe, held_out, direction, num_candidates=0) for direction in directions((1,))
    }
    minutes = (time.perf_counter() - started) / 60
    scores = {
        direction.name: {name: value for name, value in result.items() if name != "by_clip"}
        for direction, (result, _, _) in evaluated.items()
    }
    summary = {"split": "validation", "clips": len(held_out), "directions": scores}
    (out / "scores.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(table(scores))

    write_report(out, pipe, held_out, evaluated, summary, minutes)
    write_at_once(finished, made_from)
    print(f"{out / 'report.html'}  ({minutes:.1f} minutes)")


def prepare(words: list[str]) -> DatasetDict:
    """The clips; SystemExit if they cannot be scored in the end, so that no training is in vain."""
    clips = prepare_dataset.main(words)
    if "validation" not in clips or not len(rows_with(choose_rows(clips["validation"], NUM_SCORED), MODALITIES)):
        raise SystemExit(
            "error: no clip for validation has pictures, sound and text, which the scores need; add videos, or leave "
            "out the scores and run the scripts of the stages one by one"
        )
    return clips


if __name__ == "__main__":
    main()
