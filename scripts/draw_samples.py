"""Draw clips beside what a model makes of each of their modalities: one picture, to look at.

draw_samples.py --model MODEL --dataset OUT --output FILE.png [--num_clips 6]

A row is a clip of the validation split: what is real on the left, then each modality as generated from each other one,
of those that the model has. Sounds are log-mel spectrograms.
"""

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from arguments import parse_args
from datasets import DatasetDict
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dataset_scripts.prepare import load_clips
from dataset_scripts.tokenization import check_clips_fit, rows_with
from modeling_nano4m import Nano4MPipeline
from trainers.evaluation import choose_rows, media_of
from trainers.tokenizer_views import log_mel

INCHES = 1.3  # width and height of a cell


@dataclass
class DrawArguments:
    model: str = field(metadata={"help": "pipeline folder, the MODEL of run_training.py"})
    dataset: str = field(metadata={"help": "clips, the OUT of prepare_dataset.py"})
    output: str = field(metadata={"help": "file of the picture, such as samples.png"})
    split: str = field(default="validation", metadata={"help": "of the clips"})
    num_clips: int = field(default=6, metadata={"help": "rows, drawn at random"})
    seed: int = field(default=0, metadata={"help": "of the choice of clips and of generation"})


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_args(DrawArguments, description=__doc__, argv=argv)
    try:
        draw(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def draw(args: DrawArguments) -> None:
    clips = load_clips(args.dataset)
    if args.split not in clips:
        raise ValueError(f"split: {args.dataset} has no {args.split!r}, only {', '.join(clips)}")
    pipe = Nano4MPipeline.from_pretrained(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    complete = rows_with(clips[args.split], pipe.tokenizers)
    if not len(complete):
        raise ValueError(f"dataset: no clip of the split {args.split} has {', '.join(pipe.tokenizers)}")
    rows = choose_rows(clips[args.split].select(complete), args.num_clips, args.seed)
    check_clips_fit(DatasetDict({args.split: rows}), pipe.tokenizers)
    real = {modality: media_of(rows, modality) for modality in pipe.tokenizers}
    columns = {f"real {modality}": (modality, media) for modality, media in real.items()}
    for target in real:
        for source in (name for name in real if name != target):
            output = pipe(**{source: real[source]}, target=target, seed=args.seed)
            columns[f"{source} to {target}"] = (target, output[f"{target}s"])
    figure = sample_figure(columns, pipe.sampling_rate)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=100)
    print(args.output)


def sample_figure(columns: dict[str, tuple[str, list]], sampling_rate: int | None) -> Figure:
    """A column of cells under each title.

    Args:
        columns: `title -> (modality, media)`, all equally many: clips of frames, waveforms `(samples,)` or strings.
        sampling_rate: of the waveforms, Hz; None if there are none.
    """
    num_rows = len(next(iter(columns.values()))[1])
    figure = Figure((INCHES * len(columns), INCHES * num_rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, len(columns), squeeze=False)
    for place, (title, (modality, media)) in enumerate(columns.items()):
        grid[0, place].set_title(title, fontsize="small")
        for axes, medium in zip(grid[:, place], media, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if modality == "image":
                axes.imshow(np.concatenate([np.asarray(frame) for frame in medium], axis=1), interpolation="nearest")
            elif modality == "audio":
                axes.imshow(log_mel(medium, sampling_rate), origin="lower", aspect="auto")
            else:
                axes.text(0.5, 0.5, fill(medium, 14), ha="center", va="center", fontsize="small", parse_math=False)
    return figure


if __name__ == "__main__":
    main()
