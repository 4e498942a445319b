"""The picture of samples has every direction, and says what is wrong with clips it cannot draw."""

import draw_samples
import pytest
from datasets import DatasetDict
from PIL import Image
from test_evaluation import make_rows
from test_pipeline import make_pipeline


def draw(folder, rows) -> Image.Image:
    make_pipeline().save_pretrained(folder / "model")
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
    with pytest.raises(SystemExit, match="has no audio"):
        draw(tmp_path, rows)
