"""Word error rate of texts, by jiwer."""

import datasets
import evaluate
import jiwer


class WordError(evaluate.Metric):
    """Word edits that make the references of the predictions, per word of the references; less is better.

    `compute(predictions=, references=)` takes strings; words are what blanks part, case counts. Returns `word_error`,
    over all texts together.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Word error rate.",
            citation="",
            inputs_description="predictions, references: strings",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions, references):
        if not any(text.strip() for text in references):
            raise ValueError("word_error: the references have no words")
        return {"word_error": float(jiwer.wer(list(references), list(predictions)))}
