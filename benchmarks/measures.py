"""What is measured: each function runs one side of one measure, in its own process, and returns its figures.

Both sides get the same work: the same masked batches, the same layer shapes, the same rows, as many tokens to generate
in as many steps. `run.py` starts the processes, one side after the other, and compares.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader

from benchmarks.baseline import IGNORED, Baseline4M, MaskedDataset
from benchmarks.baseline import generate as baseline_generate
from benchmarks.preparation import KEY_FRAMES, prepare
from modeling_nano4m import Nano4MConfig, Nano4MModel, UnmaskingScheduler
from trainers import DrawnRows, DrawSampler, MaskingCollator

MODALITIES = ("depth", "normal", "rgb", "text")  # sorted, as the modality ids of nano4M are
MATMUL_TURNS = 4  # of each size of matrices


@dataclass(frozen=True)
class Sizes:
    """The model and how much work a side does; the defaults are the course's configuration.

    Args:
        vocab_sizes: of the four modalities, `num_tokens` tokens each.
        slots: largest number of input, and of target, tokens of a sample; both are drawn uniformly from 1 to it.
        warmup_steps, timed_steps: of training. Batches differ in size, and memory grows until the first large ones.
        masking_batch_size, masking_rows, masking_seconds: rows are masked over and over for at least that long.
        generation_steps, generation_batch_size: of nano4M; the baseline takes one sample at a time.
        audio_clips, audio_batches: clips of 3 s that are encoded at a time, and how many times.
        image_size, image_batch_size, image_seconds: pictures are encoded for at least that long.
        matmul_sizes, matmul_seconds: sides of the square matrices whose product shows what the machine can do, and
            how long each is repeated.
        video_seconds, video_height: of the video to prepare.
    """

    vocab_sizes: tuple[int, ...] = (64_000, 64_000, 64_000, 50_304)
    num_tokens: int = 256
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_heads: int = 8
    num_layers: int = 6
    batch_size: int = 8
    slots: int = 128
    warmup_steps: int = 8
    timed_steps: int = 6
    masking_batch_size: int = 64
    masking_rows: int = 2048
    masking_seconds: float = 3.0
    generation_steps: int = 64
    generation_batch_size: int = 8
    audio_clips: int = 16
    audio_batches: int = 8
    image_size: int = 256
    image_batch_size: int = 2
    image_seconds: float = 5.0
    matmul_sizes: tuple[int, ...] = (1024, 2048, 4096)
    matmul_seconds: float = 4.0
    video_seconds: float = 1200.0
    video_height: int = 1080
    device: str = "cpu"
    compiled: bool = False


QUICK = Sizes(
    vocab_sizes=(60, 60, 60, 50),
    num_tokens=16,
    hidden_size=32,
    intermediate_size=64,
    num_heads=2,
    num_layers=1,
    batch_size=4,
    slots=8,
    warmup_steps=1,
    timed_steps=2,
    masking_batch_size=8,
    masking_rows=16,
    masking_seconds=0.0,
    generation_steps=4,
    generation_batch_size=2,
    audio_clips=1,
    audio_batches=1,
    image_size=32,
    image_batch_size=1,
    image_seconds=0.0,
    matmul_sizes=(64, 128),
    matmul_seconds=0.0,
    video_seconds=6.0,
    video_height=64,
)


def modalities_of(sizes: Sizes) -> dict[str, dict]:
    """`Nano4MConfig.modalities`."""
    return {
        name: {"vocab_size": vocab_size, "token_axes": [["index", sizes.num_tokens]]}
        for name, vocab_size in zip(MODALITIES, sizes.vocab_sizes, strict=True)
    }


def our_model(sizes: Sizes, tie_word_embeddings: bool = True) -> Nano4MModel:
    """nano4M with one table of ids and one head for all modalities, as the baseline has."""
    config = Nano4MConfig(
        modalities=modalities_of(sizes),
        share_vocabularies=True,
        tie_word_embeddings=tie_word_embeddings,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_attention_heads=sizes.num_heads,
        num_encoder_layers=sizes.num_layers,
        num_decoder_layers=sizes.num_layers,
    )
    return Nano4MModel(config).to(sizes.device)


def baseline_model(sizes: Sizes) -> Baseline4M:
    return Baseline4M(
        vocab_size=max(sizes.vocab_sizes),
        num_modalities=len(MODALITIES),
        num_tokens=sizes.num_tokens,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_heads=sizes.num_heads,
        num_encoder_layers=sizes.num_layers,
        num_decoder_layers=sizes.num_layers,
    ).to(sizes.device)


def masked_batches(sizes: Sizes, count: int, seed: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Random tokens, split at random, in `slots` input and `slots` target slots, padded behind."""
    generator = torch.Generator().manual_seed(seed)
    vocab_sizes = torch.tensor(sizes.vocab_sizes)
    for _ in range(count):
        # Tokens of a clip, numbered through its modalities and shuffled: inputs are taken first, targets next.
        order = torch.rand(sizes.batch_size, len(MODALITIES) * sizes.num_tokens, generator=generator).argsort(1)
        batch = {}
        for side, chosen in (("input", order[:, : sizes.slots]), ("target", order[:, sizes.slots : 2 * sizes.slots])):
            budgets = torch.randint(1, sizes.slots + 1, (sizes.batch_size, 1), generator=generator)
            valid = torch.arange(sizes.slots) < budgets
            modality_ids = chosen // sizes.num_tokens
            ids = (torch.rand(chosen.shape, generator=generator) * vocab_sizes[modality_ids]).long()
            batch[f"{side}_ids"] = ids * valid
            batch[f"{side}_modality_ids"] = modality_ids * valid
            batch[f"{side}_position_ids"] = chosen % sizes.num_tokens * valid
            batch[f"{side}_valid_mask"] = valid
        yield {key: value.to(sizes.device) for key, value in batch.items()}


def as_ours(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch as `MaskingCollator` lays it out: cut to its longest sample, and everything given at once."""
    cut = cut_to_longest(batch)
    return {**cut, "input_steps": torch.zeros_like(cut["input_ids"])}


def cut_to_longest(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch without slots that no sample fills."""
    longest = {side: int(batch[f"{side}_valid_mask"].sum(1).max()) for side in ("input", "target")}
    return {key: value[:, : longest[key.split("_")[0]]] for key, value in batch.items()}


def as_baseline(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch with the padded targets marked for `F.cross_entropy`."""
    return {**batch, "target_ids": batch["target_ids"].masked_fill(~batch["target_valid_mask"], IGNORED)}


def training_flops(sizes: Sizes, batch: dict[str, torch.Tensor]) -> float:
    """Operations that forward and backward of a batch need: real tokens only, attention only where it may look.

    Three passes (forward, gradients of activations, gradients of weights) of two operations per multiply-add.
    """
    width, feed_forward = sizes.hidden_size, 2 * sizes.hidden_size * sizes.intermediate_size
    inputs = batch["input_valid_mask"].sum(1) + 1  # and the start state
    targets = batch["target_valid_mask"].sum(1)
    membership = F.one_hot(batch["target_modality_ids"], len(MODALITIES)) * batch["target_valid_mask"][..., None]
    # The decoder's keys and values of cross-attention are computed for input tokens.
    per_input = sizes.num_layers * (4 * width**2 + feed_forward + 2 * width**2)
    per_target = sizes.num_layers * (6 * width**2 + feed_forward)
    head = (membership.sum(1) * torch.tensor(sizes.vocab_sizes, device=targets.device)).sum(1) * width
    pairs = inputs**2 + inputs * targets + (membership.sum(1) ** 2).sum(1)
    # Each pair of a query and a key costs a product of `width` numbers for its score and another for its value.
    attention = sizes.num_layers * 2 * width * pairs
    return 6.0 * float((inputs * per_input + targets * per_target + head + attention).sum())


def train(side: str, sizes: Sizes, dtype: torch.dtype = torch.float32, tie_word_embeddings: bool = True) -> dict:
    """Forward, loss, backward and optimizer step, over and over.

    Returns: `tokens_per_second` (real tokens), `flops_per_second`, `seconds_per_step`, of the timed steps;
    `peak_mib`, the most memory that model, gradients, optimizer and activations took at once; `loss` of the last
    step; `parameters`.
    """
    torch.manual_seed(0)
    batches = list(masked_batches(sizes, sizes.warmup_steps + sizes.timed_steps))
    before = _memory_now(sizes.device)
    if side == "ours":
        model = our_model(sizes, tie_word_embeddings)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)  # what transformers' Trainer makes
        prepare = as_ours
    else:
        model = baseline_model(sizes)
        optimizer = torch.optim.AdamW(model.parameters())
        prepare = as_baseline
    forward = torch.compile(model) if sizes.compiled else model
    for step, batch in enumerate(batches):
        if step == sizes.warmup_steps:
            start = _clock(sizes.device)
        with torch.autocast(sizes.device, dtype, enabled=dtype != torch.float32):
            output = forward(**prepare(batch))
        loss = output.loss if side == "ours" else output[0]
        # As a training loop that keeps nothing but the loss.
        del output
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = _clock(sizes.device) - start
    timed = batches[sizes.warmup_steps :]
    tokens = sum(int(batch["input_valid_mask"].sum() + batch["target_valid_mask"].sum()) for batch in timed)
    return {
        "tokens_per_second": tokens / seconds,
        "flops_per_second": sum(training_flops(sizes, batch) for batch in timed) / seconds,
        "seconds_per_step": seconds / len(timed),
        "peak_mib": _memory_peak(sizes.device) - before,
        "loss": float(loss.detach()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def matmul_peak(sizes: Sizes, dtype: torch.dtype = torch.float32) -> dict:
    """Products of two square matrices over and over, of the size that is fastest.

    Returns `flops_per_second`, held for `matmul_seconds` in all, as training has to hold its own; and the `size`.
    """
    operands = {size: torch.randn(2, size, size, device=sizes.device, dtype=dtype) for size in sizes.matmul_sizes}
    done = {size: np.zeros(2) for size in operands}  # operations, seconds

    def multiply(size: int) -> int:
        torch.mm(*operands[size])
        return 2 * size**3

    for turn in range(MATMUL_TURNS + 1):
        for size in operands:  # in turns, so that no lucky moment of the machine makes one of them the fastest
            taken = repeat(partial(multiply, size), sizes.matmul_seconds / MATMUL_TURNS, sizes.device)
            done[size] += taken if turn else 0  # the first one is to get warm
    best = max(done, key=lambda size: done[size][0] / done[size][1])
    return {"flops_per_second": float(done[best][0] / done[best][1]), "size": best}


def mask_rows(side: str, sizes: Sizes) -> dict:
    """From rows to masked batches. Returns `samples_per_second`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lengths = {name: [sizes.num_tokens] * sizes.masking_rows for name in MODALITIES}
    lengths["text"] = rng.integers(1, sizes.num_tokens + 1, sizes.masking_rows).tolist()
    columns = {
        f"{name}_ids": [rng.integers(vocab_size, size=length) for length in lengths[name]]
        for name, vocab_size in zip(MODALITIES, sizes.vocab_sizes, strict=True)
    }
    # As `tokenize_dataset.py` stores them.
    rows = Dataset.from_dict(columns, features=Features({name: List(Value("int32")) for name in columns}))
    if side == "ours":
        # The baseline knows no condition batches.
        collator = MaskingCollator(modalities_of(sizes), sizes.slots, sizes.slots, condition_probability=0.0)
        drawn = DrawnRows([rows])
        loader = DataLoader(drawn, sizes.masking_batch_size, sampler=DrawSampler(drawn), collate_fn=collator)
    else:
        masked = MaskedDataset(rows, list(MODALITIES), sizes.slots, sizes.slots)
        loader = DataLoader(masked, sizes.masking_batch_size, shuffle=True)
    next(iter(loader))
    samples, seconds = repeat(lambda: sum(len(batch["target_ids"]) for batch in loader), sizes.masking_seconds)
    return {"samples_per_second": samples / seconds, "samples": samples}


def generate(side: str, sizes: Sizes) -> dict:
    """One modality from another one, positions in random order, equally many in each step.

    Returns `tokens_per_second` and `batch_size`.
    """
    torch.manual_seed(0)
    condition = torch.randint(sizes.vocab_sizes[0], (sizes.generation_batch_size, sizes.num_tokens))
    condition = condition.to(sizes.device)
    if side == "ours":
        batch_size = sizes.generation_batch_size
        model, scheduler = our_model(sizes).eval(), UnmaskingScheduler(schedule="constant", order="random")

        def run(num_steps: int) -> torch.Tensor:
            return model.generate(
                {MODALITIES[0]: condition},
                MODALITIES[1],
                num_inference_steps=num_steps,
                scheduler=scheduler,
                seed=0,
            )
    else:
        batch_size = 1
        model = baseline_model(sizes).eval()
        positions = torch.arange(sizes.num_tokens, device=sizes.device)

        def run(num_steps: int) -> torch.Tensor:
            given = condition[0], torch.zeros_like(positions), positions
            return baseline_generate(model, *given, 1, sizes.num_tokens, sizes.vocab_sizes[1], num_steps)

    run(2)
    start = _clock(sizes.device)
    token_ids = run(sizes.generation_steps)
    seconds = _clock(sizes.device) - start
    return {"tokens_per_second": token_ids.numel() / seconds, "batch_size": batch_size}


def repeat(work: Callable[[], int], seconds: float, device: str = "cpu") -> tuple[int, float]:
    """Do the same over and over for at least so long. Returns the sum of what it returned, and the seconds it took."""
    start = _clock(device)
    amount = work()
    while (passed := _clock(device) - start) < seconds:
        amount += work()
    return amount, passed


def _clock(device: str) -> float:
    """Seconds, once everything asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory_now(device: str) -> float:
    """MiB in use: of the device if there is one, else of this process."""
    return _status_mib("VmRSS") if device == "cpu" else torch.cuda.memory_allocated() / 2**20


def _memory_peak(device: str) -> float:
    """MiB in use at most since the process began."""
    return _status_mib("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20


def _status_mib(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        raise RuntimeError(
            "memory is read from /proc/self/status, which this system lacks: run the benchmarks on Linux"
        )
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


@dataclass(frozen=True)
class Measure:
    """A figure of both sides, and what the ratio ours / baseline must be and aims to be.

    Args:
        name, unit: of the row in the table.
        figure: which of the figures that `ours` and `baseline` return; `scale` converts it to `unit`.
        ours, baseline: called with `Sizes`, each in a process of its own.
        must, aim: least ratio, or the largest if `smaller_is_better`; None if there is no target.
    """

    name: str
    unit: str
    figure: str
    ours: Callable[[Sizes], dict]
    baseline: Callable[[Sizes], dict]
    must: float | None = None
    aim: float | None = None
    smaller_is_better: bool = False
    scale: float = 1.0


def measures(device: str) -> dict[str, Measure]:
    """All measures of a device, by name."""
    chosen = _cpu_measures() if device == "cpu" else _cuda_measures()
    return {measure.name: measure for measure in chosen}


def _cpu_measures() -> list[Measure]:
    rows = []
    # The baseline never ties: tying is one of the ways in which ours needs less. Without it, what the others give.
    for suffix, tied in (("", True), ("_untied", False)):
        for name, dtype, must, aim in (("fp32", torch.float32, 2.2, 2.7), ("bf16", torch.bfloat16, 2.5, 3.3)):
            sides = (
                partial(train, "ours", dtype=dtype, tie_word_embeddings=tied),
                partial(train, "baseline", dtype=dtype),
            )
            rows.append(Measure(f"training_{name}{suffix}", "real tokens/s", "tokens_per_second", *sides, must, aim))
        sides = partial(_three_steps, "ours", tie_word_embeddings=tied), partial(_three_steps, "baseline")
        rows.append(Measure(f"memory{suffix}", "MiB at most", "peak_mib", *sides, 0.6, 0.4, smaller_is_better=True))
    sides = partial(mask_rows, "ours"), partial(mask_rows, "baseline")
    rows.append(Measure("masking", "samples/s", "samples_per_second", *sides, 15, 40))
    sides = partial(generate, "ours"), partial(generate, "baseline")
    rows.append(Measure("generation", "tokens/s", "tokens_per_second", *sides, 2, 8))
    for name, key_frames in KEY_FRAMES.items():
        sides = partial(prepare, "ours", key_frames=key_frames), partial(prepare, "baseline", key_frames=key_frames)
        rows.append(Measure(name, "clips/s", "clips_per_second", *sides, 3, 10))
    # The machine itself is the baseline here: the fastest matrix product it can do.
    sides = partial(train, "ours"), matmul_peak
    rows.append(Measure("model_flops", "GFLOP/s", "flops_per_second", *sides, 0.6, 0.75, scale=1e-9))
    return rows


def _cuda_measures() -> list[Measure]:
    rows = []
    for width in (512, 1024):
        sides = partial(_train_compiled, "ours", width), partial(_train_compiled, "baseline", width)
        rows += [
            Measure(f"cuda_{width}_training", "real tokens/s", "tokens_per_second", *sides),
            Measure(f"cuda_{width}_memory", "MiB at most", "peak_mib", *sides, smaller_is_better=True),
        ]
        peak = partial(matmul_peak, dtype=torch.bfloat16)
        for name, side in zip(("model_flops", "baseline_flops"), sides, strict=True):
            rows.append(Measure(f"cuda_{width}_{name}", "GFLOP/s", "flops_per_second", side, peak, scale=1e-9))
    return rows


def _three_steps(side: str, sizes: Sizes, tie_word_embeddings: bool = True) -> dict:
    return train(side, replace(sizes, warmup_steps=1, timed_steps=2), tie_word_embeddings=tie_word_embeddings)


def _train_compiled(side: str, width: int, sizes: Sizes) -> dict:
    """What a GPU is used for: bfloat16, `torch.compile`, batches that fill it."""
    sizes = replace(
        sizes,
        hidden_size=width,
        intermediate_size=4 * width,
        num_heads=width // 64,
        batch_size=8 * sizes.batch_size,
        warmup_steps=10 * sizes.warmup_steps,
        timed_steps=10 * sizes.timed_steps,
        compiled=True,
    )
    return train(side, sizes, torch.bfloat16)
