"""The figures of a tokenizer: what must come out for data and tokenizers whose answer is known."""

import json
import math

import evaluate_tokenizer as script
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from test_tokenization import make_clips
from test_tokenizers import audio_tokenizer, image_tokenizer, text_tokenizer

from tokenizers_4m import TextTokenizer, TextTokenizerConfig
from trainers.learnability import nats_per_token
from trainers.tokenizer_evaluation import (
    clips_of,
    codebook_figures,
    evaluate_tokenizer,
    json_figures,
    load_recogniser,
    results_table,
)


@pytest.fixture(scope="module")
def clips() -> DatasetDict:
    rows = make_clips(10)
    return DatasetDict({"train": rows, "validation": rows.select(range(6))})


def test_an_exact_tokenizer_is_found_exact(clips):
    texts = clips["train"]["text"]
    tokenizer = TextTokenizer.train_from_iterator(texts, TextTokenizerConfig(max_tokens=24))
    results = evaluate_tokenizer(tokenizer, clips, learnability_steps=0)
    assert results["exact_match"] == 1 and results["character_error"] == 0
    assert results["clips"] == 5, "one of the six has no text"
    ids, mask = tokenizer.encode_media([text for text in texts[:6] if text.strip()])
    assert results["tokens_per_clip"] == pytest.approx(mask.sum() / 5)
    assert results["codebook_use"] == len(ids[mask].unique()) / tokenizer.config.vocab_size
    assert "nats_per_token" not in results and "psnr" not in results
    cut = TextTokenizer.train_from_iterator(texts, TextTokenizerConfig(max_tokens=4, vocab_size=259))
    assert evaluate_tokenizer(cut, clips, learnability_steps=0)["exact_match"] == 0


def test_figures_of_pictures(clips):
    tokenizer = image_tokenizer()
    results = evaluate_tokenizer(tokenizer, clips, learnability_steps=0, batch_size=4)
    media = [row["frames"] for row in clips["validation"]]
    with torch.no_grad():
        batch = tokenizer.preprocess(media)
        decoded = tokenizer.postprocess(tokenizer.decode(tokenizer.encode(batch)))
    true, found = (
        np.array([[np.asarray(frame, float) for frame in clip] for clip in side]) for side in (media, decoded)
    )
    errors = np.square(found - true).mean((2, 3, 4)).flatten()
    assert results["psnr"] == pytest.approx(np.mean([10 * math.log10(255**2 / error) for error in errors]), abs=1e-3)
    assert "random convolutions" in results["feature_network"] and results["rfid"] > 0
    assert results["tokens_per_clip"] == 32 and 0 < results["codebook_use"] <= 1
    for name in ("stable_under_shift", "stable_under_noise"):
        assert 0 <= results[name] <= 1
    assert min(results["encode_clips_per_second"], results["decode_clips_per_second"]) > 0
    assert "no weights for LPIPS" in results["skipped"].get("lpips", "no weights for LPIPS")


def test_ids_that_do_not_depend_on_the_input_are_stable_and_use_one_entry(clips):
    tokenizer = image_tokenizer()
    tokenizer.quantizer.codebooks.zero_()
    results = evaluate_tokenizer(tokenizer, clips, learnability_steps=0)
    assert results["stable_under_shift"] == results["stable_under_noise"] == 1
    assert results["codebook_use"] == 1 / 32 and results["perplexity"] == pytest.approx(1)


class Hears:
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def transcribe(self, waveforms, sampling_rate):
        self.asked.append((len(waveforms), waveforms[0].shape, sampling_rate))
        return ["a red disc moves"] * len(waveforms)


def test_figures_of_sound(clips):
    recogniser = Hears()
    clips = DatasetDict({"validation": clips["validation"].select(range(2))})
    results = evaluate_tokenizer(audio_tokenizer(), clips, learnability_steps=0, recogniser=recogniser)
    # "a red disc moves left" and "a blue ring stays still": one and four words of ten are wrong.
    assert results["word_error"] == results["word_error_on_real"] == 0.5
    assert recogniser.asked == [(2, (8000,), 16000)] * 2
    assert results["tokens_per_second"] == results["tokens_per_clip"] / 0.5
    assert {"stft_distance", "mel_distance", "si_sdr", "stable_under_noise"} <= set(results)


class Sharp:
    """Reads the name of a clip from pictures that are exactly those of the data, and nothing from others."""

    def __init__(self, rows):
        self.known = {np.stack(row["frames"]).tobytes(): row["clip_id"] for row in rows}

    def truths(self, rows):
        return [{"name": clip_id, "place": "here"} for clip_id in rows["clip_id"]]

    def read(self, modality, media, sampling_rate=None):
        assert modality == "image" and sampling_rate is None
        return [{"name": self.known.get(np.stack(clip).tobytes()), "place": "here"} for clip in media]


def test_a_judge_reads_clips_before_and_after(clips):
    results = evaluate_tokenizer(image_tokenizer(), clips, learnability_steps=0, judge=Sharp(clips["train"]))
    assert results["judged_right_on_real"] == 1
    assert results["judged_right"] == results["judged_relative"] == 0.5, "every place, and no name"


class Shades:
    """Knows of clips whether they are light or dark, and reads it in texts; of every fifth nobody knows."""

    def truths(self, rows):
        return [{"shade": shade} if number % 5 else None for number, shade in enumerate(rows["shade"])]

    def read(self, modality, media, sampling_rate):
        return [{"shade": text.split()[1] if " " in text else None} for text in media]


def test_what_is_made_from_attributes_is_judged():
    shades = np.random.default_rng(0).choice(["light", "dark"], size=96).tolist()
    texts = [f"a {shade} disc" for shade in shades]
    tokenizer = TextTokenizer.train_from_iterator(texts, TextTokenizerConfig(max_tokens=8))

    def judged(shades: list[str]) -> dict:
        rows = Dataset.from_dict({"text": texts, "shade": shades})
        clips = DatasetDict({"train": rows.select(range(64)), "validation": rows.select(range(64, 96))})
        return evaluate_tokenizer(tokenizer, clips, learnability_steps=40, judge=Shades())

    results = judged(shades)
    assert results["judged_generated"] > 0.9 and 0.5 <= results["judged_chance"] < 0.6
    turned = judged([{"light": "dark", "dark": "light"}[shade] for shade in shades[:64]] + shades[64:])
    assert turned["judged_right"] == 1 and turned["judged_generated"] < 0.1, "it makes what it has learned"


def test_clips_whose_truth_nobody_knows_are_not_judged(clips):
    judge = Sharp(clips["train"])
    known = judge.truths
    judge.truths = lambda rows: [None, *known(rows)[1:]]
    results = evaluate_tokenizer(image_tokenizer(), clips, learnability_steps=0, judge=judge)
    assert results["judged_clips"] == results["clips"] - 1 and results["judged_right_on_real"] == 1


def test_several_codebooks_count_apart():
    tokenizer = audio_tokenizer(codebook_size=4)
    steps = tokenizer.config.num_steps
    token_ids = torch.stack([torch.zeros(3, steps), torch.arange(3 * steps).reshape(3, steps) % 4], dim=-1)
    token_ids = token_ids.long().flatten(1)
    figures = codebook_figures(tokenizer, token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    assert figures["codebook_use"] == pytest.approx((1 / 4 + 1) / 2)
    assert figures["perplexity"] == pytest.approx((1 + 4) / 2, rel=0.01)


def test_tokens_that_follow_from_each_other_are_learned_and_random_ones_not():
    described = {"vocab_size": 8, "token_axes": {"index": 8}}
    rng = np.random.default_rng(0)

    def rows(number: int, repeated: bool) -> list[np.ndarray]:
        return [np.repeat(rng.integers(8), 8) if repeated else rng.integers(8, size=8) for _ in range(number)]

    nats = [
        nats_per_token(described, {"train": rows(200, same), "validation": rows(60, same)}, 15)
        for same in (True, False)
    ]
    assert nats[0] < 0.75 * math.log(8) < math.log(8) - 0.1 < nats[1]


def test_the_table_lines_up_and_leaves_out_what_nobody_has():
    table = results_table({"a": {"clips": 3, "psnr": 30.128}, "longer name": {"clips": 12, "psnr": math.inf}})
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["PSNR, dB", "30.13", "inf"]
    assert len(lines) == 4
    assert json.dumps(json_figures({"psnr": math.inf, "clips": 3})) == '{"psnr": null, "clips": 3}'


def test_clips_without_the_modality_are_an_error(clips):
    silent = DatasetDict({"validation": clips["validation"].select([3])})
    with pytest.raises(ValueError, match="no clip of the split 'validation' has audio"):
        evaluate_tokenizer(audio_tokenizer(), silent)
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        clips_of(clips, "test", "text")


def test_clips_that_do_not_fit_are_an_error(clips):
    """Else sound of another rate is measured as if it were slower or faster, and longer clips are cut."""
    slow = DatasetDict({"validation": clips["validation"].map(lambda row: {"sampling_rate": 8000})})
    with pytest.raises(ValueError, match="8000 samples at 8000 Hz, the audio tokenizer takes 8000 at 16000"):
        evaluate_tokenizer(audio_tokenizer(), slow, learnability_steps=0)
    with pytest.raises(ValueError, match="the clips have 2 frames, the image tokenizer takes num_frames=1"):
        evaluate_tokenizer(image_tokenizer(num_frames=1), clips, learnability_steps=0)


def test_recognisers_are_named(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine:\n    def transcribe(self, w, r):\n        return ['hi'] * len(w)\n")
    assert load_recogniser(f"{tmp_path}/mine.py:Mine").transcribe([0, 1], 16000) == ["hi", "hi"]
    with pytest.raises(ValueError, match="defines no 'Yours'"):
        load_recogniser(f"{tmp_path}/mine.py:Yours")
    with pytest.raises(ValueError, match="give 'grid' or FILE.py:Name"):
        load_recogniser("whisper")


def test_the_command_line(clips, tmp_path, capsys):
    tokenizer = text_tokenizer()
    tokenizer.save_pretrained(tmp_path / "text")
    clips.save_to_disk(tmp_path / "clips")
    words = f"--dataset {tmp_path}/clips --learnability_steps 2 --split train"
    results = script.main([*words.split(), "--tokenizer", f"{tmp_path}/text"])
    printed = capsys.readouterr().out
    assert "exact match" in printed and "learnability, nats per token" in printed
    saved = json.loads((tmp_path / "text" / "results.json").read_text())
    assert saved == json_figures(results) and 0 < saved["nats_per_token"] < 10
    with pytest.raises(SystemExit, match="nowhere: no tokenizer there"):
        script.main([*words.split(), "--tokenizer", f"{tmp_path}/nowhere"])


def test_wrong_values_are_named_before_anything_is_measured(clips, tmp_path):
    image_tokenizer().save_pretrained(tmp_path / "image")
    clips.save_to_disk(tmp_path / "clips")
    (tmp_path / "wrong.pt").write_bytes(b"no network")
    words = f"--dataset {tmp_path}/clips --tokenizer {tmp_path}/image --learnability_steps 0".split()
    for name, value, message in (
        ("batch_size", "0", "batch_size=0 must be at least 1"),
        ("num_clips", "0", "num_clips=0 must be at least 1"),
        ("num_clips", "-1", "num_clips=-1 must be at least 1"),
        ("learnability_steps", "-1", "learnability_steps=-1 must be at least 0"),
        ("feature_network", f"{tmp_path}/wrong.pt", "feature_network=.*wrong.pt': no TorchScript file can be read"),
        ("feature_network", f"{tmp_path}/missing.pt", "feature_network=.*missing.pt': no TorchScript"),
        ("device", "nonsense", "device='nonsense': "),
        ("judge", "nobody", "judge 'nobody': give"),
        *([] if torch.cuda.is_available() else [("device", "cuda", "device='cuda': ")]),
    ):
        with pytest.raises(SystemExit, match=f"error: {message}") as caught:
            script.main([*words, f"--{name}", value])
        assert "\n" not in str(caught.value)
