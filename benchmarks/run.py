"""Compares nano4M with a plain 4M: prints a table and writes it to a file.

    python -m benchmarks.run [--quick] [--only NAME ...] [--device cuda]

The two sides take turns (ours, baseline, ours, baseline, ...), each time in a fresh process with the same environment
and as many threads, so that what else the machine does hits both alike. The ratio of a measure is the median over the
turns.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.audio_encoding import audio_measures
from benchmarks.image_encoding import image_encoding
from benchmarks.measures import QUICK, Measure, Sizes, measures

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "baseline")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measures to run; all if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, help="turns of each side; 3 if not given, 1 with --quick")
    parser.add_argument("--video_seconds", type=float, help="length of the video to prepare; 1200 if not given")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks.json"))
    parser.add_argument("--side", choices=SIDES, help="only run this side here and print its figures as JSON")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no CUDA device")
        return
    known = all_measures(arguments.device)
    names = arguments.only or list(known)
    for name in names:
        if name not in known:
            parser.error(f"--only: no measure {name!r}; on {arguments.device} there are {', '.join(known)}")
    repeats = arguments.repeats if arguments.repeats is not None else (1 if arguments.quick else 3)
    if repeats < 1:
        parser.error(f"--repeats must be at least 1, not {repeats}")
    video = {} if arguments.video_seconds is None else {"video_seconds": arguments.video_seconds}
    sizes = replace(QUICK if arguments.quick else Sizes(), device=arguments.device, **video)
    if arguments.side:
        for name in names:
            print(json.dumps(run_side(known[name], arguments.side, sizes)))
        return

    options = ["--device", arguments.device, *(["--quick"] if arguments.quick else [])]
    options += [word for name, value in video.items() for word in (f"--{name}", str(value))]
    rows = []
    with tqdm(total=len(names) * repeats * len(SIDES), file=sys.stderr) as progress:
        for name in names:
            turns = {side: [] for side in SIDES}
            for _ in range(repeats):
                # Each side goes first as often as the other.
                for side in SIDES if len(turns["ours"]) % 2 == 0 else reversed(SIDES):
                    progress.set_description(f"{name}, {side}")
                    turns[side].append(start_side(name, side, options))
                    progress.update()
            rows.append(compare(known[name], turns, sizes))
            progress.write(markdown(rows[-1:]).splitlines()[-1], file=sys.stderr)
    print(markdown(rows))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {arguments.output}")


def all_measures(device: str) -> dict[str, Measure]:
    """Of the model and, on CPUs, of what comes before it, by name."""
    before = [image_encoding()] if device == "cpu" else []
    return measures(device) | {measure.name: measure for measure in before} | audio_measures()


def run_side(measure: Measure, side: str, sizes: Sizes) -> dict:
    """The figures of one side, measured in this process, and the number of threads it had."""
    return {**getattr(measure, side)(sizes), "threads": torch.get_num_threads()}


def start_side(name: str, side: str, options: list[str]) -> dict:
    """The figures of one side, measured in a fresh process; RuntimeError with its last words if it fails."""
    command = [sys.executable, "-m", "benchmarks.run", "--only", name, "--side", side, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measure {name}, {side}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(measure: Measure, turns: dict[str, list[dict]], sizes: Sizes) -> dict:
    """One row: medians of both sides, and the median over the turns of their ratio."""
    values = {side: [figures[measure.figure] * measure.scale for figures in turns[side]] for side in SIDES}
    return {
        "name": measure.name,
        "unit": measure.unit,
        "ours": statistics.median(values["ours"]),
        "baseline": statistics.median(values["baseline"]),
        "ratio": statistics.median(ours / base for ours, base in zip(*values.values(), strict=True)),
        "must": measure.must,
        "aim": measure.aim,
        "details": {
            "smaller_is_better": measure.smaller_is_better,
            "turns": turns,
            "sizes": asdict(sizes),
            "machine": machine(sizes.device),
            "torch": torch.__version__,
        },
    }


def machine(device: str) -> str:
    """Name of the processor that the figures hold for."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    description = Path("/proc/cpuinfo")
    lines = description.read_text().splitlines() if description.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def markdown(rows: list[dict]) -> str:
    """The rows as a table that reads well on a terminal, too."""
    cells = [("measure", "unit", "ours", "baseline", "ratio", "must", "aim")]
    for row in rows:
        sign = "≤" if row["details"]["smaller_is_better"] else "≥"
        targets = ["" if row[key] is None else f"{sign} {row[key]:g}" for key in ("must", "aim")]
        values = [f"{row[side]:,.0f}" if row[side] >= 10 else f"{row[side]:.2f}" for side in SIDES]
        figures = [*values, f"{row['ratio']:.2f}"]
        cells.append((row["name"], row["unit"], *figures, *targets))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    # Words to the left, numbers to the right.
    lines = [
        "| " + " | ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(line)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i < 2 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


if __name__ == "__main__":
    main()
