"""Pictures, sounds and curves as parts of one self-contained HTML page: everything is a data URI."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from jinja2 import Environment
from PIL import Image

HEIGHT = 64  # pixels at least, of small pictures
TABLE = """<table><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for column in columns %}<td>{% set value = row[column] %}
{% if value is mapping %}<img src="{{ value.image }}" alt="">
{% if value.audio %}<audio controls src="{{ value.audio }}"></audio>{% endif %}
{% elif value is not none %}{{ value }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table>"""


def cell(modality: str, medium, sampling_rate: int | None) -> dict | str:
    """A medium as the templates show it: texts as they are, others as a dictionary of data URIs."""
    if modality == "text":
        return medium
    return picture(medium) if modality == "image" else player(medium, sampling_rate)


def picture(frames: list[Image.Image]) -> dict:
    """A clip's frames side by side as one embedded picture."""
    strip = Image.fromarray(np.concatenate([np.asarray(frame.convert("RGB")) for frame in frames], axis=1))
    scale = max(1, HEIGHT // strip.height)
    buffer = io.BytesIO()
    strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return {"image": data_uri(buffer, "image/png")}


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
    return {"image": data_uri(image, "image/png"), "audio": data_uri(audio, "audio/flac")}


def html_table(rows: list[dict[str, dict | str]]) -> str:
    """Rows of cells, by the names of their columns, as a table of HTML; texts are escaped."""
    template = Environment(autoescape=True).from_string(TABLE)
    return template.render(columns=list(rows[0]) if rows else [], rows=rows)


def plot(draw: Callable[[plt.Axes], None], width: float = 5.2, height: float = 2.8) -> str:
    """What `draw(axis)` draws, as an embedded picture of `width` by `height` inches."""
    figure, axis = plt.subplots(figsize=(width, height))
    draw(axis)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return data_uri(buffer, "image/png")


def loss_curves(folder: str | Path) -> str | None:
    """Loss curves of a training, from the state that the Trainer saved; None if there was none."""
    state = Path(folder) / "training" / "trainer_state.json"
    if not state.exists():
        return None
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]

    def draw(axis):
        for name in sorted({key for entry in history for key in entry if key.startswith("loss")}):
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            label = "total" if name == "loss" else name.removeprefix("loss_")
            axis.plot(*zip(*points, strict=True), label=label, linewidth=2 if name == "loss" else 1)
        evaluated = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
        if evaluated:
            axis.plot(*zip(*evaluated, strict=True), "k*", label="evaluation")
        axis.set(xlabel="step", ylabel="loss")

    return plot(draw)


def data_uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
