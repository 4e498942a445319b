"""What a tokenizer keeps, and what it costs: one dictionary of figures, and a table of several of them.

Reconstruction is measured between what the tokenizer gets, at its own size and rate, and what it decodes.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from dataset_scripts.tokenization import MEDIA_COLUMNS, check_clips_fit, rows_with
from tokenizers_4m import TokenizerContract
from trainers.evaluation.judges import chance, right_attributes, truths_of
from trainers.learnability import make_from_attributes, nats_per_token
from trainers.metrics import load_metric
from trainers.metrics.rfid.rfid import network_of
from trainers.own_code import load_own_code, names_own_code

# Clips of the split "train" whose tokens the model of the learnability measure sees.
LEARNABILITY_CLIPS = 2000
NOISE_DECIBELS = 40  # below the clip
SHIFT_SECONDS = 0.001  # of sound

# Name in the table and format of each figure, in the table's order.
MEASURES = {
    "clips": ("clips", "{:.0f}"),
    "vocab_size": ("vocabulary", "{:.0f}"),
    "tokens_per_clip": ("tokens per clip", "{:.1f}"),
    "tokens_per_second": ("tokens per second of sound", "{:.1f}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "rfid": ("rFID", "{:.4g}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "stft_distance": ("multi-resolution STFT distance", "{:.3f}"),
    "mel_distance": ("mel distance, nats", "{:.3f}"),
    "si_sdr": ("SI-SDR, dB", "{:.2f}"),
    "exact_match": ("exact match", "{:.1%}"),
    "character_error": ("character error", "{:.2%}"),
    "word_error": ("word error", "{:.1%}"),
    "word_error_on_real": ("word error on real clips", "{:.1%}"),
    "judged_right": ("judged right", "{:.1%}"),
    "judged_right_on_real": ("judged right, real clips", "{:.1%}"),
    "judged_relative": ("judged right, relative to real clips", "{:.1%}"),
    "judged_generated": ("judged right, made by a small nano4M from the attributes", "{:.1%}"),
    "judged_chance": ("judged right, by chance", "{:.1%}"),
    "codebook_use": ("codebook entries used", "{:.1%}"),
    "perplexity": ("codebook perplexity", "{:.1f}"),
    "stable_under_shift": ("ids kept under a shift", "{:.1%}"),
    "stable_under_noise": ("ids kept under 40 dB noise", "{:.1%}"),
    "entropy": ("unigram entropy, nats per token", "{:.3f}"),
    "nats_per_token": ("learnability, nats per token", "{:.3f}"),
    "nats_per_clip": ("learnability, nats per clip", "{:.1f}"),
    "encode_clips_per_second": ("encoding, clips/s", "{:.1f}"),
    "decode_clips_per_second": ("decoding, clips/s", "{:.1f}"),
    "encode_seconds_per_second": ("encoding, seconds of sound per second", "{:.0f}"),
}


def evaluate_tokenizer(
    tokenizer: TokenizerContract,
    clips: DatasetDict,
    split: str = "validation",
    num_clips: int | None = None,
    batch_size: int = 32,
    learnability_steps: int = 300,
    recogniser=None,
    feature_network: str | None = None,
    judge=None,
) -> dict:
    """Measure a tokenizer on the clips of a split that have its modality.

    Args:
        tokenizer: in evaluation mode, on the device to measure on.
        clips: prepared clips, as `datasets.load_from_disk` returns them.
        num_clips: at most so many, the first ones; all if None.
        learnability_steps: of the small nano4M (see `trainers.learnability`), which learns from the split "train" and
            is measured on `split`; 0 leaves it out. With a judge, another one learns to make clips from their
            attributes, and what it makes for those of `split` is judged.
        recogniser: reads words from sound: `transcribe(waveforms, sampling_rate) -> list of strings`.
        feature_network: of rFID, see `trainers.metrics.rfid`.
        judge: reads attributes of clips before and after, see `trainers.evaluation.judges`.

    Returns:
        The figures of `MEASURES` that the modality has, and `modality`, `model_type`, `fingerprint`, `split`,
        `device`, `learnability_steps`, for images the `feature_network`, and `skipped`: a reason for each metric that
        could not be measured. Stability is the share of ids that stay the same when a picture is moved by one pixel,
        or sound by 1 ms, and under white noise 40 dB below the clip. Perplexity, entropy and use are means over
        codebooks where there are several.

    Raises:
        ValueError: there is no such split, no clip in it has the modality, or clips have another length, number of
            frames or sampling rate than the tokenizer takes: it would measure what it made of them. Or a number is too
            small, `feature_network` cannot be read, or the judge knows no clip to learn from or to judge.
    """
    for name, value, least in (
        ("num_clips", num_clips, 1),
        ("batch_size", batch_size, 1),
        ("learnability_steps", learnability_steps, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    modality = tokenizer.modality
    if modality == "image":
        network_of(feature_network)  # else a wrong file is found out when all else is done
    rows = clips_of(clips, split, modality, num_clips)
    check_clips_fit(DatasetDict({split: rows}), {modality: tokenizer})
    # Before anything is measured, so that nothing is lost if there is nothing to train on.
    training = clips_of(clips, "train", modality, LEARNABILITY_CLIPS) if learnability_steps else None
    truths = None if judge is None else truths_of(judge, rows)
    training_truths = None if judge is None or training is None else truths_of(judge, training)
    if training_truths is not None:
        names = [sorted(next(filter(None, side))) for side in (training_truths, truths)]
        if names[0] != names[1]:
            raise ValueError(f"the judge knows {names[0]} of clips of 'train', but {names[1]} of those of {split!r}")
    token_ids, valid_mask, originals, reconstructions, seconds = _round_trip(tokenizer, rows, batch_size)
    config, per_clip = tokenizer.config, float(valid_mask.sum(1).float().mean())
    results = {
        "modality": modality,
        "model_type": config.model_type,
        "fingerprint": tokenizer.fingerprint(),
        "split": split,
        "device": f"{tokenizer.device.type}, {torch.get_num_threads()} threads",
        "clips": len(rows),
        "vocab_size": config.vocab_size,
        "tokens_per_clip": per_clip,
        "encode_clips_per_second": len(rows) / seconds["encode"],
        "decode_clips_per_second": len(rows) / seconds["decode"],
    }
    if modality == "audio":
        clip_seconds = config.num_samples / config.sampling_rate
        results["tokens_per_second"] = per_clip / clip_seconds
        results["encode_seconds_per_second"] = results["encode_clips_per_second"] * clip_seconds
    results |= codebook_figures(tokenizer, token_ids, valid_mask)
    results |= _reconstruction(tokenizer, originals, reconstructions, feature_network)
    if modality == "audio" and recogniser is not None:
        results |= _word_errors(recogniser, rows["text"], originals, reconstructions, config.sampling_rate)
    if judge is not None:
        results |= _judged(judge, tokenizer, truths, originals, reconstructions)
    if modality != "text":
        results |= _stability(tokenizer, rows, batch_size, token_ids)
    if learnability_steps:
        results["learnability_steps"] = learnability_steps
        encoded = (tokenizer.encode_media(media) for media in batches_of(training, modality, batch_size))
        with torch.inference_mode():
            train = [row for ids, mask in encoded for row in _real_ids(ids, mask)]
        options = {
            "steps": learnability_steps,
            "token_vectors": tokenizer.token_vectors(),
            "use_cpu": tokenizer.device.type == "cpu",
        }
        rows_of_ids = {"train": train, "validation": _real_ids(token_ids, valid_mask)}
        nats = nats_per_token(tokenizer.describe(), rows_of_ids, **options)
        results |= {"nats_per_token": nats, "nats_per_clip": nats * per_clip}
        if judge is not None:
            known = [(ids, truth) for ids, truth in zip(train, training_truths, strict=True) if truth is not None]
            wanted = [truth for truth in truths if truth is not None]
            made = make_from_attributes(tokenizer.describe(), *zip(*known, strict=True), wanted, **options)
            results |= _judged_generated(judge, tokenizer, wanted, made.split(batch_size))
    return results


def results_table(results: dict[str, dict]) -> str:
    """A Markdown table, readable on a terminal: a row for each measure that one has, a column for each tokenizer."""
    lines = [["measure", *results]]
    for key, (label, form) in MEASURES.items():
        values = [result.get(key) for result in results.values()]
        if any(value is not None for value in values):
            lines.append([label, *("" if value is None else form.format(value) for value in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def json_figures(results: dict) -> dict:
    """The same without what JSON cannot hold: a figure that is not finite becomes None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in results.items()
    }


def load_recogniser(name: str):
    """A recogniser by name: `grid` for the sentences of GRID, or `FILE.py:Name` for a class without arguments.

    Raises:
        ValueError: there is none of that name, or what it needs is not installed.
    """
    if name == "grid":
        try:
            from dataset_scripts.grid_judges import GridJudge

            return GridJudge()
        except ImportError as error:
            raise ValueError(f"recogniser 'grid' cannot be used: {error}") from error
    if names_own_code(name):
        return load_own_code("recogniser", name, "transcribe")
    raise ValueError(f"recogniser {name!r}: give 'grid' or FILE.py:Name")


def clips_of(clips: DatasetDict, split: str, modality: str, number: int | None = None) -> Dataset:
    """The first clips of a split that have a modality.

    Raises:
        ValueError: there is no such split, or none has it.
    """
    if split not in clips:
        raise ValueError(f"the data have no split {split!r}, only {', '.join(clips)}")
    rows = clips[split]
    chosen = rows_with(rows, [modality])[:number]
    if not len(chosen):
        raise ValueError(f"no clip of the split {split!r} has {modality}")
    return rows.select(chosen)


def batches_of(rows: Dataset, modality: str, batch_size: int) -> Iterator[list]:
    """The media of one modality, so many clips at a time."""
    column = MEDIA_COLUMNS[modality]
    for batch in rows.select_columns(column).with_format("numpy").iter(batch_size):
        yield list(batch[column])


def codebook_figures(tokenizer: TokenizerContract, token_ids: torch.Tensor, valid_mask: torch.Tensor) -> dict:
    """Use, perplexity and entropy of the ids `(clips, num_tokens)`; means over codebooks if there are several."""
    axes = tokenizer.config.token_axes
    shape = (len(token_ids), *axes.values())
    ids, mask = token_ids.reshape(shape), valid_mask.reshape(shape)
    place = 1 + list(axes).index("codebook") if "codebook" in axes else None
    books = range(shape[place]) if place is not None else [None]
    metric, figures = load_metric("codebook_use"), []
    for book in books:
        of_book = (ids, mask) if book is None else (ids.select(place, book), mask.select(place, book))
        figures.append(
            metric.compute(predictions=[of_book[0][of_book[1]].tolist()], vocab_size=tokenizer.config.vocab_size)
        )
    return {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}


@torch.inference_mode()
def _round_trip(tokenizer: TokenizerContract, rows: Dataset, batch_size: int) -> tuple:
    """Ids and their mask, media before and after as `postprocess` gives them, and the seconds it took."""
    ids, masks, originals, reconstructions = [], [], [], []
    seconds = {"encode": 0.0, "decode": 0.0}

    @contextlib.contextmanager
    def timed(stage: str):
        started = time.perf_counter()
        yield
        seconds[stage] += time.perf_counter() - started

    for number, media in enumerate(batches_of(rows, tokenizer.modality, batch_size)):
        batch = _preprocessed(tokenizer, media)
        if number == 0:  # what is set up on first use is not part of the speed
            tokenizer.decode(tokenizer.encode(batch))
        with timed("encode"):
            token_ids = tokenizer.encode(batch).cpu()
        on_device = token_ids.to(tokenizer.device)
        with timed("decode"):
            decoded = _decoded(tokenizer, on_device)
        ids.append(token_ids)
        masks.append(tokenizer.valid_mask(token_ids))
        originals += tokenizer.postprocess(batch)
        reconstructions += tokenizer.postprocess(decoded)
    return torch.cat(ids), torch.cat(masks), originals, reconstructions, seconds


def _reconstruction(tokenizer: TokenizerContract, originals: list, reconstructions: list, feature_network) -> dict:
    """The metrics of the modality, and why some could not be measured."""
    arguments = {
        "image": {"psnr": {}, "ssim": {}, "rfid": {"feature_network": feature_network}, "lpips": {}},
        "audio": {
            "stft_distance": {},
            "mel_distance": {"sampling_rate": getattr(tokenizer.config, "sampling_rate", None)},
            "si_sdr": {},
        },
        "text": {"exact_match": {}, "character_error": {}},
    }[tokenizer.modality]
    if tokenizer.modality == "image":
        originals, reconstructions = (
            [frame for clip in clips for frame in clip] for clips in (originals, reconstructions)
        )
    results, skipped = {}, {}
    for name, options in arguments.items():
        try:
            results |= load_metric(name).compute(predictions=reconstructions, references=originals, **options)
        except (ValueError, FileNotFoundError) as error:
            skipped[name] = str(error)
    return {**results, "skipped": skipped}


def _word_errors(recogniser, texts: list[str], originals: list, reconstructions: list, sampling_rate: int) -> dict:
    """Word error of decoded and of real sound, over the clips with a text."""
    spoken = [index for index, text in enumerate(texts) if text.strip()]
    if not spoken:
        return {}
    results = {}
    for name, waveforms in (("word_error", reconstructions), ("word_error_on_real", originals)):
        heard = recogniser.transcribe([waveforms[index] for index in spoken], sampling_rate)
        references = [texts[index] for index in spoken]
        results[name] = load_metric("word_error").compute(predictions=heard, references=references)["word_error"]
    return results


def _judged(judge, tokenizer: TokenizerContract, truths: list, originals: list, reconstructions: list) -> dict:
    """Share of attributes that the judge reads as they truly are, after decoding and on real clips.

    Clips whose truth the judge does not know are left out, `judged_clips` are not.
    """
    sampling_rate = getattr(tokenizer.config, "sampling_rate", None)
    places = [place for place, truth in enumerate(truths) if truth is not None]
    decoded, real = (
        float(
            right_attributes(
                judge,
                tokenizer.modality,
                [media[place] for place in places],
                sampling_rate,
                [truths[place] for place in places],
            ).mean()
        )
        for media in (reconstructions, originals)
    )
    relative = decoded / real if real else math.nan
    figures = {"judged_right": decoded, "judged_right_on_real": real, "judged_relative": relative}
    return {"judged_clips": len(places), **figures}


@torch.inference_mode()
def _judged_generated(judge, tokenizer: TokenizerContract, truths: list, made: Iterable[torch.Tensor]) -> dict:
    """Share of attributes that the judge reads in generated clips as they were asked for, and what guessing gives."""
    decoded = (_decoded(tokenizer, ids.to(tokenizer.device)) for ids in made)
    media = [medium for batch in decoded for medium in tokenizer.postprocess(batch)]
    sampling_rate = getattr(tokenizer.config, "sampling_rate", None)
    right = right_attributes(judge, tokenizer.modality, media, sampling_rate, truths)
    return {"judged_generated": float(right.mean()), "judged_chance": chance(truths)}


@torch.inference_mode()
def _stability(tokenizer: TokenizerContract, rows: Dataset, batch_size: int, token_ids: torch.Tensor) -> dict:
    """Share of ids that changes which nobody sees or hears leave alone."""
    kept = {"stable_under_shift": [], "stable_under_noise": []}
    generator = torch.Generator().manual_seed(0)
    known = iter(token_ids.split(batch_size))
    for media in batches_of(rows, tokenizer.modality, batch_size):
        batch, before = _preprocessed(tokenizer, media), next(known)
        step = 1 if tokenizer.modality == "image" else round(SHIFT_SECONDS * tokenizer.config.sampling_rate)
        shifted = torch.cat([batch[..., :1].expand(*batch.shape[:-1], step), batch[..., :-step]], dim=-1)
        level = batch.flatten(1).square().mean(1).sqrt() * 10 ** (-NOISE_DECIBELS / 20)
        noise = torch.randn(batch.shape, generator=generator).to(batch)
        noisy = batch + noise * level.reshape(-1, *[1] * (batch.ndim - 1))
        for name, changed in (("stable_under_shift", shifted), ("stable_under_noise", noisy)):
            kept[name].append(tokenizer.encode(changed).cpu() == before)
    return {name: float(torch.cat(same).float().mean()) for name, same in kept.items()}


def _decoded(tokenizer: TokenizerContract, token_ids: torch.Tensor):
    decoded = tokenizer.decode(token_ids)
    return decoded.cpu() if isinstance(decoded, torch.Tensor) else decoded


def _preprocessed(tokenizer: TokenizerContract, media: list):
    batch = tokenizer.preprocess(media)
    return batch.to(tokenizer.device) if isinstance(batch, torch.Tensor) else batch


def _real_ids(token_ids: torch.Tensor, valid_mask: torch.Tensor) -> list[np.ndarray]:
    return [ids[mask].numpy() for ids, mask in zip(token_ids.cpu(), valid_mask.cpu(), strict=True)]
