"""Share of texts that come back character by character."""

import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    """Share of predictions that equal their references, in [0, 1]; more is better.

    `compute(predictions=, references=)` takes strings. Returns `exact_match`.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of texts that equal their references.",
            citation="",
            inputs_description="predictions, references: strings",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions, references):
        if not len(references):
            raise ValueError("exact_match: there are no texts")
        equal = [prediction == reference for prediction, reference in zip(predictions, references, strict=True)]
        return {"exact_match": sum(equal) / len(equal)}
