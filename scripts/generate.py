"""Generate one modality from files of any others.

generate.py --model MODEL --input FILE [FILE ...] --target image|audio|text --output_dir DIR
generate.py --model MODEL --input_dir FOLDER --target ... --output_dir DIR

Files with one stem (dog.png, dog.txt) are one condition; a video gives its frames and its sound, as far as the
target leaves them. Writes STEM.png (frames side by side), STEM.wav or STEM.txt. How to sample is taken from the model
where it is not said.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
import torch
from arguments import parse_args
from PIL import Image

from dataset_scripts.audio_reader import AudioReader
from dataset_scripts.media import MediaError, VideoReader, probe, slice_midpoints
from modeling_nano4m import Nano4MPipeline
from tokenizers_4m import MODALITIES

KINDS = {".png": "image", ".jpg": "image", ".jpeg": "image", ".wav": "audio", ".flac": "audio", ".txt": "text"}
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")


@dataclass
class GenerateArguments:
    model: str = field(metadata={"help": "pipeline folder, the MODEL of run_training.py"})
    target: str = field(metadata={"choices": list(MODALITIES)})
    output_dir: str = field(metadata={"help": "where the results go"})
    input: list[str] = field(default_factory=list, metadata={"help": "files to condition on"})
    input_dir: str | None = field(default=None, metadata={"help": "folder of files to condition on"})
    input_text: str | None = field(default=None, metadata={"help": "text to condition on, for every input"})
    num_inference_steps: int | None = field(default=None, metadata={"help": "steps of unmasking"})
    guidance_scale: float | None = field(default=None, metadata={"help": "more follows the condition more closely"})
    temperature: float | None = field(default=None, metadata={"help": "of sampling; 0 takes the most likely"})
    top_k: int | None = field(default=None, metadata={"help": "sample among so many tokens; 0 among all"})
    top_p: float | None = field(default=None, metadata={"help": "sample among tokens with this probability together"})
    min_p: float | None = field(default=None, metadata={"help": "sample among tokens so likely beside the likeliest"})
    seed: int | None = field(default=None, metadata={"help": "of sampling"})
    batch_size: int = field(default=32, metadata={"help": "samples at once"})


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_args(GenerateArguments, description=__doc__, argv=argv)
    try:
        generate(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def generate(args: GenerateArguments) -> None:
    pipe = Nano4MPipeline.from_pretrained(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    files = [Path(name) for name in args.input]
    if args.input_dir is not None:
        if not Path(args.input_dir).is_dir():
            raise ValueError(f"--input_dir {args.input_dir}: no such folder")
        files += sorted(p for p in Path(args.input_dir).iterdir() if p.suffix.lower() in (*KINDS, *VIDEOS))
        if not files:
            raise ValueError(f"--input_dir {args.input_dir}: no file of a kind that can be read")
    conditions = defaultdict(dict)
    for path in files:
        for modality, media in read_condition(path, pipe, args.target).items():
            if modality in conditions[path.stem]:
                raise ValueError(f"{path}: a second {modality} for {path.stem!r}")
            conditions[path.stem][modality] = media
    if args.input_text is not None:
        for stem in list(conditions) or ["text"]:
            conditions[stem]["text"] = args.input_text
    if files and not conditions:
        raise ValueError(f"no input holds anything but {args.target}, the target itself")
    conditions = dict(conditions) or {"unconditional": {}}

    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    # A batch holds conditions of one kind; samples keep their own seeds whatever their batch.
    groups = defaultdict(list)
    for index, (stem, given) in enumerate(conditions.items()):
        groups[tuple(sorted(given))].append((index, stem))
    for kinds, members in groups.items():
        output = pipe(
            **{kind: [conditions[stem][kind] for _, stem in members] for kind in kinds},
            target=args.target,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            seed=None if args.seed is None else [args.seed + index for index, _ in members],
            batch_size=args.batch_size,
        )
        for number, (_, stem) in enumerate(members):
            print(write(output, number, output_dir / stem))


def read_condition(path: Path, pipe: Nano4MPipeline, target: str) -> dict:
    """What a file has to offer as a condition, by modality."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if suffix in KINDS:
        if KINDS[suffix] == target:
            return {}
        return {KINDS[suffix]: path}
    if suffix not in VIDEOS:
        raise ValueError(f"{path}: not one of {', '.join((*KINDS, *VIDEOS))}")
    configs = {name: tokenizer.config for name, tokenizer in pipe.tokenizers.items()}
    image, audio = configs.get("image"), configs.get("audio")
    try:
        info = probe(path)
        seconds = min(info.duration, audio.clip_seconds) if audio else info.duration
        given = {}
        if target != "image" and image:
            with VideoReader(path, image.image_size) as reader:
                times = slice_midpoints(0, seconds, image.num_frames)
                given["image"] = [reader.frame_at(time) for time in times]
        if target != "audio" and audio and info.has_audio:
            with AudioReader(path, audio.sampling_rate) as reader:
                given["audio"] = reader.read(0, seconds, audio.num_samples)[0]
    except MediaError as error:
        raise ValueError(f"{path}: {error}") from error
    return given


def write(output, number: int, path: Path) -> Path:
    """Save one generated sample beside its suffix; returns the file."""
    if output.images is not None:
        path = path.with_name(path.name + ".png")
        filmstrip(output.images[number]).save(path)
    elif output.audios is not None:
        path = path.with_name(path.name + ".wav")
        soundfile.write(path, output.audios[number], output.sampling_rate)
    else:
        path = path.with_name(path.name + ".txt")
        path.write_text(output.texts[number] + "\n", encoding="utf-8")
    return path


def filmstrip(frames: list[Image.Image]) -> Image.Image:
    """The frames of a clip side by side."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (width * i, 0))
    return strip


if __name__ == "__main__":
    main()
