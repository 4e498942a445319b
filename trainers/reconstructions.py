"""Clips beside what a tokenizer makes of them, for TensorBoard: figures tell how much is lost, looking tells what."""

import numpy as np
import torch

NUM_CLIPS = 4


@torch.inference_mode()
def show_reconstructions(writer, tokenizer, batch: torch.Tensor, step: int, title: str = "reconstructions") -> None:
    """Write the first clips of a batch, as they went in and as they come back from their ids.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`.
        tokenizer: of any modality, in eval mode.
        batch: preprocessed clips, what `tokenizer.encode` takes.
        step: of the training.
        title: of the figures.
    """
    batch = batch[:NUM_CLIPS]
    before, after = tokenizer.postprocess(batch), tokenizer.postprocess(tokenizer.decode(tokenizer.encode(batch)))
    if tokenizer.modality == "image":
        # One clip below the other, its frames side by side.
        clips = [clip for pair in zip(before, after, strict=True) for clip in pair]
        rows = [np.concatenate([np.asarray(frame) for frame in clip], axis=1) for clip in clips]
        writer.add_image(title, np.concatenate(rows), step, dataformats="HWC")
    for number, (original, reconstruction) in enumerate(zip(before, after, strict=True)):
        for name, medium in (("original", original), ("reconstruction", reconstruction)):
            if tokenizer.modality == "audio":
                sound = torch.from_numpy(medium)[None].clamp(-1, 1)  # a barely trained tokenizer is louder
                writer.add_audio(f"{title}/{number}/{name}", sound, step, tokenizer.config.sampling_rate)
            elif tokenizer.modality == "text":
                writer.add_text(f"{title}/{number}/{name}", medium, step)
    writer.flush()
