"""Turn prepared clips into token ids.

tokenize_dataset.py --dataset OUT --tokenizers TOKENIZERS --output_dir TOKENS
"""

from dataclasses import dataclass, field

import torch
from arguments import parse_args

from dataset_scripts.prepare import load_clips
from dataset_scripts.tokenization import modalities_of, tokenize_clips
from tokenizers_4m import MODALITIES, load_tokenizers


@dataclass
class TokenizeArguments:
    dataset: str = field(metadata={"help": "prepared clips, the OUT of prepare_dataset.py"})
    tokenizers: str = field(metadata={"help": "folder with one tokenizer folder per modality of the clips"})
    output_dir: str = field(metadata={"help": "where the token ids go"})
    batch_size: int = field(default=64, metadata={"help": "clips per forward pass"})
    num_proc: int | None = field(default=None, metadata={"help": "processes"})
    parquet: bool = field(default=False, metadata={"help": "write Parquet files, which training can stream"})
    num_crops: int = field(default=1, metadata={"help": "rows for each clip to train on: itself and random crops"})
    bf16: bool = field(default=False, metadata={"help": "encode in bfloat16; for GPUs"})


def main(argv: list[str] | None = None):
    (args,) = parse_args(TokenizeArguments, description=__doc__, argv=argv)
    try:
        tokenizers, clips = load_tokenizers(args.tokenizers), load_clips(args.dataset)
        for name in MODALITIES:  # clips without sound need no tokenizer of sound
            if name not in tokenizers and any(modalities_of(rows)[name].any() for rows in clips.values()):
                raise ValueError(
                    f"tokenizers: the clips have {name}, and there is no {name} tokenizer in {args.tokenizers}; "
                    "make it with train_tokenizer.py"
                )
        # Worker processes are forked, and those cannot use a GPU that their parent has begun to use.
        device = "cuda" if torch.cuda.is_available() and (args.num_proc or 1) == 1 else "cpu"
        tokens = tokenize_clips(
            clips,
            {name: tokenizer.to(device) for name, tokenizer in tokenizers.items()},
            args.output_dir,
            batch_size=args.batch_size,
            num_proc=args.num_proc,
            parquet=args.parquet,
            num_crops=args.num_crops,
            bf16=args.bf16,
        )
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{args.output_dir}: {', '.join(f'{len(rows)} {split}' for split, rows in tokens.items())} rows of ids")
    return tokens


if __name__ == "__main__":
    main()
