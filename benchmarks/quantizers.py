"""Quantizers of the image tokenizers beside those of `vector-quantize-pytorch`, trained alike.

    python -m benchmarks.quantizers --dataset my_clips

Both sides put their quantizer between the same encoder and decoder, with the same initial weights, pictures, loss and
steps, and as many codes. VQ of the library gets what its manual advises against unused codes. The figures are of the
validation pictures, medians over the seeds.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, load_from_disk
from torch import nn
from tqdm import tqdm
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

from benchmarks.run import machine
from tokenizers_4m import ImageTokenizer, ImageTokenizerConfig
from tokenizers_4m.image.configuration_frames import QUANTIZERS
from tokenizers_4m.quantizer import QuantizerOutput, codebook_usage

CODES, LEVELS, CODE_DIM = 256, (8, 8, 4), 8
COMMITMENT_WEIGHT, ENTROPY_WEIGHT = 0.25, 0.1


class LibraryQuantizer(nn.Module):
    """A quantizer of `vector-quantize-pytorch` behind our contract; its losses come weighted."""

    def __init__(self, name: str, dim: int):
        super().__init__()
        if name == "fsq":
            self.layer = FSQ(list(LEVELS), dim=dim)
        elif name == "lfq":
            self.layer = LFQ(
                dim=dim,
                codebook_size=CODES,
                entropy_loss_weight=ENTROPY_WEIGHT,
                commitment_loss_weight=COMMITMENT_WEIGHT,
            )
        else:
            self.layer = VectorQuantize(
                dim,
                CODES,
                codebook_dim=CODE_DIM,
                decay=0.95,
                commitment_weight=COMMITMENT_WEIGHT,
                use_cosine_sim=name == "cosine_vq",
                kmeans_init=True,
                threshold_ema_dead_code=2,
            )

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        quantized, token_ids, *losses = self.layer(latents.flatten(1, -2))
        loss = losses[0].sum() if losses else latents.new_zeros(())
        shape = latents.shape[:-1]
        return QuantizerOutput(quantized.view(*shape, -1), token_ids.long().view(*shape, 1), loss)


@dataclass
class Pictures:
    """Pixels of both splits, `(number, 1, 3, size, size)` float32 in [-1, 1]."""

    train: torch.Tensor
    validation: torch.Tensor


def read_pictures(clips: DatasetDict, image_size: int, number: int) -> Pictures:
    """The first frames of the first clips of each split."""
    pixels = {}
    for split in ("train", "validation"):
        rows = clips[split].select(range(min(number, len(clips[split]))))
        frames = [row["frames"][0].convert("RGB").resize((image_size, image_size)) for row in rows]
        pixels[split] = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[:, None].float() / 127.5 - 1
    return Pictures(**pixels)


def train(name: str, side: str, pictures: Pictures, steps: int, seed: int) -> dict:
    """Returns `psnr` (dB), `used_codes` (per cent), `perplexity` and `steps_per_second`."""
    torch.manual_seed(seed)
    config = ImageTokenizerConfig(
        image_size=pictures.train.shape[-1],
        num_frames=1,
        patch_size=4,
        block_out_channels=(64, 128),
        mid_block_add_attention=False,
        quantizer=name,
        codebook_size=CODES,
        fsq_levels=LEVELS,
        code_dim=CODE_DIM,
        commitment_weight=COMMITMENT_WEIGHT if side == "ours" else 1.0,
        entropy_weight=ENTROPY_WEIGHT,
    )
    model = ImageTokenizer(config)
    if side == "library":
        model.quantizer = LibraryQuantizer(name, config.block_out_channels[-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in tqdm(range(steps), desc=f"{name}, {side}, seed {seed}", leave=False):
        rows = torch.randint(len(pictures.train), (32,), generator=order)
        optimizer.zero_grad()
        model(pixel_values=pictures.train[rows]).loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        outputs = [model(pixel_values=pixels) for pixels in pictures.validation.split(32)]
    errors = torch.cat([each.reconstruction for each in outputs]).clamp(-1, 1) - pictures.validation
    mean_squares = errors.square().mean((1, 2, 3, 4)) / 4
    usage = codebook_usage(torch.cat([each.token_ids for each in outputs]), CODES)
    return {
        "psnr": float(-10 * mean_squares.log10().mean()),
        "used_codes": 100 * usage["used_codes"] / CODES,
        "perplexity": usage["perplexity"],
        "steps_per_second": steps / seconds,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantizers", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="folder of prepared clips")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--num_pictures", type=int, default=1000, help="of each split, at most")
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=QUANTIZERS)
    arguments = parser.parse_args(argv)
    pictures = read_pictures(load_from_disk(arguments.dataset), arguments.image_size, arguments.num_pictures)
    print(
        f"{machine('cpu')}, {torch.get_num_threads()} threads, {CODES} codes, {arguments.steps} steps of 32 pictures"
    )
    print("| quantizer | side | PSNR, dB | codes used, % | perplexity | steps/s |\n|---|---|---:|---:|---:|---:|")
    for name in arguments.quantizers:
        runs = {"ours": [], "library": []}
        for seed in range(arguments.seeds):
            for side in runs:
                runs[side].append(train(name, side, pictures, arguments.steps, seed))
        for side, figures in runs.items():
            medians = {key: statistics.median(run[key] for run in figures) for key in figures[0]}
            cells = "{psnr:.2f} | {used_codes:.0f} | {perplexity:.0f} | {steps_per_second:.1f}".format(**medians)
            print(f"| {name} | {side} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
