"""Generation: legal ids, reproducible samples, guidance, chains; scores that obey the chain rule."""

from itertools import product

import numpy as np
import pytest
import torch
from test_modeling_nano4m import MODALITIES, make_model
from transformers import AutoModel

from modeling_nano4m import UnmaskingScheduler
from modeling_nano4m.layers_nano4m import KeyValueCache

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


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_samples_of_a_batch_may_have_different_conditions(order):
    """All of both modalities, a part of one, nothing at all; with guidance, whose other branch is given nothing."""
    model = make_model()
    masks = {name: torch.ones_like(ids, dtype=torch.bool) for name, ids in CONDITION.items()}
    masks["image"][1:], masks["audio"][1, 4:], masks["audio"][2] = False, False, False
    options = {"scheduler": UnmaskingScheduler(order=order), "guidance_scale": 2.0, "top_p": 0.9}
    together = model.generate(CONDITION, "text", valid_masks=masks, seed=[5, 6, 7], **options)
    for i in range(3):
        one, mask = ({name: item[i : i + 1] for name, item in items.items()} for items in (CONDITION, masks))
        alone = model.generate(one, "text", valid_masks=mask, seed=[5 + i], **options)
        assert torch.equal(alone[0], together[i])
    nothing = model.generate({}, "text", batch_size=1, seed=[7], **options)
    assert torch.equal(nothing[0], together[2]), "what is not valid is as good as not given"


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
    expected = model.logits_of("one", model.decode(zero, zero, state, mask)).softmax(-1)[0, 0]
    ids = model.generate({}, "one", batch_size=4000, seed=0)
    torch.testing.assert_close(torch.bincount(ids[:, 0], minlength=4) / 4000, expected.detach(), atol=0.03, rtol=0)
    for changes in ({"top_k": 1}, {"temperature": 0}, {"top_p": 1e-6}):
        assert (model.generate({}, "one", batch_size=5, seed=0, **changes) == expected.argmax()).all()


def test_schedules_are_even():
    known = UnmaskingScheduler("constant").known_after_step(100, torch.tensor([256]))[0]
    sizes = known.diff(prepend=torch.zeros(1, dtype=torch.int64))
    assert sizes.sum() == 256 and sizes.min() >= 2 and sizes.max() <= 3
    known = UnmaskingScheduler("cosine").known_after_step(8, torch.tensor([64, 3, 0]))
    assert known[:, -1].tolist() == [64, 3, 0] and (known.diff(dim=1) >= 0).all()
    assert known[0, 0] < 64 / 8
    known = UnmaskingScheduler("linear").known_after_step(8, torch.tensor([64]))[0]
    assert known.tolist() == [1, 4, 9, 16, 25, 36, 49, 64], "steps that grow evenly"
    for name, expected in (("constant", [1, 1, 1]), ("linear", [1, 0.5, 0.25]), ("cosine", [1, 0.5**0.5, 0.3827])):
        scheduler = UnmaskingScheduler(temperature_schedule=name)
        assert [scheduler.temperature_factor(x) for x in (0, 0.5, 0.75)] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="order"):
        UnmaskingScheduler(order="up")


def test_confidence_order_takes_the_surest_first_and_noise_less_and_less():
    log_probabilities, noise = torch.tensor([[-0.1, -2.0, -1.0]]), torch.tensor([[0.1, 0.9, 0.5]])
    surest = UnmaskingScheduler(order="confidence", confidence_temperature=0.0)
    assert torch.equal(surest.priority(log_probabilities, noise, 0.0), log_probabilities)
    noisy = UnmaskingScheduler(order="confidence", confidence_temperature=4.0)
    assert noisy.priority(log_probabilities, noise, 0.0).argmax() == 1
    assert noisy.priority(log_probabilities, noise, 0.95).argmax() == 0


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_reading_in_pieces_equals_reading_all_at_once(attention):
    model = make_model(attn_implementation=attention)
    ids, place = CONDITION["audio"], torch.arange(10).expand(3, -1)
    modality, query = torch.zeros_like(ids), torch.tensor([[3, 9]] * 3)
    steps = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 5, 6]).expand(3, -1)
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[1, [2, 6, 9]] = False
    states, _ = model.encode(ids, modality, place, mask[:, 1:], steps)
    expected = model.decode(torch.ones_like(query), query, states, mask)
    cache, memory, read = KeyValueCache(), KeyValueCache(), []
    for start, end in ((0, 4), (4, 6), (6, 10)):
        part = ids[:, start:end], modality[:, start:end], place[:, start:end]
        if start == 0:
            new, _ = model.encode(*part, mask[:, 1 : 1 + end], cache=cache)
        else:
            new = model.encode_more(*part, mask[:, : 1 + end], cache)
        found = model.decode(torch.ones_like(query), query, new, mask[:, : 1 + end], cache=memory)
        read.append(new)
    torch.testing.assert_close(torch.cat(read, 1)[mask], states[mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_guidance_weighs_conditions():
    """Weight 1 for all is no guidance, 0 leaves a condition out, and an unweighed condition is always given."""
    model = make_model()
    both = {name: CONDITION[name] for name in ("image", "audio")}
    text = {**both, "text": torch.tensor([[1, 5, 6, 2, 0, 0, 0, 0]] * 3)}

    def generate(inputs, target="depth", **options):
        return model.generate(inputs, target, seed=3, **options)

    model = make_model(modalities={**MODALITIES, "depth": {"vocab_size": 9, "token_axes": {"index": 20}}})
    plain = generate(both)
    assert torch.equal(generate(both, guidance_scale=1.0), plain)
    assert torch.equal(generate(both, guidance_scale={}), plain)
    assert torch.equal(
        generate({"image": both["image"]}, guidance_scale={"image": 1.0}), generate({"image": both["image"]})
    )
    assert torch.equal(generate(both, guidance_scale={"image": 0.0}), generate({"audio": both["audio"]}))
    assert torch.equal(generate(both, guidance_scale=0.0), generate({}, batch_size=3))
    assert not torch.equal(generate(both, guidance_scale={"image": 4.0, "audio": -2.0}), plain)
    away = generate({"image": both["image"]}, negative_inputs={"image": both["image"].flip(1)}, guidance_scale=3.0)
    assert not torch.equal(away, generate({"image": both["image"]}, guidance_scale=3.0))
    same = generate({"image": both["image"]}, negative_inputs={"image": both["image"]}, guidance_scale=3.0)
    assert torch.equal(same, generate({"image": both["image"]}))
    # Padding of a text is no condition, with a mask and without.
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]] * 3).bool()
    assert torch.equal(generate(text), generate(text, valid_masks={"text": mask}))
    with pytest.raises(ValueError, match="unknown modality 'smell'"):
        generate(both, guidance_scale={"smell": 2.0})


def test_text_is_completed_around_what_is_given():
    """A given end leaves nothing behind it; a given suffix is kept, so no end comes before it."""
    model = make_model()
    for given, places in (([1, 0, 0, 0, 2, 0, 0, 0], [0, 4]), ([1, 0, 0, 0, 0, 9, 9, 2], [0, 5, 6, 7])):
        ids, mask = torch.tensor([given] * 40), torch.zeros(40, 8, dtype=torch.long)
        mask[:, places] = 1  # not bool, as tokenizers give it
        made = model.generate({"text": ids}, "text", valid_masks={"text": mask}, seed=0)
        assert (made[:, places] == ids[:, places]).all()
        end = given.index(2)
        assert (made[:, :end] > 2).logical_or(made[:, :end] == 1).all() and (made[:, end + 1 :] == 0).all()


def test_padding_is_no_token_whatever_its_id():
    text = {**MODALITIES["text"], "pad_token_id": 29}
    model = make_model(modalities={**MODALITIES, "text": text})
    ids = torch.tensor([[1, 5, 6, 2, 29, 29, 29, 29]] * 3)
    audio = CONDITION["audio"]
    both = model.score({}, {"text": ids, "audio": audio}, seed=[0] * 3)
    alone = model.score({}, {"text": ids}, seed=[0] * 3) + model.score({"text": ids}, {"audio": audio}, seed=[0] * 3)
    torch.testing.assert_close(both, alone)


def test_negative_conditions_are_never_followed():
    model = make_model()
    image, negative = {"image": CONDITION["image"]}, {"audio": CONDITION["audio"]}
    plain = model.generate(image, "text", seed=0)
    for scale in ({}, 1.0):
        assert torch.equal(
            model.generate(image, "text", negative_inputs=negative, guidance_scale=scale, seed=0), plain
        )
    with pytest.raises(ValueError, match="different batch sizes"):
        model.generate(image, "text", negative_inputs={"audio": CONDITION["audio"][:1]})
    with pytest.raises(ValueError, match="temperature="):
        model.generate(image, "text", temperature={"image": 1.0})


def test_several_targets_are_conditions_of_each_other():
    model = make_model()
    audio = {"audio": CONDITION["audio"]}
    made = model.generate(audio, ["text", "image"], seed=4)
    assert list(made) == ["text", "image"]
    assert torch.equal(made["text"], model.generate(audio, "text", seed=4))
    image = model.generate({**audio, "text": made["text"]}, "image", seed=4 + 1_000_003)
    assert torch.equal(made["image"], image)


def test_a_model_keeps_settings_for_each_modality(tmp_path):
    model = make_model()
    greedy = model.generate({}, "image", temperature=0, seed=0)
    model.set_modality_defaults({"image": {"temperature": 0, "scheduler": {"order": "confidence"}}})
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    sure = loaded.generate({}, "image", seed=0)
    assert torch.equal(sure, loaded.generate({}, "image", seed=0, scheduler=UnmaskingScheduler(order="confidence")))
    assert torch.equal(loaded.generate({}, "image", seed=0, scheduler=UnmaskingScheduler()), greedy)
    assert not torch.equal(loaded.generate({}, "image", seed=0, temperature=1.0), sure)
    for wrong, match in (
        ({"image": {"tempreature": 1}}, "'tempreature'"),
        ({"smell": {}}, "unknown modality 'smell'"),
        ({"image": {"top_p": 0}}, "top_p=0"),
        ({"image": {"scheduler": {"order": "up"}}}, "order must be"),
        ({"image": {"scheduler": {"ordre": "random"}}}, "ordre"),
        ({"image": {"scheduler": "random"}}, "the scheduler of 'image'"),
        ({"image": {"scheduler": {"confidence_temperature": "x"}}}, "confidence_temperature"),
        ({"image": {"temperature": "1"}}, "temperature='1'"),
        ({"image": {"guidance_scale": {"smell": 2.0}}}, "unknown modality 'smell'"),
        ({"image": 5}, "modality_defaults must be"),
        (5, "modality_defaults must be"),
    ):
        with pytest.raises(ValueError, match=match):
            model.set_modality_defaults(wrong)
    assert model.generation_config.modality_defaults == loaded.generation_config.modality_defaults, "as they were"


def test_min_p_and_a_falling_temperature_narrow_the_choice():
    model = make_model()
    assert torch.equal(
        model.generate({}, "audio", min_p=1.0, seed=0), model.generate({}, "audio", temperature=0, seed=0)
    )
    scheduler = UnmaskingScheduler(temperature_schedule="linear")
    assert [scheduler.temperature_factor(p) for p in (0.0, 0.5)] == [1.0, 0.5]
    cooled = model.generate({}, "audio", scheduler=scheduler, batch_size=200, seed=0)
    plain = model.generate({}, "audio", batch_size=200, seed=0)
    likely = [model.score({}, {"audio": ids}).mean() for ids in (cooled, plain)]
    assert likely[0] > likely[1]


@torch.no_grad()
@pytest.mark.parametrize("target", ["audio", "text"])
def test_scores_obey_the_chain_rule(target):
    """The score is the sum of what the model says of each token, asked one by one, given those before it."""
    model = make_model()
    image = CONDITION["image"]
    ids = CONDITION["audio"] if target == "audio" else torch.tensor([[1, 9, 4, 7, 2, 0, 0, 0]] * 3)
    found = model.score({"image": image}, {target: ids}, seed=[7, 8, 9])
    number, first = model.config.modality_id(target), int(target == "text")
    for sample, seed in enumerate((7, 8, 9)):
        order = torch.rand(1, ids.shape[1], generator=torch.Generator().manual_seed(seed)).argsort()[0]
        if target == "text":
            order = torch.arange(5)
        total, known = 0.0, list(range(first))
        for place in order[first:].tolist():
            positions = torch.tensor([[*range(12), *known]])
            modality_ids = torch.tensor([[model.config.modality_id("image")] * 12 + [number] * len(known)])
            steps = torch.tensor([[0] * 12 + list(range(1 - first, 1 - first + len(known)))])  # bos is given
            tokens = torch.cat([image[sample], ids[sample, known]])[None]
            asked = torch.tensor([[place]])
            output = model(
                tokens,
                modality_ids,
                positions,
                torch.full_like(asked, number),
                asked,
                input_steps=steps,
            )
            logits = model.logits_of(target, output.last_hidden_state[0, 0])
            if target == "text":  # padding and a begin are never generated
                logits[:2] = -torch.inf
            total += logits.log_softmax(-1)[ids[sample, place]]
            known.append(place)
        torch.testing.assert_close(found[sample], total, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_scores_rank_and_normalise():
    model = make_model(modalities={"one": {"vocab_size": 4, "token_axes": {"index": 2}}})
    everything = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    torch.testing.assert_close(model.score({}, {"one": everything}, seed=[0] * 16).exp().sum(), torch.tensor(1.0))
    ids = model.generate({}, "one", batch_size=4000, num_inference_steps=2, seed=0)
    found = torch.bincount(4 * ids[:, 0] + ids[:, 1], minlength=16) / 4000
    expected = model.score({}, {"one": everything}, num_orders=1, seed=[0] * 16).exp()
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.9
    with pytest.raises(ValueError, match="both among"):
        model.score({"one": ids}, {"one": ids})


TINY_TEXT = {**MODALITIES["text"], "vocab_size": 5, "token_axes": {"index": 4}}


@torch.no_grad()
def test_the_probabilities_of_all_texts_add_up_to_one():
    model = make_model(modalities={"text": TINY_TEXT})
    words = [3, 4]
    texts = [[1, *words] for words in product(words, repeat=3)]
    texts += [[1, *text, 2, *[0] * (2 - length)] for length in range(3) for text in product(words, repeat=length)]
    probabilities = model.score({}, {"text": torch.tensor(texts)}, seed=[0] * len(texts)).exp()
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    made = model.generate({}, "text", batch_size=4000, seed=0)
    for text, probability in zip(texts, probabilities, strict=True):
        assert (made == torch.tensor(text)).all(1).float().mean() == pytest.approx(float(probability), abs=0.03)
    # A word behind the end, a second begin, padding, another begin.
    never = torch.tensor([[1, 2, 3, 4], [1, 3, 1, 2], [1, 3, 0, 2], [3, 3, 4, 2]])
    masks = {"text": torch.ones_like(never)}
    assert (model.score({}, {"text": never}, masks, seed=[0] * 4) == -torch.inf).all()
    # The begin token is there whether it is said to be or not.
    masks = {"text": torch.tensor([[0, 1, 1, 1]] * 8)}
    torch.testing.assert_close(model.score({}, {"text": torch.tensor(texts[:8])}, masks).exp(), probabilities[:8])


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("target", ["image", "text"])
def test_logits_are_computed_a_few_queries_at_a_time(target, order, monkeypatch):
    model, condition = make_model(), {"audio": CONDITION["audio"]}

    def run():
        options = {"guidance_scale": 2.0, "top_k": 5, "seed": 0, "scheduler": UnmaskingScheduler(order=order)}
        made = model.generate(condition, target, num_inference_steps=3, **options)
        return made, model.score(condition, {target: made})

    expected, scores = run()
    asked = []
    logits_of = model.logits_of
    monkeypatch.setattr(
        model, "logits_of", lambda name, states: asked.append(states[..., 0]) or logits_of(name, states)
    )
    monkeypatch.setattr("modeling_nano4m.generation_nano4m.LOGITS_AT_ONCE", 4 * 130)
    found, found_scores = run()
    assert torch.equal(found, expected)
    torch.testing.assert_close(found_scores, scores)
    assert max(states.numel() for states in asked) * model.config.vocab_size_of(target) <= 130


def test_ids_stay_in_the_vocabulary_however_extreme_the_settings():
    model, image = make_model(), {"image": CONDITION["image"]}
    coldest = model.generate(image, "audio", temperature=0, seed=0)
    for temperature in (1e-40, 5e-324):
        assert torch.equal(model.generate(image, "audio", temperature=temperature, seed=0), coldest)
    for options in ({"guidance_scale": 1e30}, {"temperature": 1e-6, "guidance_scale": 1e35}, {"temperature": 1e30}):
        assert model.generate(image, "audio", seed=0, **options).max() < 7
    with pytest.raises(ValueError, match="no id of 'audio' is possible"):
        model.generate(image, "audio", guidance_scale=1e38, seed=0)
    with pytest.raises(ValueError, match="no id of 'audio' is possible"):
        broken = make_model()
        torch.nn.init.constant_(broken.decoder_norm.weight, torch.nan)
        broken.generate(image, "audio", temperature=0, seed=0)
    nothing = {"a": {"vocab_size": 1, "token_axes": {"i": 3}, "pad_token_id": 0}}
    with pytest.raises(ValueError, match="no id of 'a' is possible"):
        make_model(modalities=nothing).generate({}, "a", temperature=0, seed=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_generates_and_scores(dtype):
    model = make_model().to(dtype)
    made = model.generate(CONDITION, "text", guidance_scale={"image": -3.0}, seed=0)
    assert made.max() < 30 and model.score(CONDITION, {"text": made}).isfinite().all()


@pytest.mark.parametrize(
    "options, match",
    [
        *[
            ({"guidance_scale": value}, "guidance_scale=")
            for value in (torch.nan, torch.inf, "2", {"image": torch.nan})
        ],
        *[({"temperature": value}, "temperature=") for value in (-1, torch.inf, "1")],
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5"),
        ({"scheduler": "random"}, "scheduler must be"),
        ({"scheduler": {"text": UnmaskingScheduler()}}, "'text' is not among the targets"),
        ({"batch_size": 5}, "batch_size=5, but the inputs have 3 samples"),
        ({"valid_masks": {"audio": torch.ones(3, 10)}}, r"valid_masks\['audio'\] belongs to no ids"),
        ({"valid_masks": {"smell": torch.ones(3, 10)}}, "unknown modality 'smell'"),
        ({"inputs": {}, "batch_size": 0}, "at least one sample"),
        ({"inputs": {"image": torch.zeros(0, 12, dtype=torch.int64)}}, "at least one sample"),
        ({"inputs": {"image": torch.zeros(3, 12)}}, "'image' must be a tensor of whole numbers"),
        ({"inputs": {"image": [[0] * 12]}}, "'image' must be a tensor of whole numbers"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"target": ["audio", "audio"]}, "target names a modality twice"),
    ],
)
def test_what_makes_no_sense_is_refused(options, match):
    model = make_model()
    with pytest.raises(ValueError, match=match):
        model.generate(**{"inputs": {"image": CONDITION["image"]}, "target": "audio", **options})


def test_scores_of_what_makes_no_sense_are_refused():
    model, audio = make_model(), {"audio": CONDITION["audio"]}
    for options, match in (
        ({"num_orders": 0}, "num_orders=0"),
        ({"num_orders": 1.5}, "num_orders=1.5"),
        ({"valid_masks": {"image": torch.ones(3, 12)}}, r"valid_masks\['image'\] belongs to no ids"),
        ({"seed": "one"}, "seed='one'"),
    ):
        with pytest.raises(ValueError, match=match):
            model.score({}, audio, **options)


def test_seeds_may_be_of_any_whole_type():
    model = make_model()
    expected = model.generate({}, "audio", batch_size=2, seed=[3, 4])
    for seed in (3, np.int64(3), torch.tensor(3), np.array([3, 4]), torch.tensor([3, 4]), (np.int32(3), 4)):
        assert torch.equal(model.generate({}, "audio", batch_size=2, seed=seed), expected)
    for seed in (-1, 2**64 - 1):
        assert model.generate({}, ["audio", "image"], seed=seed)["image"].shape == (1, 12)
