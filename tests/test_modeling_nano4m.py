"""The model: padding, batching and attention backends change nothing; save and load; the loss."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, disk_offload
from safetensors import safe_open
from transformers import AutoConfig, AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_nano4m import Nano4MConfig, Nano4MModel
from modeling_nano4m.linear_cross_entropy import linear_cross_entropy

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
def test_flash_kernels_get_no_mask_of_keys_for_other_queries(monkeypatch):
    """They take a two-dimensional mask for one of queries, too."""
    model, batch = make_model(), pad(make_batch())
    expected = model(**batch)
    masks = []

    def flash(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        assert attention_mask is None or (attention_mask.ndim == 2 and query.shape == key.shape)
        visible = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(query, key, value, visible).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    model.config._attn_implementation = "flash_attention_2"
    torch.testing.assert_close(model(**batch).loss, expected.loss, atol=1e-5, rtol=1e-4)
    assert any(mask is not None for mask in masks), "the encoder's padding is left to the kernel"


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
    assert all(p.grad.isfinite().all() for p in model.parameters()), "all are used, whichever modalities are asked for"


def test_every_position_of_every_modality_at_once():
    model = make_model()
    everything = [[], []]
    for index, name in enumerate(model.config.modality_names):
        number = model.config.num_tokens_of(name)
        everything[0] += [index] * number
        everything[1] += range(number)
    modality_ids, position_ids = torch.tensor(everything)[:, None]
    batch = {"ids": torch.zeros_like(modality_ids), "modality_ids": modality_ids, "position_ids": position_ids}
    output = model(**{f"{side}_{key}": value for side in ("input", "target") for key, value in batch.items()})
    assert output.loss.isfinite() and output.last_hidden_state.shape[1] == modality_ids.shape[1]


def test_dropout_is_of_training_only():
    model, batch = make_model(dropout=0.5, attention_dropout=0.5), make_batch()
    first, second = (model.eval()(**batch).loss for _ in range(2))
    assert torch.equal(first, second)
    first, second = (model.train()(**batch).loss for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("device_map", ["cpu", "auto", "decoder on disk"])
def test_a_device_map(device_map, tmp_path):
    model, batch = make_model().eval(), make_batch()
    model.save_pretrained(tmp_path / "model")
    if device_map == "decoder on disk":
        device_map = dict.fromkeys([name.partition(".")[0] for name in model.state_dict()], "cpu")
        device_map["decoder_layers"] = "disk"
    loaded = Nano4MModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk")
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)


def test_no_input_at_all_gives_finite_loss_and_gradients():
    model, batch = make_model(), make_batch()
    batch = {k: v[:, :0] if k.startswith("input") else v for k, v in batch.items()}
    model.train()(**batch).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    mask = torch.zeros(3, 6, dtype=torch.bool)
    nothing_valid = model.eval()(**make_batch(), input_valid_mask=mask)
    torch.testing.assert_close(nothing_valid.loss, model(**batch).loss, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_target_and_no_sample_are_legal(attention):
    model, batch = make_model(attn_implementation=attention), make_batch()
    no_target = {key: value[:, :0] if key.startswith("target") else value for key, value in batch.items()}
    output = model.train()(**no_target)
    output.loss.backward()
    assert output.last_hidden_state.shape == (3, 0, 32) and output.loss == 0
    output = model(**{key: value[:0] for key, value in batch.items()})
    assert output.encoder_last_hidden_state.shape == (0, 7, 32) and output.loss == 0


@torch.no_grad()
def test_offloaded_weights_change_nothing(tmp_path):
    batch, condition = make_batch(), {"image": torch.arange(24).view(2, 12) % 20}
    expected = make_model()
    for offload in (cpu_offload, lambda model, **where: disk_offload(model, tmp_path, **where)):
        model = make_model()
        offload(model, execution_device=torch.device("cpu"))
        assert model.device.type == "meta"
        torch.testing.assert_close(model(**batch).loss, expected(**batch).loss)
        made = model.generate(condition, "text", seed=0)
        assert torch.equal(made, expected.generate(condition, "text", seed=0))
        scores = [each.score(condition, {"text": made}) for each in (model, expected)]
        torch.testing.assert_close(*scores)


def test_tokens_the_model_does_not_have_are_refused():
    """Else the rows of another modality would be read. Padding may hold anything."""
    model, batch = make_model(), make_batch()
    for field, value, match in (
        ("input_modality_ids", 3, r"input_modality_ids must lie in \[0, 3\): audio, image, text"),
        ("target_modality_ids", -1, "target_modality_ids must lie"),
        ("input_ids", 20, r"input_ids has 20 for 'image', which takes those in \[0, 20\)"),
        ("input_position_ids", 12, r"input_position_ids has 12 for 'image', .* \[0, 12\)"),
        ("target_position_ids", -1, "target_position_ids has -1 for 'image'"),
        ("target_ids", -100, "target_ids has -100 for 'image'"),
    ):
        side = field.split("_")[0]
        wrong = {**batch, f"{side}_modality_ids": torch.ones_like(batch[f"{side}_modality_ids"])}
        wrong[field] = wrong[field].clone()
        wrong[field][1, 2] = value
        with pytest.raises(ValueError, match=match):
            model(**wrong)
        if field.endswith("_ids") and "modality" not in field and value > 0:
            mask = torch.ones_like(wrong[field])  # not bool, as tokenizers give it
            mask[1, 2] = 0
            model(**wrong, **{f"{side}_valid_mask": mask})
    with pytest.raises(TypeError, match="input_valid_masks"):
        model(**batch, input_valid_masks=None)


@pytest.mark.parametrize("train", [False, True])
def test_masks_may_be_integers(train):
    model, batch = make_model().train(train), pad(make_batch())
    integers = {key: value.long() for key, value in batch.items()}
    assert torch.equal(model(**integers).loss, model(**batch).loss)


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
        ({"modalities": {"text": {**MODALITIES["text"], "pad_token_id": -1}}}, "pad_token_id=-1"),
        ({"modalities": {"text": {**MODALITIES["text"], "pad_token_id": None}}}, "needs a pad_token_id"),
        ({"modalities": {"image": {"vocab_size": 3, "token_axes": [["row", 2], ["row", 2]]}}}, "same name"),
        ({"modalities": {"image": {"vocab_size": 3, "token_axes": [["row"]]}}}, "pairs of a name and a length"),
        ({"modalities": {"image": {"vocab_size": 3, "token_axes": 5}}}, "pairs of a name and a length"),
        ({"modalities": {"image": {"vocab_size": 3.0, "token_axes": {"row": 2}}}}, "whole"),
        ({"modalities": {"image": {"vocab_size": 3, "token_axes": {"row": 2.5}}}}, "whole"),
        ({"modalities": {"type": MODALITIES["image"]}}, "cannot have 'type'"),
        ({"modalities": {"a.b": MODALITIES["image"]}}, "cannot have 'a.b'"),
        ({"modalities": {"": MODALITIES["image"]}}, "cannot have ''"),
        ({"modalities": {"image": {"vocab_size": 3, "token_axes": {"keys": 2}}}}, "cannot have 'keys'"),
        ({"modalities": {"text": {**MODALITIES["text"], "pad_token_id": 2}}}, "must differ"),
        ({"modalities": {"image": {**MODALITIES["image"], "bos_token_id": 0}}}, "only an order 'left_to_right'"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"intermediate_size": 0}, "intermediate_size=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"initializer_range": -1.0}, "initializer_range=-1.0"),
    ):
        with pytest.raises(Exception, match=match):
            make_model(**changes)


def test_token_vectors_make_like_tokens_alike():
    model = make_model()
    rows = model.config.vocabulary_rows
    untouched = model.head.weight[rows("audio")].clone()
    vectors = torch.randn(20, 6)
    vectors[7] = vectors[3] + 0.01
    model.start_from_token_vectors("image", vectors)
    for weight in (model.embeddings.tokens.weight[rows("image")], model.head.weight[rows("image")]):
        distances = torch.cdist(weight, weight).fill_diagonal_(torch.inf)
        assert int(distances[3].argmin()) == 7
        assert 0.5 < weight.std().item() / model.config.initializer_range < 2, "the scale of the other weights"
    assert torch.equal(model.head.weight[rows("audio")], untouched)
    for name, wrong, match in (("smell", vectors, "unknown modality 'smell'"), ("image", vectors[:1], r"\(20, dim\)")):
        with pytest.raises(ValueError, match=match):
            model.start_from_token_vectors(name, wrong)
    for wrong in (torch.ones(20, 6), torch.full((20, 6), torch.nan)):
        with pytest.raises(ValueError, match="tell no tokens apart"):
            model.start_from_token_vectors("image", wrong)
    for kind in (torch.float16, torch.int64):
        model.start_from_token_vectors("image", (10 * vectors).to(kind))
        assert model.head.weight.isfinite().all()


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
    with pytest.raises(ValueError, match="vocab_size of 'text' must be at least 3"):
        model.resize_vocabulary("text", 2)
    with pytest.raises(ValueError, match="vocab_size of 'audio' must be at least 1, not 9.5"):
        model.resize_vocabulary("audio", 9.5)
    torch.testing.assert_close(model(**batch).loss, before.loss)
    model.requires_grad_(False).resize_vocabulary("audio", 9)
    assert not any(p.requires_grad for p in model.parameters()), "frozen stays frozen"
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


def gradients_of(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("attention", ["short samples", "long samples", "few tokens", "eager"])
@pytest.mark.parametrize("padding", ["none", "in front", "behind", "behind, with steps"])
def test_training_without_padding_equals_training_with_it(attention, padding, monkeypatch):
    """In training mode the layers work on real tokens only, attention, if it is sdpa, on one sample after the other;
    in evaluation mode on all slots."""
    fewest, most = {"short samples": (0, 10**6), "long samples": (0, 0)}.get(attention, (10**6, 0))
    monkeypatch.setattr("modeling_nano4m.layers_nano4m.FEWEST_PAIRS", fewest)
    monkeypatch.setattr("modeling_nano4m.packed_attention.MOST_PAIRS", most)
    model = make_model(attn_implementation="eager" if attention == "eager" else "sdpa")
    batch = make_batch() if padding == "none" else pad(make_batch())
    if padding != "none":
        batch["input_valid_mask"][0, slice(4) if padding == "in front" else slice(2, None)] = False
        batch["target_valid_mask"][1, 1:] = False
        batch["target_valid_mask"][2] = False
    if padding == "behind, with steps":
        batch["input_steps"] = torch.tensor([0, 0, 1, 1, 2, 3, 0, 0, 0, 0]).expand(3, -1)
    padded, unpadded = gradients_of(model.eval(), batch), gradients_of(model.train(), batch)
    for expected, found in zip([padded[0], *padded[1]], [unpadded[0], *unpadded[1]], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("most", [0, 10**6])
def test_training_without_padding_within_autocast_is_close_to_that_without(most, monkeypatch):
    monkeypatch.setattr("modeling_nano4m.layers_nano4m.FEWEST_PAIRS", 0)
    monkeypatch.setattr("modeling_nano4m.packed_attention.MOST_PAIRS", most)
    model, batch = make_model(), pad(make_batch())
    batch["input_valid_mask"][0, 4:] = False
    expected = gradients_of(model.eval(), batch)[1]
    with torch.autocast("cpu", torch.bfloat16):
        model.train().zero_grad()
        model(**batch).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        found = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
        assert (found - gradient).norm() <= 0.1 * gradient.norm() + 1e-6


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("most", [0, 96, 10**6])  # one target at a time, a few, all: besides those where gradients go
def test_linear_cross_entropy_equals_the_plain_one(most, dtype, weight_dtype, monkeypatch):
    monkeypatch.setattr("modeling_nano4m.linear_cross_entropy.LOGITS_AT_ONCE", most)
    monkeypatch.setattr("modeling_nano4m.linear_cross_entropy.BLOCK_SIZE", 24)  # four rows at a time
    torch.manual_seed(0)
    states, weight = torch.randn(20, 6, dtype=dtype), torch.randn(15, 6, dtype=weight_dtype)
    modality_ids, token_weights = torch.randint(-1, 3, (20,)), torch.rand(20)
    first_rows, sizes = [0, 3, 0], [10, 12, 7]  # overlapping, and beginning alike, as where modalities share rows
    target_ids = torch.randint(7, (20,))

    def plain(states, weight):
        losses = torch.zeros(20, dtype=torch.float64)
        for index, (first, size) in enumerate(zip(first_rows, sizes, strict=True)):
            mine = modality_ids == index
            logits = (states[mine] @ weight[first : first + size].T.to(dtype)).double()
            losses[mine] = F.cross_entropy(logits, target_ids[mine], reduction="none")
        return (losses * token_weights).sum(), losses

    results = []
    for compute in (
        plain,
        lambda *x: linear_cross_entropy(*x, target_ids, modality_ids, token_weights, first_rows, sizes),
    ):
        leaves = states.clone().requires_grad_(), weight.clone().requires_grad_()
        total, losses = compute(*leaves)
        (3 * total).backward()
        results.append([total.double(), losses.double(), *(leaf.grad.double() for leaf in leaves)])
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float64 else {"atol": 0.05, "rtol": 0.05}
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


def summed_losses_and_gradients(states, weight, ids):
    """Of one vocabulary, by plain float64 and by `linear_cross_entropy`: two lists of the sum and both gradients."""
    results = []
    for compute in (
        lambda states, weight: F.cross_entropy(states.double() @ weight.double().T, ids, reduction="sum"),
        lambda *x: linear_cross_entropy(*x, ids, 0 * ids, torch.ones(len(ids)), [0], [len(weight)])[0],
    ):
        leaves = states.clone().requires_grad_(), weight.clone().requires_grad_()
        total = compute(*leaves)
        total.backward()
        results.append([total.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    return results


@pytest.mark.parametrize("offset", [0.0, 200.0, -200.0])
def test_linear_cross_entropy_of_logits_whose_exponentials_are_no_floats(offset, monkeypatch):
    monkeypatch.setattr("modeling_nano4m.linear_cross_entropy.BLOCK_SIZE", 24)  # four rows at a time
    torch.manual_seed(0)
    states, weight, ids = torch.randn(20, 6), torch.randn(15, 6), torch.randint(15, (20,))
    states[:, 0], weight[:, 0] = 1.0, weight[:, 0] + offset
    weight[5:, 0] += 30  # so that blocks differ
    for expected, found in zip(*summed_losses_and_gradients(states, weight, ids), strict=True):
        assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_cross_entropy_of_targets_that_are_nearly_certain(dtype):
    """Their gradients are small differences to 1, which bfloat16 cannot hold."""
    torch.manual_seed(0)
    states, weight, ids = torch.randn(64, 32), torch.randn(100, 32), torch.randint(100, (64,))
    weight = F.normalize(weight)
    states = (F.normalize(states) + 2 * weight[ids]) * 8
    states, weight = states.to(dtype), weight.to(dtype)
    results = summed_losses_and_gradients(states, weight, ids)
    assert all(0 < total / 64 < 0.05 for total, *_ in results)
    for expected, found in zip(*(gradients for _, *gradients in results), strict=True):
        assert (found - expected).norm() < (1e-3 if dtype == torch.float32 else 0.05) * expected.norm()


def test_a_small_gradient_after_a_large_one_is_saved_as_a_small_one():
    for rows in (2000, 20):
        weight = torch.randn(rows, 6, requires_grad=True)
        ids, weights = torch.zeros(4).long(), torch.ones(4)
        linear_cross_entropy(torch.randn(4, 6), weight, ids, ids, weights, [0], [rows])[0].backward()
    assert weight.grad.untyped_storage().nbytes() == 20 * 6 * 4


def test_gradients_are_not_changed_by_what_is_computed_later():
    model, batches = make_model(), [make_batch(seed=seed) for seed in range(3)]
    expected = [gradients_of(model, batch)[1] for batch in batches]
    kept = gradients_of(model, batches[0])[1]
    losses = [model(**batch).loss for batch in batches[1:]]
    model.zero_grad()
    sum(losses).backward()
    for before, found, *parts in zip(kept, [p.grad for p in model.parameters()], *expected, strict=True):
        torch.testing.assert_close(before, parts[0], atol=0, rtol=0)
        torch.testing.assert_close(found, parts[1] + parts[2], atol=1e-6, rtol=1e-4)


def test_a_second_backward_pass_is_refused():
    loss = make_model()(**make_batch()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_gradients_of_very_many_targets_survive_half_precision():
    torch.manual_seed(0)
    states, weight = torch.randn(20, 6), 0.02 * torch.randn(15, 6)
    ids, modality_ids, token_weights = torch.randint(15, (20,)), torch.zeros(20).long(), torch.full((20,), 1e-6)
    results = []
    for dtype in (torch.float32, torch.float16):
        leaves = [tensor.detach().clone().to(dtype).requires_grad_() for tensor in (states, weight)]
        total, _ = linear_cross_entropy(*leaves, ids, modality_ids, token_weights, [0], [15])
        (2**16 * total).backward()  # as a GradScaler does
        results.append([leaf.grad.float() for leaf in leaves])
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_losses_of_parts_add_up_to_that_of_the_whole():
    model, batch = make_model(), make_batch(size=4)
    whole, expected = gradients_of(model, batch)
    counts = torch.bincount(batch["target_modality_ids"].flatten(), minlength=3)
    parts = [{k: v[i : i + 2] for k, v in batch.items()} | {"num_items_in_batch": counts} for i in (0, 2)]
    results = [gradients_of(model, part) for part in parts]
    torch.testing.assert_close(sum(loss for loss, _ in results), whole)
    for first, second, both in zip(results[0][1], results[1][1], expected, strict=True):
        torch.testing.assert_close(first + second, both, atol=1e-6, rtol=1e-4)


def test_compiles_without_a_graph_break():
    model, batch = make_model(), pad(make_batch())
    batch["input_steps"] = torch.arange(10).expand(3, -1)
    loss, expected = gradients_of(model.train(), batch)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    found = compiled(**batch).loss
    found.backward()
    torch.testing.assert_close(found, loss)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("share", [False, True])
def test_tied_weights_are_saved_once_and_trained_together(tmp_path, share):
    model, batch = make_model(tie_word_embeddings=True, share_vocabularies=share), make_batch()
    assert model.head.weight is model.embeddings.tokens.weight
    assert len(model.head.weight) == (30 if share else 57)
    with torch.no_grad():
        model.start_from_token_vectors("image", torch.randn(20, 6))
        model.resize_vocabulary("text", 33)
    assert model.head.weight is model.embeddings.tokens.weight and len(model.head.weight) == (33 if share else 60)
    loss = model(**batch).loss
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sum(tensor in file.keys() for tensor in ("head.weight", "embeddings.tokens.weight")) == 1
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.head.weight is loaded.embeddings.tokens.weight
    torch.testing.assert_close(loaded(**batch).loss, loss)


@pytest.mark.parametrize("training", [False, True])
def test_the_gradient_of_tied_weights_is_that_of_both_uses_together(training):
    tied, untied = (make_model(tie_word_embeddings=tie).train(training) for tie in (True, False))
    untied.load_state_dict(tied.state_dict())
    assert untied.head.weight is not untied.embeddings.tokens.weight
    for seed in (0, 1):  # the second one is added to the first
        for model in (tied, untied):
            model(**make_batch(inputs=40, seed=seed)).loss.backward()
        both = untied.head.weight.grad + untied.embeddings.tokens.weight.grad
        torch.testing.assert_close(tied.head.weight.grad, both)
    encoder_only = make_batch()
    del encoder_only["target_ids"]
    tied.zero_grad()
    tied(**encoder_only).encoder_last_hidden_state.sum().backward()
    assert tied.head.weight.grad.layout == torch.strided, "optimizers can use it without a loss, too"


@torch.no_grad()
def test_an_input_token_reads_no_later_step():
    model, batch = make_model(), make_batch()
    batch["input_steps"] = torch.tensor([0, 0, 1, 2, 2, 3]).expand(3, -1)
    states = model(**batch).encoder_last_hidden_state
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, 3] = (changed["input_ids"][:, 3] + 1) % 7
    difference = (model(**changed).encoder_last_hidden_state - states).abs().amax((0, 2))
    assert (difference[:4] == 0).all() and (difference[4:] > 1e-3).all(), "the start state and steps 0 and 1 stay"
    zeros = {**batch, "input_steps": torch.zeros_like(batch["input_steps"])}
    batch.pop("input_steps")
    torch.testing.assert_close(model(**zeros).loss, model(**batch).loss)
