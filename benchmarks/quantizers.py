"""Quantizers of the image tokenizers beside those of `vector-quantize-pytorch`, trained alike.

    python -m benchmarks.quantizers --dataset my_clips

Both sides put their quantizer between the same encoder and decoder, with the same initial weights, pictures, losses
and steps, and as many codes. VQ of the library gets what its manual advises against unused codes. What becomes of it
is measured as `evaluate_tokenizer.py` does, on the validation clips; figures are means over the seeds.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from datasets import load_from_disk
from torch import nn
from tqdm import tqdm
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

from benchmarks.run import machine
from tokenizers_4m import ImageTokenizer, ImageTokenizerConfig
from tokenizers_4m.image.configuration_frames import QUANTIZERS
from tokenizers_4m.quantizer import QuantizerOutput
from trainers.tokenizer_evaluation import MEASURES, batches_of, clips_of, evaluate_tokenizer

CODES, LEVELS, CODE_DIM = 256, (8, 8, 4), 8
COMMITMENT_WEIGHT, ENTROPY_WEIGHT = 0.25, 0.1
SIDES = ("ours", "library")
# Of what is measured of tokenizers, and how fast they are trained.
COLUMNS = ("psnr", "codebook_use", "perplexity", "stable_under_shift", "stable_under_noise", "nats_per_token")
COLUMNS = {name: MEASURES[name] for name in COLUMNS} | {"steps_per_second": ("steps/s", "{:.1f}")}


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

    def lookup(self, token_ids: torch.LongTensor) -> torch.Tensor:
        shape, indices = token_ids.shape[:-1], token_ids.flatten(1)
        if isinstance(self.layer, VectorQuantize):
            return self.layer.get_output_from_indices(indices).view(*shape, -1)
        return self.layer.indices_to_codes(indices).view(*shape, -1)

    def code_vectors(self) -> torch.Tensor:
        return self.layer.implicit_codebook if isinstance(self.layer, FSQ) else self.layer.codebook


def train(name: str, side: str, pixels: torch.Tensor, steps: int, seed: int) -> tuple[ImageTokenizer, float]:
    """The tokenizer after so many steps on `pixels` (clips, frames, 3, size, size), and steps per second."""
    torch.manual_seed(seed)
    config = ImageTokenizerConfig(
        image_size=pixels.shape[-1],
        num_frames=pixels.shape[1],
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
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in tqdm(range(steps), desc=f"{name}, {side}, seed {seed}", leave=False):
        rows = torch.randint(len(pixels), (max(1, 32 // config.num_frames),), generator=order)
        optimizer.zero_grad()
        model(pixel_values=pixels[rows]).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), steps / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantizers", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="folder of prepared clips")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--learnability_steps", type=int, default=300)
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=QUANTIZERS)
    arguments = parser.parse_args(argv)
    clips = load_from_disk(arguments.dataset)
    rows = clips_of(clips, "train", "image")
    num_frames = len(rows[0]["frames"])
    reader = ImageTokenizer(
        ImageTokenizerConfig(image_size=arguments.image_size, num_frames=num_frames, block_out_channels=(8, 8))
    )
    pixels = torch.cat([reader.preprocess(media) for media in batches_of(rows, "image", 64)])
    print(f"{machine('cpu')}, {torch.get_num_threads()} threads; {CODES} codes, {arguments.steps} steps\n")
    print("| quantizer | side |", " | ".join(label for label, _ in COLUMNS.values()), "|")
    print("|---|---|" + "---:|" * len(COLUMNS))
    for name in arguments.quantizers:
        runs = {side: [] for side in SIDES}
        for seed in range(arguments.seeds):
            for side in SIDES:
                model, speed = train(name, side, pixels, arguments.steps, seed)
                figures = evaluate_tokenizer(model, clips, learnability_steps=arguments.learnability_steps)
                runs[side].append(figures | {"steps_per_second": speed})
        for side, figures in runs.items():
            means = {key: statistics.mean(run[key] for run in figures) for key in COLUMNS}
            cells = [form.format(means[key]) for key, (_, form) in COLUMNS.items()]
            print(f"| {name} | {side} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
