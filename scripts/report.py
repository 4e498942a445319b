"""One self-contained HTML page on a finished demo: data, reconstructions, curves, generations, scores."""

from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, select_autoescape

from tokenizers_4m import MODALITIES
from tokenizers_4m.quantizer import codebook_usage
from trainers.evaluation import EvaluationClips, main_figures, sample_rows
from trainers.evaluation.embed import cell, loss_curves
from trainers.evaluation.results import COLUMNS

NUM_SAMPLES = 4
NUM_RECONSTRUCTIONS = 6
TRAININGS = ("tokenizers/image", "tokenizers/audio", "model")


def write_report(out: Path, pipe, clips: EvaluationClips, evaluated: dict, summary: dict, minutes: float) -> Path:
    """Write `out/report.html`.

    Args:
        out: the demo's folder.
        pipe: the trained pipeline.
        clips: what was evaluated on.
        evaluated: by direction, what `evaluate_direction` returned.
        summary: the contents of scores.json.
        minutes: how long the run took.
    """
    few = clips.having(MODALITIES)[:NUM_RECONSTRUCTIONS]
    true = {name: [cell(name, clips.media[name][i], clips.sampling_rate) for i in few] for name in MODALITIES}
    rate = pipe.audio_tokenizer.config.sampling_rate

    reconstructions = {}
    for name, tokenizer in pipe.tokenizers.items():
        with torch.inference_mode():
            token_ids = clips.token_ids[name][few].to(pipe.device)
            decoded = tokenizer.postprocess(tokenizer.decode(token_ids))
        usage = codebook_usage(clips.token_ids[name][clips.valid_masks[name]], tokenizer.config.vocab_size)
        reconstructions[name] = {
            "usage": {**usage, "vocab_size": tokenizer.config.vocab_size, "num_tokens": tokenizer.config.num_tokens},
            "pairs": [(before, cell(name, after, rate)) for before, after in zip(true[name], decoded, strict=True)],
        }
    grids = [
        {
            "source": direction.conditions[0],
            "target": direction.target,
            "rows": sample_rows(clips, direction, numbers, media, rate, NUM_SAMPLES),
        }
        for direction, (_, numbers, media) in evaluated.items()
    ]
    figures = {name: main_figures(result) for name, result in summary["directions"].items()}

    page = render(
        "report.html.j2",
        samples=[{name: true[name][i] for name in MODALITIES} for i in range(min(NUM_SAMPLES, len(few)))],
        reconstructions=reconstructions,
        curves=[(name, curve) for name in TRAININGS if (curve := loss_curves(out / name))],
        grids=grids,
        columns={name: title for name, title in COLUMNS.items() if any(name in row for row in figures.values())},
        figures=figures,
        summary=summary,
        minutes=minutes,
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def render(template: str, **values) -> str:
    """A page from a template beside this file; all values are escaped."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2", "html"])
    )
    return templates.get_template(template).render(**values)
