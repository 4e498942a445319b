"""Share of attributes read correctly, as an `evaluate` module."""

import datasets
import evaluate


class AttributeAccuracy(evaluate.Metric):
    """Share of attributes read correctly from generated media.

    `compute(predictions=, references=)` takes for each sample a list of attribute values, in the same order; an
    attribute that could not be read is the empty string. Returns `accuracy`, the mean over attributes and samples.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of attributes read correctly from generated media.",
            citation="",
            inputs_description="predictions, references: lists of attribute values, one list per sample",
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("string")),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references):
        pairs = [pair for rows in zip(predictions, references, strict=True) for pair in zip(*rows, strict=True)]
        return {"accuracy": sum(predicted == true for predicted, true in pairs) / len(pairs)}
