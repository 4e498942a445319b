"""Train the tokenizer of one modality on prepared clips.

train_tokenizer.py configs/tokenizers/NAME.yaml --dataset OUT --output_dir TOKENIZERS/image
"""

import sys
from dataclasses import dataclass, field

import numpy as np
from arguments import field_value, fields_of, parse_args
from datasets import Dataset, DatasetDict, Image, List
from huggingface_hub.errors import StrictDataclassError
from transformers import IntervalStrategy, TrainingArguments, set_seed

from dataset_scripts.prepare import load_clips
from dataset_scripts.tokenization import MEDIA_COLUMNS, clips_with
from tokenizers_4m import TOKENIZERS
from trainers import (
    ClipCollator,
    TokenizerTrainer,
    TokenizerTrainingArguments,
    changed_settings,
    create_repository,
    fit,
    upload,
    write_model_card,
)

# Taken from the clips, so that tokenizer and data cannot disagree.
FROM_DATA = ("image_size", "num_frames", "sampling_rate", "clip_seconds", "log_mel_mean", "log_mel_std")
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass
class TokenizerArguments:
    dataset: str = field(metadata={"help": "prepared clips, the OUT of prepare_dataset.py"})
    tokenizer: str = field(default="image", metadata={"choices": list(TOKENIZERS), "help": "which kind to train"})


def parse(argv: list[str] | None = None) -> tuple:
    """What to train on, the fields of the kind of tokenizer that is asked for, and how to train."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        kind = field_value("tokenizer", argv)
    except ValueError:
        kind = None  # reported by parse_args
    config_class = TOKENIZERS.get(kind, TOKENIZERS["image"]).config_class
    return parse_args(
        TokenizerArguments,
        fields_of(config_class, without=FROM_DATA + SPECIAL_IDS),
        TokenizerTrainingArguments,
        description=__doc__,
        argv=argv,
    )


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        args, config_fields, training = parse(argv)
        config_class = TOKENIZERS[args.tokenizer].config_class
        if field_value("output_dir", argv) is None:  # TrainingArguments has a default, which nobody would look for
            raise ValueError("output_dir: say where the tokenizer goes")
        clips = load_clips(args.dataset)
        repo_id = create_repository(training)
        set_seed(training.seed)
        if args.tokenizer == "text":
            config = config_class(**vars(config_fields))
            tokenizer = TOKENIZERS["text"].train_from_iterator(clips_with(clips, "text")["train"]["text"], config)
            settings, log_history = changed_settings(config_fields), []
        else:
            tokenizer, log_history = train_with_gradients(args, config_class, config_fields, training, clips)
            settings = changed_settings(config_fields, training)
    except (ValueError, FileNotFoundError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from error
    if training.process_index != 0:
        return
    tokenizer.save_pretrained(training.output_dir)
    print(f"{training.output_dir}: {tokenizer.config.num_tokens} ids of {tokenizer.config.vocab_size} per clip")
    write_model_card(tokenizer, training.output_dir, [clips], settings, log_history, repo_id)
    if repo_id is not None:
        try:
            print(f"uploaded: {upload(repo_id, training)}")
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error


def train_with_gradients(args, config_class, config_fields, training: TrainingArguments, clips: DatasetDict) -> tuple:
    clips = clips_with(clips, config_class.modality)
    if args.tokenizer == "text_vq":
        tokenizer = TOKENIZERS["text_vq"].with_vocabulary(clips["train"]["text"], config_class(**vars(config_fields)))
    else:
        sizes = sizes_of(clips["train"])
        names = [name for name in FROM_DATA if name in sizes and name in config_class.__annotations__]
        config = config_class(**vars(config_fields), **{name: sizes[name] for name in names})
        tokenizer = TOKENIZERS[args.tokenizer](config)
    column = MEDIA_COLUMNS[tokenizer.modality]
    if tokenizer.modality == "image":
        clips["train"] = mix_frames(clips["train"], training.seed)
    clips = clips.with_format("numpy", columns=[column])
    if args.tokenizer == "audio":
        some = clips["train"].shuffle(seed=training.seed).select(range(min(256, len(clips["train"]))))
        tokenizer.fit_normalisation(tokenizer.preprocess(list(some[column])))

    quantizer = getattr(tokenizer, "quantizer", None)
    if quantizer is not None:
        # Without a codebook nothing is lost to it, and the best checkpoint would be one of the warm-up.
        training.eval_delay = max(training.eval_delay, quantizer.warmup_steps + 1)
    if "validation" not in clips:
        training.eval_strategy, training.load_best_model_at_end = IntervalStrategy.NO, False
    trainer = fit(TokenizerTrainer, tokenizer, training, clips, ClipCollator(tokenizer))
    if quantizer is not None and int(quantizer.steps) <= quantizer.warmup_steps:
        raise ValueError(
            f"quantizer_warmup_steps={quantizer.warmup_steps}: training ended after {int(quantizer.steps)} of them, "
            "so there is no codebook yet; train longer or warm up for fewer steps"
        )
    return tokenizer.eval(), trainer.state.log_history


def mix_frames(clips: Dataset, seed: int) -> Dataset:
    """Clips put together anew, each of frames from different clips; only the column `frames` is left.

    The frames of one clip are much alike. A batch of whole clips shows few pictures, and the tokenizer learns
    their details late.
    """

    def mix(batch: dict) -> dict:
        frames = [frame for clip in batch["frames"] for frame in clip]
        order = iter(np.random.default_rng(seed).permutation(len(frames)))
        return {"frames": [[frames[next(order)] for _ in clip] for clip in batch["frames"]]}

    clips = clips.select_columns("frames")
    encoded = clips.cast_column("frames", List(Image(decode=False)))
    return encoded.map(mix, batched=True, features=clips.features, desc="mixing the frames of clips")


def sizes_of(rows) -> dict:
    """What the first clip says of all; it may lack frames or sound where these are not needed."""
    row = rows.with_format("numpy")[0]
    sizes = {"sampling_rate": int(row["sampling_rate"])}
    if len(row["frames"]):
        sizes |= {"image_size": int(row["frames"][0].shape[0]), "num_frames": len(row["frames"])}
    if len(row["audio"]):
        sizes["clip_seconds"] = len(row["audio"]) / sizes["sampling_rate"]
    return sizes


if __name__ == "__main__":
    main()
