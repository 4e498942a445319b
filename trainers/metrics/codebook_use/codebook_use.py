"""How much of a codebook a set of token ids uses."""

import math

import datasets
import evaluate
import numpy as np
import torch

from tokenizers_4m.quantizer import codebook_usage


class CodebookUse(evaluate.Metric):
    """Which part of a codebook's entries occurs, and how evenly; more is better.

    `compute(predictions=, vocab_size=)` takes lists of ids in [0, vocab_size). Returns `codebook_use`, the share of
    entries that occur; `perplexity` of their frequencies, in [1, vocab_size]; and `entropy`, its logarithm: the nats
    per id that a model needs which knows nothing but frequencies.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of a codebook's entries that occur, perplexity and entropy of their frequencies.",
            citation="",
            inputs_description="predictions: lists of ids; vocab_size: how many ids there are",
            features=datasets.Features({"predictions": datasets.List(datasets.Value("int64"))}),
        )

    def _compute(self, predictions, vocab_size):
        token_ids = torch.from_numpy(np.concatenate(predictions).astype(np.int64))
        if not len(token_ids) or token_ids.min() < 0 or token_ids.max() >= vocab_size:
            raise ValueError(f"codebook_use: needs ids, all of them in [0, vocab_size={vocab_size})")
        usage = codebook_usage(token_ids, vocab_size)
        return {
            "codebook_use": usage["used_codes"] / vocab_size,
            "perplexity": usage["perplexity"],
            "entropy": math.log(usage["perplexity"]),
        }
