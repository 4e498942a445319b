"""The picture of samples has every direction, and says what is wrong with clips it cannot draw."""

import draw_samples
import pytest
from datasets import DatasetDict
from evaluate_model import main as evaluate_model
from PIL import Image
from test_evaluation import make_rows
from test_pipeline import make_pipeline


def draw(folder, rows, pipe=None) -> Image.Image:
    (pipe or make_pipeline()).save_pretrained(folder / "model")
    DatasetDict({"validation": rows}).save_to_disk(folder / "clips")
    words = ["--model", str(folder / "model"), "--dataset", str(folder / "clips"), "--num_clips", "3"]
    draw_samples.main([*words, "--output", str(folder / "pictures" / "samples.png")])
    return Image.open(folder / "pictures" / "samples.png")


def test_a_row_for_each_clip_and_a_column_for_each_direction(tmp_path):
    picture = draw(tmp_path, make_rows(4))
    assert picture.width / picture.height == pytest.approx(9 * 1.3 / (3 * 1.3 + 0.3), rel=0.01)
    assert len(set(picture.convert("RGB").get_flattened_data())) > 50


def test_clips_without_sound_are_refused(tmp_path):
    rows = make_rows(4).map(lambda row: {"audio": [], "audio_valid": 0})
    with pytest.raises(SystemExit, match="no clip of the split validation has"):
        draw(tmp_path, rows)


def test_a_model_without_sound_is_drawn_and_measured_in_what_it_has(tmp_path):
    """Of clips without columns of sound: one direction each way, and from nothing."""
    rows = make_rows(6).remove_columns(["audio", "audio_valid", "sampling_rate"])
    picture = draw(tmp_path, rows, make_pipeline(("image", "text")))
    assert picture.width / picture.height == pytest.approx(4 * 1.3 / (3 * 1.3 + 0.3), rel=0.01)
    words = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "clips"), "--output_dir", str(tmp_path)]
    words += "--num_candidates 3 --sweep --sweep_guidance 1 --sweep_temperatures 1 --sweep_steps 2".split()
    found = evaluate_model(words)
    names = ["text_to_image", "image_to_text", "nothing_to_image", "nothing_to_text"]
    assert list(found["directions"]) == names and list(found["sweep"]) == ["image", "text"]
    page = (tmp_path / "results.html").read_text()
    assert "nothing to text" in page and "<audio" not in page and "audio to" not in page
    for options, message in (
        (["--directions", "text_to_image", "audio_to_text"], "no audio_to_text, only text_to_image, image_to_text, "),
        (["--noise_db", "0"], "noise_db=0.0: the model takes no sound"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluate_model([*words, *options])
