"""The pipeline: media in and out, one folder, bad input."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from test_tokenizers import TEXTS, audio_tokenizer, image_tokenizer, text_tokenizer

from modeling_nano4m import Nano4MConfig, Nano4MModel, Nano4MPipeline, UnmaskingScheduler


def make_pipeline(modalities: tuple[str, ...] = ("image", "audio", "text")) -> Nano4MPipeline:
    makers = {"image": image_tokenizer, "audio": audio_tokenizer, "text": text_tokenizer}
    tokenizers = {name: makers[name]() for name in modalities}
    described = {name: tokenizer.describe() for name, tokenizer in tokenizers.items()}
    described["text"]["order"] = "left_to_right"
    torch.manual_seed(0)
    config = Nano4MConfig(
        modalities=described,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        initializer_range=0.3,
    )
    components = {f"{name}_tokenizer": tokenizers.get(name) for name in makers}
    return Nano4MPipeline(
        model=Nano4MModel(config).eval(), scheduler=UnmaskingScheduler(order="confidence"), **components
    )


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def test_every_direction_returns_its_media(pipe):
    picture, sound = Image.new("RGB", (16, 16), "red"), np.zeros(8000, dtype="float32")
    conditions = {"image": picture, "audio": sound, "text": TEXTS[0]}
    for target in conditions:
        output = pipe(**{k: v for k, v in conditions.items() if k != target}, target=target, seed=0)
        if target == "image":
            assert [frame.size for frame in output.images[0]] == [(16, 16)] * 2
        elif target == "audio":
            assert output.audios[0].shape == (8000,) and output.sampling_rate == 16000
        else:
            assert isinstance(output.texts[0], str)
    assert len(pipe(target="text", num_samples=3).texts) == 3


def test_files_lists_and_batches_agree(pipe, tmp_path):
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    (tmp_path / "a.txt").write_text(TEXTS[1])
    single = pipe(image=tmp_path / "a.png", text=tmp_path / "a.txt", target="audio", seed=4)
    many = pipe(image=[str(tmp_path / "a.png")] * 3, text=[TEXTS[1]] * 3, target="audio", seed=[4, 5, 4], batch_size=2)
    assert torch.equal(single.token_ids[0], many.token_ids[0]) and torch.equal(many.token_ids[0], many.token_ids[2])
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    assert len(pipe(image=frames, target="text", seed=0).texts) == 1, "the frames of one clip"
    assert len(pipe(image=[frames, frames], target="text", seed=0).texts) == 2
    assert len(pipe(audio=tmp_path / "a.wav", target="text", seed=0).texts) == 1


def test_several_targets_and_negative_conditions(pipe):
    made = pipe(text=TEXTS[0], target=["audio", "image"], seed=0)
    assert len(made.audios) == len(made.images) == 1 and list(made.token_ids) == ["audio", "image"]
    assert torch.equal(made.token_ids["audio"], pipe(text=TEXTS[0], target="audio", seed=0).token_ids)
    away = pipe(text=TEXTS[0], negative={"text": TEXTS[1]}, target="audio", guidance_scale=8.0, seed=0)
    assert not torch.equal(away.token_ids, made.token_ids["audio"])


def test_part_of_a_picture_can_be_kept(pipe):
    picture = Image.effect_noise((16, 16), 90).convert("RGB")
    tokenizer = pipe.image_tokenizer
    ids, _ = tokenizer.encode_media([picture])
    keep = torch.zeros(list(tokenizer.config.token_axes.values()), dtype=torch.bool)
    keep[0] = True  # the first frame
    made = pipe(image=picture, text=TEXTS[0], target="image", keep=keep, seed=0).token_ids
    assert torch.equal(made[0, keep.flatten()], ids[0, keep.flatten()])
    assert not torch.equal(made, ids)
    both = pipe(image=picture, target=["image", "text"], keep=keep.int(), seed=0)
    assert torch.equal(both.token_ids["image"][0, keep.flatten()], ids[0, keep.flatten()]) and len(both.texts) == 1
    with pytest.raises(ValueError, match="keep"):
        pipe(image=picture, target="image", keep=keep[0])


def test_several_samples_of_one_condition(pipe):
    made = pipe(text=TEXTS[0], target="audio", num_samples=3, seed=5)
    assert torch.equal(made.token_ids[1:2], pipe(text=TEXTS[0], target="audio", seed=6).token_ids)
    assert len(made.audios) == 3


def test_the_models_own_settings_are_used(pipe, tmp_path):
    sure = pipe(text=TEXTS[0], target="audio", temperature=0, seed=0).token_ids
    pipe.save_pretrained(tmp_path)
    loaded = Nano4MPipeline.from_pretrained(tmp_path)
    loaded.model.set_modality_defaults({"audio": {"temperature": 0}})
    loaded.save_pretrained(tmp_path / "cool")
    cool = Nano4MPipeline.from_pretrained(tmp_path / "cool")
    assert torch.equal(cool(text=TEXTS[0], target="audio", seed=0).token_ids, sure)
    cool.model.set_modality_defaults({"audio": {"temperature": 0, "scheduler": {"order": "random"}}})
    assert not torch.equal(cool(text=TEXTS[0], target="audio", seed=0).token_ids, sure)


def test_the_folder_round_trips(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = Nano4MPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.order == "confidence"
    for target in ("image", "audio"):
        before, after = (p(text=TEXTS[0], target=target, seed=3) for p in (pipe, loaded))
        assert torch.equal(before.token_ids, after.token_ids)
    assert np.array_equal(before.audios[0], after.audios[0])


def test_bad_conditions_are_named(pipe, tmp_path):
    for arguments, match in (
        ({"image": tmp_path / "no.png"}, "no.png"),
        ({"audio": tmp_path / "no.wav"}, "no.wav"),
        ({"text": Path("no.txt"), "target": "image"}, "no.txt"),
        ({"target": "video"}, "target must be one of"),
        ({"text": "a", "target": "text"}, "both condition and target"),
        ({"text": ["a", "b"], "image": Image.new("RGB", (8, 8)), "target": "audio"}, "differ in number"),
    ):
        with pytest.raises(ValueError, match=match):
            pipe(**{"target": "text", **arguments})


def test_components_that_do_not_fit_are_refused(pipe):
    with pytest.raises(ValueError, match="image tokenizer do not fit"):
        Nano4MPipeline(**{**pipe.components, "image_tokenizer": image_tokenizer(codebook_size=16)})
