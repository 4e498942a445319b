"""One self-contained HTML page on a finished demo: data, reconstructions, curves, generations, scores."""

import base64
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from generate import filmstrip
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image
from scoring import DIRECTIONS, MODALITIES, media_of

from tokenizers_4m.quantizer import codebook_usage

NUM_SAMPLES = 4
NUM_RECONSTRUCTIONS = 6
TRAININGS = ("tokenizers/image", "tokenizers/audio", "model")


def write_report(out: Path, pipe, clips, generated: dict, summary: dict, minutes: float) -> Path:
    """Write `out/report.html`.

    Args:
        out: the demo's folder.
        pipe: the trained pipeline.
        clips: rows that were not trained on.
        generated: media by direction for the same rows, from `scoring.score_directions`.
        summary: the contents of scores.json.
        minutes: how long the run took.
    """
    few = clips.select(range(min(NUM_RECONSTRUCTIONS, len(clips))))
    rate = int(few[0]["sampling_rate"])
    media = {name: media_of(few, name) for name in MODALITIES}
    show = {"image": picture, "audio": lambda sound: player(sound, rate), "text": lambda text: text}

    reconstructions = {}
    for name, tokenizer in pipe.tokenizers.items():
        with torch.inference_mode():
            token_ids, valid_mask = tokenizer.encode_media(media_of(clips, name))
            decoded = tokenizer.postprocess(tokenizer.decode(token_ids[: len(few)]))
        usage = codebook_usage(token_ids[valid_mask], tokenizer.config.vocab_size)
        reconstructions[name] = {
            "usage": {**usage, "vocab_size": tokenizer.config.vocab_size, "num_tokens": tokenizer.config.num_tokens},
            "pairs": [(show[name](a), show[name](b)) for a, b in zip(media[name], decoded, strict=True)],
        }
    grids = []
    for source, target in DIRECTIONS:
        made = generated[f"{source}_to_{target}"][:NUM_SAMPLES]
        rows = [
            (show[source](condition), show[target](result), show[target](true))
            for condition, result, true in zip(media[source], made, media[target], strict=False)
        ]
        grids.append({"source": source, "target": target, "rows": rows})
    samples = [{name: show[name](media[name][i]) for name in MODALITIES} for i in range(min(NUM_SAMPLES, len(few)))]

    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2", "html"])
    ).get_template("report.html.j2")
    page = template.render(
        samples=samples,
        reconstructions=reconstructions,
        curves=[
            (name, curve)
            for name in ("tokenizers/image", "tokenizers/audio", "model")
            if (curve := curves(out / name))
        ],
        grids=grids,
        summary=summary,
        minutes=minutes,
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def picture(frames: list[Image.Image]) -> dict:
    """A clip's frames as one embedded picture."""
    strip = filmstrip(list(frames))
    scale = max(1, 64 // strip.height)
    buffer = io.BytesIO()
    strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return {"image": _embed(buffer, "image/png")}


def player(sound: np.ndarray, sampling_rate: int) -> dict:
    """A sound as its spectrogram and an embedded player."""
    sound = np.asarray(sound, dtype=np.float32)
    figure, axis = plt.subplots(figsize=(2.6, 1.1))
    with np.errstate(divide="ignore"):
        axis.specgram(sound + 1e-6, NFFT=512, noverlap=256, Fs=sampling_rate, cmap="magma", vmin=-120, vmax=-30)
    axis.set(ylim=(0, min(4000, sampling_rate / 2)), xticks=[], yticks=[])
    figure.subplots_adjust(0, 0, 1, 1)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=80)
    plt.close(figure)
    audio = io.BytesIO()
    soundfile.write(audio, sound, sampling_rate, format="FLAC", subtype="PCM_16")
    return {"image": _embed(image, "image/png"), "audio": _embed(audio, "audio/flac")}


def curves(folder: Path) -> str | None:
    """Loss curves of a training, from the state that the Trainer saved; None if there was none."""
    state = folder / "training" / "trainer_state.json"
    if not state.exists():
        return None
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    figure, axis = plt.subplots(figsize=(5.2, 2.8))
    names = sorted({key for entry in history for key in entry if key.startswith("loss")})
    for name in names:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        label = "total" if name == "loss" else name.removeprefix("loss_")
        axis.plot(*zip(*points, strict=True), label=label, linewidth=2 if name == "loss" else 1)
    for entry in history:
        if "eval_loss" in entry:
            axis.plot(entry["step"], entry["eval_loss"], "k*", label="evaluation")
    axis.set(xlabel="step", ylabel="loss")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return _embed(buffer, "image/png")


def _embed(buffer: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
