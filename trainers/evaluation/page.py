"""One self-contained HTML page on an evaluation: figures, curves, and samples to look at and to listen to."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

from trainers.evaluation.clips import EvaluationClips
from trainers.evaluation.directions import Direction
from trainers.evaluation.embed import cell, loss_curves, plot
from trainers.evaluation.results import COLUMNS, main_figures

NUM_SAMPLES = 6
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def sample_rows(
    clips: EvaluationClips,
    direction: Direction,
    numbers,
    media: list,
    sampling_rate: int | None,
    count: int = NUM_SAMPLES,
) -> list[dict]:
    """The first few generations of a direction, with their conditions and the true medium, as cells of the page.

    Args:
        numbers: of the clips.
        media: what was generated for each of them.
        sampling_rate: of generated sounds, Hz; None if there are none.
    """
    rows = []
    for number, medium in list(zip(numbers, media, strict=True))[:count]:
        given = {name: cell(name, clips.given[name][number], clips.sampling_rate) for name in direction.conditions}
        true = cell(direction.target, clips.media[direction.target][number], clips.sampling_rate)
        made = cell(direction.target, medium, sampling_rate)
        rows.append({"conditions": given, "generated": made, "true": true if direction.conditions else None})
    return rows


def write_page(path: str | Path, results: dict, samples_folder: str | Path, model_folder: str | Path) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        results: contents of results.json.
        samples_folder: with the `sample_rows` of each direction, `NAME.json`.
        model_folder: of the pipeline, whose curves of training are shown if they are there.
    """
    parts = {name: part for name, part in results["directions"].items() if "skipped" not in part}
    figures = {name: main_figures(part) for name, part in parts.items()}
    samples = {}
    for name in parts:
        file = Path(samples_folder) / f"{name}.json"
        if file.is_file():
            samples[name] = json.loads(file.read_text(encoding="utf-8"))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2", "html"])
    )
    page = environment.get_template("page.html.j2").render(
        identity=results["identity"],
        about=results.get("about", {}),
        columns={name: title for name, title in COLUMNS.items() if any(name in row for row in figures.values())},
        figures=figures,
        parts=parts,
        skipped={name: part["skipped"] for name, part in results["directions"].items() if "skipped" in part},
        samples=samples,
        accuracy=accuracy_chart(parts) if any("accuracy" in part for part in parts.values()) else None,
        recall=recall_chart(parts) if any("retrieval" in part for part in parts.values()) else None,
        gains=results.get("gains", {}),
        sweeps={name: sweep_chart(part) for name, part in results.get("sweep", {}).items()},
        sweep_parts=results.get("sweep", {}),
        training=loss_curves(model_folder),
    )
    Path(path).write_text(page, encoding="utf-8")
    return Path(path)


def accuracy_chart(parts: dict[str, dict]) -> str:
    """Judged accuracy of each direction with its interval, beside chance and the judge's on real media."""
    parts = {name: part for name, part in parts.items() if "accuracy" in part}

    def draw(axis):
        for place, part in enumerate(reversed(parts.values())):
            low, high = part["accuracy_interval"] or (part["accuracy"],) * 2
            axis.plot([low, high], [place] * 2, color=COLOURS[0], linewidth=3, label="95 %" if not place else None)
            for field, mark in (("accuracy", "o"), ("shuffled", "x"), ("chance", "|"), ("judge_on_real", "*")):
                if field in part:
                    axis.plot(part[field], place, f"k{mark}", label=field.replace("_", " ") if not place else None)
        axis.set(yticks=range(len(parts)), yticklabels=[name.replace("_", " ") for name in reversed(parts)])
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(parts) - 0.4), xlabel="share of attributes right")

    return plot(draw, 8, 1.2 + 0.3 * len(parts))


def recall_chart(parts: dict[str, dict]) -> str:
    """Recall against rank."""

    def draw(axis):
        for name, part in parts.items():
            if "retrieval" in part:
                points = part["retrieval"]["curve"]
                axis.plot(*zip(*points, strict=True), marker=".", label=name.replace("_", " "))
                size = part["retrieval"]["candidates"]
        ranks = range(1, size + 1)  # of the last direction, whose candidates are as many where nothing is lacking
        axis.plot(ranks, [rank / size for rank in ranks], "k:", label="chance")
        axis.set(xscale="log", xlabel="rank", ylabel="recall")

    return plot(draw, 8, 4)


def sweep_chart(part: dict) -> str:
    """Quality against time of each setting and direction of a target; chosen ones are ringed."""

    def draw(axis):
        names = sorted({point["direction"] for point in part["points"]})
        for name, colour in zip(names, COLOURS, strict=False):
            points = [point for point in part["points"] if point["direction"] == name]
            times, qualities = ([point[key] for point in points] for key in ("seconds_per_sample", "quality"))
            axis.plot(times, qualities, ".", color=colour, label=name.replace("_", " "))
            steps = [point for point in points if point["stage"] == "steps"]
            steps.sort(key=lambda point: point["seconds_per_sample"])
            axis.plot(*zip(*((p["seconds_per_sample"], p["quality"]) for p in steps), strict=True), color=colour)
            for point in steps:
                where = point["seconds_per_sample"], point["quality"]
                axis.annotate(str(point["num_inference_steps"]), where, fontsize=7)
            for point in points:
                where = point["seconds_per_sample"], point["quality"]
                if {key: point.get(key) for key in part["best"]} == part["best"]:
                    axis.plot(*where, "o", color=colour, fillstyle="none", markersize=10)
        axis.set(xscale="log", xlabel="seconds per sample", ylabel=part["measure"])

    return plot(draw, 8, 4)
