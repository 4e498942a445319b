"""Turn a folder of videos (or the made-up world) into uniform clips on disk.

prepare_dataset.py --builder video_clips --data_dir VIDEOS --output_dir OUT
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from arguments import parse_args
from datasets import DatasetDict
from huggingface_hub import create_repo
from huggingface_hub.errors import HTTPError

from dataset_scripts import (
    AVDigits,
    AVDigitsConfig,
    MediaRows,
    MediaRowsConfig,
    ShapesWorld,
    ShapesWorldConfig,
    VideoClips,
    VideoClipsConfig,
)
from dataset_scripts.prepare import prepare_clips

BUILDERS = {
    "video_clips": (VideoClips, VideoClipsConfig),
    "media_rows": (MediaRows, MediaRowsConfig),
    "shapes_world": (ShapesWorld, ShapesWorldConfig),
    "av_digits": (AVDigits, AVDigitsConfig),
}


@dataclass
class PrepareArguments:
    output_dir: str = field(metadata={"help": "where the clips go, as datasets.load_from_disk reads them"})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder of videos; for media_rows any folder or data set; for shapes_world to write to; "
            "for av_digits MNIST and FSDD, from the Hub if not given"
        },
    )
    builder: str = field(default="video_clips", metadata={"choices": list(BUILDERS)})
    num_frames: int | None = field(default=None, metadata={"help": "frames per clip"})
    image_size: int | None = field(default=None, metadata={"help": "height and width of a frame, pixels"})
    sampling_rate: int | None = field(default=None, metadata={"help": "of the sound, Hz"})
    clip_seconds: float | None = field(default=None, metadata={"help": "length of a clip"})
    validation_fraction: float | None = field(default=None, metadata={"help": "if there are no split folders"})
    asr_model: str | None = field(default=None, metadata={"help": "speech recognition model for clips without text"})
    language: str | None = field(default=None, metadata={"help": "of subtitles and speech"})
    strict: bool = field(default=False, metadata={"help": "an unusable file is an error"})
    image_column: str | None = field(default=None, metadata={"help": "media_rows: where the pictures are"})
    audio_column: str | None = field(default=None, metadata={"help": "media_rows: where the sounds are"})
    video_column: str | None = field(default=None, metadata={"help": "media_rows: where the videos are"})
    text_column: str | None = field(default=None, metadata={"help": "media_rows: where the texts are"})
    subset: str | None = field(default=None, metadata={"help": "media_rows: which part of a data set on the Hub"})
    num_train: int | None = field(default=None, metadata={"help": "shapes_world, av_digits: clips to make"})
    num_validation: int | None = field(default=None, metadata={"help": "shapes_world: clips to make"})
    unseen_speaker: str | None = field(
        default=None, metadata={"help": "av_digits: only in validation, not in training"}
    )
    num_validation_recordings: int | None = field(
        default=None, metadata={"help": "av_digits: so many of each digit and speaker are for validation"}
    )
    augment: bool | None = field(
        default=None, metadata={"help": "av_digits: vary pictures and recordings of training; true if not given"}
    )
    seed: int | None = field(default=None, metadata={"help": "shapes_world, av_digits: of what is drawn"})
    num_proc: int | None = field(default=None, metadata={"help": "processes"})
    parquet: bool = field(default=False, metadata={"help": "write Parquet files, which datasets can stream"})
    push_to_hub: bool = field(default=False, metadata={"help": "upload the clips as a data set"})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "its name; that of output_dir if not given"})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "for you and your organisation only"})


# What is not a setting of a builder.
OWN = ("builder", "output_dir", "num_proc", "parquet", "push_to_hub", "hub_dataset_id", "hub_private_repo")


def main(argv: list[str] | None = None):
    (args,) = parse_args(PrepareArguments, description=__doc__, argv=argv)
    builder_class, config_class = BUILDERS[args.builder]
    known = {f.name for f in fields(config_class)}
    # What is as if not given; 0 is given, and the builder will say what is wrong with it.
    absent = {f.name: f.default for f in fields(PrepareArguments)}
    given = {name: value for name, value in vars(args).items() if name not in OWN and value is not absent[name]}
    for name in set(given) - known:
        raise SystemExit(f"error: --{name} is no option of --builder {args.builder}")
    try:
        repo_id = create_dataset(args) if args.push_to_hub else None
        clips = prepare_clips(builder_class(**given), args.output_dir, args.num_proc, args.parquet)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    rows = ", ".join(f"{len(rows)} {split}" for split, rows in clips.items())
    print(f"{args.output_dir}: {rows} clips; files left out are listed in skipped.jsonl")
    if repo_id is not None:
        upload(clips, repo_id)
    return clips


def create_dataset(args: PrepareArguments) -> str:
    """The data set on the Hub to push to, made before the work begins so that a wrong token does not cost it."""
    name = args.hub_dataset_id or Path(args.output_dir).resolve().name
    try:
        return create_repo(name, repo_type="dataset", private=args.hub_private_repo, exist_ok=True).repo_id
    except (HTTPError, OSError) as error:
        raise ValueError(f"push_to_hub: cannot create the data set {name!r} ({error})") from error


def upload(clips: DatasetDict, repo_id: str) -> None:
    try:
        print(f"uploaded: {clips.push_to_hub(repo_id).commit_url}")
    except (HTTPError, OSError) as error:
        raise SystemExit(f"error: push_to_hub: the clips are prepared, but not uploaded ({error})") from error


if __name__ == "__main__":
    main()
