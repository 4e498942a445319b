"""Measure a model in every direction on clips it was not trained on.

evaluate_model.py --model MODEL --dataset OUT --output_dir RESULTS [--judge shapes_world|grid|FOLDER|FILE.py:Name]

Writes RESULTS/results.json after every direction, so that an interrupted run goes on where it was, and results.html.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from arguments import parse_args
from tqdm.auto import tqdm

from dataset_scripts.prepare import load_clips as load_prepared
from modeling_nano4m import Nano4MPipeline
from trainers.evaluation import (
    Results,
    check_split,
    choose_rows,
    directions,
    divide_rows,
    evaluate_direction,
    fingerprint,
    gain_lines,
    gains,
    groups_of,
    judge_identity,
    load_clips,
    load_judge,
    local_folder,
    sample_rows,
    save_best,
    sweep_target,
    table,
    write_page,
)


@dataclass
class EvaluateArguments:
    model: str = field(metadata={"help": "pipeline folder, the MODEL of run_training.py, or USER/NAME of the Hub"})
    dataset: str = field(metadata={"help": "clips, the OUT of prepare_dataset.py"})
    output_dir: str = field(metadata={"help": "where results.json and results.html go"})
    judge: str | None = field(
        default=None,
        metadata={"help": "shapes_world, grid, folder or USER/NAME of an AVDigitsJudge, or FILE.py:Name for your own"},
    )
    split: str = field(default="validation", metadata={"help": "of the clips"})
    allow_training_split: bool = field(default=False, metadata={"help": "also if the model was trained on it"})
    directions: list[str] = field(
        default_factory=list,
        metadata={"help": "such as audio_to_text, image_and_audio_to_text, nothing_to_image; all by default"},
    )
    num_samples: int = field(default=200, metadata={"help": "clips to generate for, drawn at random"})
    num_candidates: int = field(default=200, metadata={"help": "clips among which to retrieve; 0 leaves it out"})
    batch_size: int = field(default=64, metadata={"help": "samples at once"})
    seed: int = field(default=0, metadata={"help": "of the choice of clips, generation, shuffling and bootstrap"})
    noise_db: float | None = field(
        default=None, metadata={"help": "white noise on sounds that are conditions: signal to noise, dB"}
    )
    sweep: bool = field(
        default=False,
        metadata={
            "help": "first try guidance, temperatures and steps on clips that share no source with those reported"
        },
    )
    sweep_samples: int = field(default=100, metadata={"help": "clips to try them on"})
    sweep_guidance: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 3.0])
    sweep_temperatures: list[float] = field(default_factory=lambda: [0.5, 0.7, 0.85, 1.0])
    sweep_steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    save_best: bool = field(
        default=False, metadata={"help": "with --sweep: make the best settings the model's own, and report with them"}
    )


def main(argv: list[str] | None = None) -> dict:
    (args,) = parse_args(EvaluateArguments, description=__doc__, argv=argv)
    try:
        return evaluate(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def evaluate(args: EvaluateArguments) -> dict:
    for name in ("num_samples", "batch_size", "sweep_samples"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}: must be at least 1")
    if args.save_best and not args.sweep:
        raise ValueError("save_best: there is nothing to save without --sweep")
    if args.save_best and not Path(args.model).is_dir():
        raise ValueError(f"save_best: there is no folder {args.model} on this machine to save settings in")
    data = load_prepared(args.dataset)
    model, judge_name = local_folder(args.model), args.judge and local_folder(args.judge)
    known = check_split(model, data, args.split, args.allow_training_split)
    judge = load_judge(judge_name) if judge_name else None
    pipe = Nano4MPipeline.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
    known_directions = {direction.name: direction for direction in directions(modalities=pipe.tokenizers)}
    if lacking := [name for name in args.directions if name not in known_directions]:
        raise ValueError(f"directions: the model has no {', '.join(lacking)}, only {', '.join(known_directions)}")
    chosen = [d for name, d in known_directions.items() if name in args.directions or not args.directions]
    if args.sweep:
        rows, tuning = divide_rows(data[args.split], args.num_samples, args.sweep_samples, args.seed)
    else:
        rows, tuning = choose_rows(data[args.split], args.num_samples, args.seed), None
    num_sources = len(set(groups_of(rows["video"])))
    print(f"{len(rows)} clips of {num_sources} sources, of the {args.split} split; {known}")

    out = Path(args.output_dir)
    identity = {
        "model": fingerprint(model),
        "data": rows._fingerprint,
        "judge": judge_name and judge_identity(judge_name),
        **{name: getattr(args, name) for name in ("split", "num_candidates", "noise_db", "seed")},
    }
    results = Results(out / "results.json", identity)
    # Wherever it lies, a judge is told by its name.
    about = {"clips": len(rows), "sources": num_sources, "known": known, "judge": args.judge and Path(args.judge).name}
    results.values["about"] = about
    load = partial(load_clips, pipe, judge=judge, batch_size=args.batch_size, noise_db=args.noise_db, seed=args.seed)
    if args.sweep:
        sweep(args, pipe, tuning, load(tuning), results, {direction.target for direction in chosen})
    clips = load(rows)
    samples = out / "samples"
    for direction in tqdm(chosen, desc="directions"):
        settings = own_settings(pipe, direction.target)
        if results.get("directions", direction.name, settings):
            continue
        result, numbers, media = evaluate_direction(
            pipe, clips, direction, args.batch_size, args.seed, args.num_candidates
        )
        if media:
            samples.mkdir(parents=True, exist_ok=True)
            shown = sample_rows(clips, direction, numbers, media, pipe.sampling_rate)
            (samples / f"{direction.name}.json").write_text(json.dumps(shown), encoding="utf-8")
        results.put("directions", direction.name, settings, result)
    # Of former runs only what was made with today's settings is shown.
    results.keep("directions", {name: own_settings(pipe, d.target) for name, d in known_directions.items()})
    results.values["gains"] = gains(results.values["directions"], clips.groups, args.seed)
    results.save()
    print(table(results.values["directions"]))
    print(gain_lines(results.values["gains"]), end="\n" if results.values["gains"] else "")
    page = write_page(out / "results.html", results.values, samples, model)
    print(f"{results.path}, {page}")
    return results.values


def own_settings(pipe: Nano4MPipeline, target: str) -> dict:
    """How the model itself generates a modality."""
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return {"scheduler": scheduler, **pipe.model.modality_defaults.get(target, {})}


def sweep(args: EvaluateArguments, pipe: Nano4MPipeline, rows, clips, results: Results, targets: set[str]) -> None:
    """The best settings of those targets that clips have; made the model's own if asked to and better than those."""
    phrase = f"{len(rows)} clips of {len(set(clips.groups))} other sources, of the {args.split} split"
    print(f"settings are chosen by {phrase}")
    grids = {
        "guidance_scales": args.sweep_guidance,
        "temperatures": args.sweep_temperatures,
        "steps": args.sweep_steps,
    }

    def made_with(target: str) -> dict:
        return {**grids, "clips": rows._fingerprint, "own": own_settings(pipe, target)}

    results.keep("sweep", {name: made_with(name) for name in pipe.tokenizers})
    for target in sorted(targets):
        if not any(len(clips.having((target, other))) for other in pipe.tokenizers if other != target):
            print(f"{target}: no clip has it and another modality, its settings stay as they are")
            continue
        part = results.get("sweep", target, made_with(target))
        if part is None:
            part = sweep_target(pipe, clips, target, **grids, batch_size=args.batch_size, seed=args.seed)
            part = results.put("sweep", target, made_with(target), {"clips": phrase, **part})
        better = part["best"] != part["own"]
        print(f"{target}: {json.dumps(part['best'])}{'' if better else ', as it is'}; kept {json.dumps(part['kept'])}")
        if better and args.save_best:
            save_best(pipe, {target: part["best"]}, args.model)
            # They were among those tried, so it need not be tried again from there.
            results.put("sweep", target, made_with(target), part)


if __name__ == "__main__":
    main()
