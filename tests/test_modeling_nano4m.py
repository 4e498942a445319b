"""The model: padding, batching and attention backends change nothing; save and load; the loss; generation."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel

from modeling_nano4m import Nano4MConfig, Nano4MModel, UnmaskingScheduler

MODALITIES = {
    "image": {"vocab_size": 20, "token_axes": {"frame": 2, "row": 2, "column": 3}},
    "audio": {"vocab_size": 7, "token_axes": {"time": 5, "codebook": 2}},
    "text": {
        "vocab_size": 30,
        "token_axes": {"index": 8},
        "order": "left_to_right",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


def make_model(**changes) -> Nano4MModel:
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "initializer_range": 0.3}
    fields |= {"num_encoder_layers": 2, "num_decoder_layers": 2, "modalities": MODALITIES}
    return Nano4MModel(Nano4MConfig(**{**fields, **changes})).eval()


def make_batch(size=3, inputs=6, targets=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def side(length):
        modality = torch.randint(3, (size, length), generator=generator)
        return {
            "ids": torch.randint(7, (size, length), generator=generator),
            "modality_ids": modality,
            "position_ids": torch.randint(8, (size, length), generator=generator),
        }

    return {f"input_{k}": v for k, v in side(inputs).items()} | {f"target_{k}": v for k, v in side(targets).items()}


def pad(batch, inputs=4, targets=3):
    padded = {}
    for key, value in batch.items():
        extra = inputs if key.startswith("input") else targets
        padded[key] = F.pad(value, (0, extra), value=1)
    for side, extra in (("input", inputs), ("target", targets)):
        padded[f"{side}_valid_mask"] = F.pad(torch.ones_like(batch[f"{side}_ids"]).bool(), (0, extra), value=False)
    return padded


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(attention):
    model = make_model(attn_implementation=attention)
    batch = make_batch()
    plain, padded = model(**batch), model(**pad(batch))
    torch.testing.assert_close(plain.last_hidden_state, padded.last_hidden_state[:, :5], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.loss, padded.loss, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_batching_and_attention_backend_change_nothing():
    model, batch = make_model(), make_batch()
    together = model(**batch).last_hidden_state
    alone = torch.cat([model(**{k: v[i : i + 1] for k, v in batch.items()}).last_hidden_state for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    eager = make_model(attn_implementation="eager")(**batch).last_hidden_state
    torch.testing.assert_close(together, eager, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_target_is_answered_alike_whatever_else_is_asked():
    """Queries of other modalities, and later words of a text, are invisible."""
    model, batch = make_model(), make_batch(size=1)
    batch |= {
        "target_modality_ids": torch.tensor([[1, 1, 2, 2]]),  # image, image, text, text
        "target_position_ids": torch.tensor([[1, 5, 2, 3]]),
        "target_ids": torch.tensor([[1, 2, 3, 4]]),
    }
    everything = model(**batch).last_hidden_state
    for part in ([0, 1], [2]):
        some = {k: v[:, part] if k.startswith("target") else v for k, v in batch.items()}
        torch.testing.assert_close(model(**some).last_hidden_state, everything[:, part], atol=1e-5, rtol=1e-4)


def test_loss_averages_over_the_modalities_present():
    model, batch = make_model(), make_batch()
    output = model(**batch, return_logits=True)
    for index, name in enumerate(model.config.modality_names):
        mine = batch["target_modality_ids"] == index
        assert output.num_targets[name] == mine.sum()
        expected = F.cross_entropy(output.logits[name], batch["target_ids"][mine])
        torch.testing.assert_close(output.losses[name], expected)
    torch.testing.assert_close(output.loss, sum(output.losses.values()) / 3)
    batch["target_modality_ids"][:] = model.config.modality_id("audio")
    output = model(**batch)
    torch.testing.assert_close(output.loss, output.losses["audio"])
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_no_input_at_all_gives_finite_loss_and_gradients():
    model, batch = make_model(), make_batch()
    batch = {k: v[:, :0] if k.startswith("input") else v for k, v in batch.items()}
    model.train()(**batch).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    mask = torch.zeros(3, 6, dtype=torch.bool)
    nothing_valid = model.eval()(**make_batch(), input_valid_mask=mask)
    torch.testing.assert_close(nothing_valid.loss, model(**batch).loss, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_auto_classes_load_an_equal_model(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, Nano4MModel) and isinstance(AutoConfig.from_pretrained(tmp_path), Nano4MConfig)
    assert torch.equal(loaded(**make_batch()).loss, model(**make_batch()).loss)


def test_another_modality_needs_configuration_only():
    modalities = {**MODALITIES, "depth": {"vocab_size": 9, "token_axes": {"row": 2, "column": 2}}}
    model = make_model(modalities=modalities)
    out = model.generate({"audio": torch.zeros(2, 10, dtype=torch.int64)}, "depth", seed=0)
    assert out.shape == (2, 4) and out.max() < 9


def test_config_errors_name_the_field():
    for changes, match in (
        ({"hidden_size": 30}, "hidden_size=30"),
        ({"modalities": {"image": {"vocab_size": 3}}}, "token_axes"),
        ({"modalities": {"image": {**MODALITIES["image"], "order": "backwards"}}}, "order"),
    ):
        with pytest.raises(Exception, match=match):
            make_model(**changes)


CONDITION = {"image": torch.arange(36).view(3, 12) % 20, "audio": torch.arange(30).view(3, 10) % 7}


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("target", list(MODALITIES))
def test_generated_ids_belong_to_the_target(target, order):
    model = make_model()
    inputs = {k: v for k, v in CONDITION.items() if k != target}
    ids = model.generate(inputs, target, scheduler=UnmaskingScheduler(order=order), seed=1, guidance_scale=2.0)
    assert ids.shape == (3, model.config.num_tokens_of(target))
    assert 0 <= ids.min() and ids.max() < MODALITIES[target]["vocab_size"]
    if target == "text":
        assert (ids[:, 0] == 1).all() and not (ids[:, 1:] == 1).any()
        ended = (ids == 2).cumsum(1).bool()
        assert ((ids == 0) == (ended & (ids != 2))).all(), "padding behind the end token and nowhere else"


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("target", ["image", "text"])
def test_a_sample_is_the_same_alone_and_in_a_batch(target, order):
    model = make_model()
    audio = {"audio": CONDITION["audio"]}
    scheduler = UnmaskingScheduler(order=order)
    together = model.generate(audio, target, seed=[5, 6, 7], scheduler=scheduler, top_k=5, top_p=0.9)
    for i in range(3):
        one = {"audio": CONDITION["audio"][i : i + 1]}
        alone = model.generate(one, target, seed=[5 + i], scheduler=scheduler, top_k=5, top_p=0.9)
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(model.generate(audio, target, seed=50), model.generate(audio, target, seed=90))


def test_given_target_tokens_are_kept_and_nothing_is_given_is_legal():
    model = make_model()
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, [0, 7]] = True
    ids = model.generate({"image": CONDITION["image"]}, "image", valid_masks={"image": mask}, seed=0)
    assert torch.equal(ids[mask], CONDITION["image"][mask])
    assert model.generate({}, "audio", batch_size=4, seed=0).shape == (4, 10)
    with pytest.raises(ValueError, match="unknown modality 'video'"):
        model.generate({}, "video")
    with pytest.raises(ValueError, match="top_p"):
        model.generate({}, "audio", top_p=0)


def test_sampling_follows_the_models_distribution():
    """One token, many seeds: frequencies agree with the softmax; top_k=1 and temperature 0 take the best."""
    model = make_model(modalities={"one": {"vocab_size": 4, "token_axes": {"index": 1}}})
    state, mask = model.encode(*[torch.zeros(1, 0, dtype=torch.int64)] * 3)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    expected = model.heads["one"](model.decode(zero, zero, state, mask)).softmax(-1)[0, 0]
    ids = model.generate({}, "one", batch_size=4000, seed=0)
    torch.testing.assert_close(torch.bincount(ids[:, 0], minlength=4) / 4000, expected.detach(), atol=0.03, rtol=0)
    for changes in ({"top_k": 1}, {"temperature": 0}, {"top_p": 1e-6}):
        assert (model.generate({}, "one", batch_size=5, seed=0, **changes) == expected.argmax()).all()


def test_schedules_are_even():
    known = UnmaskingScheduler("linear").known_after_step(100, torch.tensor([256]))[0]
    sizes = known.diff(prepend=torch.zeros(1, dtype=torch.int64))
    assert sizes.sum() == 256 and sizes.min() >= 2 and sizes.max() <= 3
    known = UnmaskingScheduler("cosine").known_after_step(8, torch.tensor([64, 3, 0]))
    assert known[:, -1].tolist() == [64, 3, 0] and (known.diff(dim=1) >= 0).all()
    assert known[0, 0] < 64 / 8
    with pytest.raises(ValueError, match="order"):
        UnmaskingScheduler(order="up")


def test_token_vectors_make_like_tokens_alike():
    model = make_model()
    untouched = model.heads["audio"].weight.clone()
    vectors = torch.randn(20, 6)
    vectors[7] = vectors[3] + 0.01
    model.start_from_token_vectors("image", vectors)
    start = int(model.embeddings.token_offsets[model.config.modality_id("image")])
    for weight in (model.embeddings.tokens.weight[start : start + 20], model.heads["image"].weight):
        distances = torch.cdist(weight, weight).fill_diagonal_(torch.inf)
        assert int(distances[3].argmin()) == 7
        assert 0.5 < weight.std().item() / model.config.initializer_range < 2, "the scale of the other weights"
    assert torch.equal(model.heads["audio"].weight, untouched)
    with pytest.raises(ValueError, match="unknown modality 'smell'"):
        model.start_from_token_vectors("smell", vectors)


def test_a_vocabulary_can_be_resized(tmp_path):
    model, batch = make_model(), make_batch()
    before = model(**batch, return_logits=True)
    model.resize_vocabulary("audio", 9)
    after = model(**batch, return_logits=True)
    for name in ("image", "text"):
        torch.testing.assert_close(after.logits[name], before.logits[name])
    torch.testing.assert_close(after.logits["audio"][:, :7], before.logits["audio"])
    assert after.logits["audio"].shape[1] == 9
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).loss, after.loss)
    model.resize_vocabulary("audio", 7)
    torch.testing.assert_close(model(**batch).loss, before.loss)
    with pytest.raises(ValueError, match="unknown modality 'smell'"):
        model.resize_vocabulary("smell", 9)
    with pytest.raises(ValueError, match="resize_vocabulary"):
        model.resize_token_embeddings(99)


def test_hidden_states_and_attentions_are_returned_on_request():
    model, batch = make_model(attn_implementation="eager"), make_batch()
    assert model(**batch).hidden_states is None
    flags = ("hidden_states", "attentions", "encoder_hidden_states", "encoder_attentions")
    output = model(**batch, **{f"output_{flag}": True for flag in flags})
    assert [len(output[flag]) for flag in (*flags, "cross_attentions")] == [3, 2, 2, 2, 2]
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)
    torch.testing.assert_close(model.encoder_norm(output.encoder_hidden_states[-1]), output.encoder_last_hidden_state)
    assert output.cross_attentions[0].shape == (3, 4, 5, 1 + 6) and output.encoder_attentions[0].shape[2:] == (7, 7)
    for weights in (output.attentions[1], output.cross_attentions[1], output.encoder_attentions[1]):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
