"""Character error rate of texts, by jiwer."""

import datasets
import evaluate
import jiwer


class CharacterError(evaluate.Metric):
    """Character edits that make the references of the predictions, per character of the references; less is better.

    `compute(predictions=, references=)` takes strings; blanks and case count. Returns `character_error`, over all
    texts together.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Character error rate.",
            citation="",
            inputs_description="predictions, references: strings",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions, references):
        if not any(references):
            raise ValueError("character_error: the references have no characters")
        return {"character_error": float(jiwer.cer(list(references), list(predictions)))}
