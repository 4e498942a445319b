"""Turn an image tokenizer that others have trained into a folder that loads with AutoModel.

convert_checkpoint.py --checkpoint vqgan_f16_epoch1.pth --output_dir TOKENIZERS/image

Reads VQGANs of taming-transformers and CompVis, diffusers' VQModel and 4M's VQVAE with ViT encoder and decoder.
"""

from dataclasses import dataclass, field

from arguments import parse_args

from tokenizers_4m import convert_weights


@dataclass
class ConvertArguments:
    checkpoint: str = field(metadata={"help": "a .ckpt, .pth, .bin or .safetensors file, or the folder of one"})
    output_dir: str = field(metadata={"help": "where the tokenizer goes"})
    image_size: int | None = field(default=None, metadata={"help": "pixels; 256 or as 4M's config says, if not given"})
    num_frames: int = field(default=1, metadata={"help": "frames per clip"})
    prefix: str | None = field(default=None, metadata={"help": "of the names of the weights, if there are several"})
    allow_missing: bool = field(default=False, metadata={"help": "go on if names of weights do not match"})


def main(argv: list[str] | None = None):
    (args,) = parse_args(ConvertArguments, description=__doc__, argv=argv)
    sizes = {"image_size": args.image_size, "num_frames": args.num_frames}
    try:
        tokenizer, missing, unexpected = convert_weights(
            args.checkpoint, **sizes, prefix=args.prefix, allow_missing=args.allow_missing
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    for kind, names in (("started at random", missing), ("left out", unexpected)):
        for name in names:
            print(f"{kind}: {name}")
    tokenizer.save_pretrained(args.output_dir)
    config = tokenizer.config
    print(
        f"{args.output_dir}: {type(tokenizer).__name__}, {config.image_size} pixels, stride {config.stride}, "
        f"{config.num_tokens} ids of {config.vocab_size} per clip"
    )
    return tokenizer


if __name__ == "__main__":
    main()
