"""Train nano4M on token ids and save it, with its tokenizers, as a pipeline.

run_training.py configs/nano4m/NAME.yaml --dataset TOKENS --tokenizers TOKENIZERS --output_dir MODEL

Several folders of tokens are mixed with --dataset A B --dataset_weights 3 1, by their sizes if no weights are given.
"""

import json
from dataclasses import dataclass, field

from arguments import fields_of, parse_args
from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from dataset_scripts.tokenization import check_tokenizers, count_rows, load_tokens, model_modalities, token_files
from modeling_nano4m import Nano4MConfig, Nano4MModel, Nano4MPipeline, UnmaskingScheduler
from tokenizers_4m import MODALITIES, load_tokenizers
from trainers import (
    DrawnRows,
    MaskingCollator,
    Nano4MTrainer,
    Nano4MTrainingArguments,
    NumberedRows,
    StreamedRows,
    changed_settings,
    create_repository,
    fit,
    upload,
    write_model_card,
)
from trainers.training_data import write_training_data


@dataclass
class ModelArguments:
    dataset: list[str] = field(metadata={"help": "token ids, the TOKENS of tokenize_dataset.py; one or several"})
    tokenizers: str = field(metadata={"help": "folder of the tokenizers that made them"})
    dataset_weights: list[float] | None = field(
        default=None,
        metadata={"help": "how often to draw from each data set; by their sizes if not given"},
    )
    streaming: bool = field(
        default=False, metadata={"help": "read Parquet files while training; --dataset is a folder or a pattern"}
    )
    shuffle_buffer: int = field(default=10_000, metadata={"help": "rows of each stream held to be shuffled"})
    pair_by: str | None = field(
        default=None,
        metadata={"help": "column of classes, as label: modalities are paired anew within a class in every epoch"},
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager, flash_attention_2, ..."})
    modality_defaults: json.loads = field(
        default=None, metadata={"help": 'how to generate each modality, JSON: {"image": {"top_p": 0.9, ...}, ...}'}
    )
    schedule: str = field(default="cosine", metadata={"help": "of unmasking, saved with the pipeline"})
    order: str = field(default="random", metadata={"help": "of unmasking: random or confidence"})


def parse(argv: list[str] | None = None) -> tuple:
    """What to train on and how to publish it, the fields of the model and of the masks, and how to train."""
    return parse_args(
        ModelArguments,
        fields_of(Nano4MConfig, without=("modalities",)),
        fields_of(MaskingCollator, without=("modalities", "seed")),
        Nano4MTrainingArguments,
        description=__doc__,
        argv=argv,
    )


def main(argv: list[str] | None = None) -> None:
    try:
        args, config_fields, masking, training = parse(argv)
        tokenizers = load_tokenizers(args.tokenizers)
        data, described, sources = load_data(args, training, tokenizers)
        tokenizers = {name: tokenizers[name] for name in described}
        config = Nano4MConfig(modalities=model_modalities(described), **vars(config_fields))
        config._attn_implementation = args.attn_implementation
        collator = MaskingCollator(config.modalities, **vars(masking), seed=training.seed)
        set_seed(training.seed)
        model = Nano4MModel(config)
        model.set_modality_defaults(args.modality_defaults or {})
        # Before training, so that a wrong name is not found out after it.
        scheduler = UnmaskingScheduler(args.schedule, args.order)
        repo_id = create_repository(training)
        for name, tokenizer in tokenizers.items():
            if (vectors := tokenizer.token_vectors()) is not None:
                model.start_from_token_vectors(name, vectors)
        if training.process_index == 0:
            print(f"nano4M: {model.num_parameters() / 1e6:.1f} M parameters, {', '.join(config.modality_names)}")
        trainer = fit(Nano4MTrainer, model, training, data, collator)
    except (ValueError, FileNotFoundError, ImportError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from error
    model = trainer.trained_model()
    if not trainer.is_world_process_zero():
        return
    pipeline = Nano4MPipeline(
        model=model,
        scheduler=scheduler,
        **{f"{name}_tokenizer": tokenizers.get(name) for name in MODALITIES},
    )
    pipeline.save_pretrained(training.output_dir)
    write_training_data(training.output_dir, args.dataset)
    print(f"{training.output_dir}: the pipeline; load it with Nano4MPipeline.from_pretrained")
    settings = changed_settings(training, masking, config_fields)
    settings |= {
        name: getattr(args, name) for name in ("dataset_weights", "pair_by") if getattr(args, name) is not None
    }
    write_model_card(pipeline, training.output_dir, sources, settings, trainer.state.log_history, repo_id)
    if repo_id is not None:
        try:
            print(f"uploaded: {upload(repo_id, training)}")
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error


def load_data(args: ModelArguments, training: Nano4MTrainingArguments, tokenizers: dict) -> tuple[dict, dict, list]:
    """The rows to train and to evaluate on, for each modality what made it, and the data sets as they are."""
    if args.streaming and training.max_steps <= 0:
        raise ValueError("max_steps: a stream has no end; say when to stop with --max_steps or --max_tokens")
    if args.streaming and training.ignore_data_skip and training.dataloader_num_workers:
        raise ValueError("dataloader_num_workers: must be 0 to stream with ignore_data_skip")
    if args.streaming and args.pair_by is not None:
        raise ValueError("pair_by: a stream cannot be paired; leave out --streaming or --pair_by")
    sources, described = [], {}
    for path in args.dataset:
        tokens, modalities = load_tokens(path, args.streaming)
        try:
            check_tokenizers(modalities, tokenizers)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if "train" not in tokens:
            raise ValueError(f"{path}: there is no split 'train'")
        sources.append(tokens)
        described |= modalities
    train = [tokens["train"] for tokens in sources]
    validation = [tokens["validation"] for tokens in sources if "validation" in tokens]
    if args.streaming:
        weights = args.dataset_weights or [count_rows(token_files(path)["train"]) for path in args.dataset]
        rows = StreamedRows(train, weights, training.seed, args.shuffle_buffer)
    else:
        rows = DrawnRows(train, args.dataset_weights, training.seed, args.pair_by)
    return {"train": rows, "validation": NumberedRows(validation) if validation else None}, described, sources


if __name__ == "__main__":
    main()
