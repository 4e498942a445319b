"""The preview page: what it counts and shows, and that it runs nothing that a data set says."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import preview_dataset
import pytest
import soundfile
from PIL import Image
from test_media_rows import prepare, write_picture, write_sound

ATTACK = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """Tags with their attributes, the text, and what is embedded by its media type."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.embedded = [], [], {}
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        source = dict(attributes).get("src")
        if source is not None:
            kind, data = source.removeprefix("data:").split(";base64,")  # nothing is loaded from elsewhere
            self.embedded.setdefault(kind, []).append(base64.b64decode(data, validate=True))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "in"
    for index in range(5):
        write_picture(source / f"p{index}.png")
        (source / f"p{index}.txt").write_text(f"picture {index}")
    write_sound(source / "s.wav", seconds=2.0)
    (source / "s.txt").write_text(ATTACK)
    for index in range(3):
        (source / f"empty{index}.wav").touch()
    entry = {"file_name": f"{ATTACK}.png", "text": "x"}
    (source / "metadata.jsonl").write_text(json.dumps(entry))
    prepare(source, tmp_path / "out")
    return tmp_path


def test_page(folder):
    path = preview_dataset.main(["--dataset", str(folder / "out"), "--num_clips", "4"])
    assert path == folder / "out.html"
    page = Page(path.read_text(encoding="utf-8"))
    # 7 clips of 6 samples, 5 with pictures, 2 with sound, all with text, 2 seconds together.
    assert "train 7 6 5 2 7 0.03" in page.text and "7 clips of 0.03 minutes" in page.text
    assert "4 in all" in page.text and "empty file 3 empty0.wav, empty1.wav, empty2.wav" in page.text
    # One histogram; the clips 0, 2, 4 and 6, of which the last is sound.
    pictures = [Image.open(io.BytesIO(data)) for data in page.embedded["image/png"]]
    assert len(pictures) == 1 + 3 + 1 and (256, 64) in [picture.size for picture in pictures]
    (sound,) = page.embedded["audio/flac"]
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert rate == 8_000 and len(samples) == 8_000 and np.allclose(samples, 0.25, atol=0.01)
    assert page.text.count("no sound") == 3 and page.text.count("no pictures") == 1
    assert "picture 4" in page.text and "picture 1" not in page.text


def test_what_a_data_set_says_is_shown_and_not_run(folder):
    page = Page(preview_dataset.main(["--dataset", str(folder / "out")]).read_text(encoding="utf-8"))
    assert ATTACK in page.text and f"{ATTACK}.png" in page.text
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.tags)


@pytest.mark.parametrize(("words", "message"), [(["--dataset", "nowhere"], "nowhere"), (["--num_clips", "-1"], "num")])
def test_errors(folder, words, message):
    words = words if "--dataset" in words else ["--dataset", str(folder / "out"), *words]
    with pytest.raises(SystemExit, match=message):
        preview_dataset.main(words)


def test_a_folder_of_another_kind_and_a_folder_that_is_not_there_yet(folder):
    with pytest.raises(SystemExit, match="dataset: .*in holds no clips of prepare_dataset.py"):
        preview_dataset.main(["--dataset", str(folder / "in")])
    words = ["--dataset", str(folder / "out"), "--output"]
    assert preview_dataset.main([*words, str(folder / "new" / "page.html")]).is_file()
    with pytest.raises(SystemExit, match="output: .* cannot be written"):
        preview_dataset.main([*words, str(folder / "new" / "page.html" / "page.html")])


def test_reasons_that_differ_in_numbers_are_counted_together():
    reasons = [*(f"metadata.jsonl line {line} names a file that is missing" for line in range(7)), "too large (9x9)"]
    found = preview_dataset.by_reason([{"file": f"{i}", "reason": reason} for i, reason in enumerate(reasons)])
    assert [(entry["reason"], entry["count"], entry["files"]) for entry in found] == [
        ("metadata.jsonl line … names a file that is missing", 7, list("01234")),
        ("too large (9x9)", 1, ["7"]),
    ]
