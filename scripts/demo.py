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
import run_training
import tokenize_dataset
import torch
import train_tokenizer
from arguments import parse_args
from report import write_report
from stages import attention, precision, stage, title

from modeling_nano4m import Nano4MPipeline
from tokenizers_4m import MODALITIES
from trainers.evaluation import ShapesWorldJudge, choose_rows, directions, evaluate_direction, load_clips, table

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

    title("1/6 data")
    source = ["--builder", "shapes_world", "--data_dir", str(out / "videos"), *extra["data"]]
    if not own_world:
        source = ["--builder", "video_clips", "--data_dir", args.data_dir, "--num_frames", "4", "--image_size", "64"]
    clips = prepare_dataset.main([*source, "--output_dir", str(out / "data"), "--num_proc", "2"])
    data = {split: rows._fingerprint for split, rows in clips.items()}

    title("2/6 tokenizers")
    for modality in ("image", "audio", "text"):
        words = [str(CONFIGS / "tokenizers" / f"{modality}_{recipe}.yaml"), "--dataset", str(out / "data")]
        words += ["--output_dir", str(out / "tokenizers" / modality), *extra[modality]]
        if modality != "text":
            words += precision()
        identity = [extra[modality], Path(words[0]).read_text(), data]
        stage(out / "tokenizers" / modality, identity, train_tokenizer.main, words)

    title("3/6 tokens")
    tokenizers = ["--tokenizers", str(out / "tokenizers")]
    tokens = tokenize_dataset.main(["--dataset", str(out / "data"), *tokenizers, "--output_dir", str(out / "tokens")])

    title("4/6 nano4M")
    words = [str(CONFIGS / "nano4m" / f"{recipe}.yaml"), "--dataset", str(out / "tokens")]
    words += [*tokenizers, "--output_dir", str(out / "model"), *extra["model"], *precision(), *attention()]
    ids = {split: rows._fingerprint for split, rows in tokens.items()}
    identity = [extra["model"], Path(words[0]).read_text(), ids]
    stage(out / "model", identity, run_training.main, words)

    title("5/6 scores on clips not trained on")
    finished = out / "stage.json"
    identity = json.loads(json.dumps(identity))
    if finished.exists() and json.loads(finished.read_text()) == identity and (out / "report.html").exists():
        print(table(json.loads((out / "scores.json").read_text())["directions"]))
        print(f"{out / 'report.html'}: already there")
        return
    pipe = Nano4MPipeline.from_pretrained(out / "model").to("cuda" if torch.cuda.is_available() else "cpu")
    split = "validation" if "validation" in clips else "train"
    judge = ShapesWorldJudge() if own_world else None
    held_out = load_clips(pipe, choose_rows(clips[split], 200), judge)
    if not len(held_out.having(MODALITIES)):
        raise SystemExit(f"error: no clip of the {split} split has frames, sound and text, which scoring compares")
    # Retrieval and directions with other numbers of conditions take longer: scripts/evaluate_model.py has them.
    evaluated = {
        direction: evaluate_direction(pipe, held_out, direction, num_candidates=0) for direction in directions((1,))
    }
    minutes = (time.perf_counter() - started) / 60
    scores = {
        direction.name: {name: value for name, value in result.items() if name != "by_clip"}
        for direction, (result, _, _) in evaluated.items()
    }
    summary = {"split": split, "clips": len(held_out), "directions": scores}
    (out / "scores.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(table(scores))

    title("6/6 report")
    write_report(out, pipe, held_out, evaluated, summary, minutes)
    finished.write_text(json.dumps(identity))
    print(f"{out / 'report.html'}  ({minutes:.1f} minutes)")


if __name__ == "__main__":
    main()
