"""Quantizers: exact round trips, ids in range, the papers' properties."""

import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from test_tokenizers import example, image_tokenizer

from tokenizers_4m import ImageTokenizer, ImageTokenizerConfig
from tokenizers_4m.quantizer import CosineVectorQuantizer, VectorQuantizer
from tokenizers_4m.scalar_quantizers import FiniteScalarQuantizer, LookupFreeQuantizer

KINDS = {
    "vq": {"codebook_size": 32},
    "cosine_vq": {"codebook_size": 32},
    "fsq": {"fsq_levels": (5, 4, 3)},
    "lfq": {"codebook_size": 32},
}


@pytest.fixture(params=KINDS)
def model(request) -> ImageTokenizer:
    model = image_tokenizer(quantizer=request.param, **KINDS[request.param])
    if request.param == "fsq":  # as training does, else all latents are near the middle
        model.quantizer.project_in.weight.data *= 20
    return model


@torch.no_grad()
def test_decoding_the_ids_is_the_reconstruction_exactly(model):
    pixel_values = example(model)
    output = model(pixel_values)
    token_ids = model.encode(pixel_values)
    assert torch.equal(token_ids, output.token_ids)
    assert torch.equal(model.decode(token_ids), output.reconstruction)
    assert 0 <= token_ids.min() and token_ids.max() < model.config.vocab_size
    assert len(token_ids.unique()) > 2, "different patches must get different ids"


@torch.no_grad()
def test_half_precision_keeps_the_round_trip(model):
    pixel_values = example(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixel_values)
        assert torch.equal(model.decode(output.token_ids), output.reconstruction)
    assert output.loss.isfinite() and output.loss.dtype == torch.float32
    agreement = (output.token_ids == model.encode(pixel_values)).float().mean()
    assert agreement > 0.8


@torch.no_grad()
def test_every_code_has_its_own_vector_and_is_found_again(model):
    vectors = model.token_vectors()
    assert vectors.shape[0] == model.config.vocab_size == len(vectors.unique(dim=0))
    quantizer, every_id = model.quantizer, torch.arange(model.config.vocab_size)[:, None]
    latents = quantizer.lookup(every_id)
    expected = quantizer.project_out(vectors)
    torch.testing.assert_close(latents, expected)


def test_weights_loaded_in_half_precision_give_ids(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    token_ids = loaded.encode(example(model))
    assert torch.equal(loaded.decode(token_ids), loaded(example(model)).reconstruction)
    assert (token_ids == model.encode(example(model))).float().mean() > 0.8


def test_training_reaches_every_weight_and_saves_what_it_used(model, tmp_path):
    """Gradients pass the rounding, and the loss of a few steps on one batch goes down."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    losses = []
    for _ in range(30):
        loss = model(example(model)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing
        optimizer.zero_grad()
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_fsq_rounds_to_the_nearest_level_and_orders_its_ids():
    quantizer = FiniteScalarQuantizer(2, [3, 4]).eval()
    with torch.no_grad():
        for projection in (quantizer.project_in, quantizer.project_out):
            projection.weight.copy_(torch.eye(2))
            projection.bias.zero_()
    assert quantizer.codebook_size == 12
    vectors = quantizer.code_vectors()
    assert vectors[:, 0].unique().tolist() == [-1, 0, 1]
    assert vectors[:, 1].unique().tolist() == [-1, -0.5, 0, 0.5]  # an even number has no level in the middle
    low, high = quantizer(torch.tensor([[-9.0, -9.0], [9.0, 9.0]])).token_ids.flatten().tolist()
    assert (low, high) == (0, 11)
    latents = torch.randn(4096, 2) * 2
    assert len(quantizer(latents).token_ids.unique()) == 12


def test_fsq_calls_saturated_latents_back():
    """Through the rounding no gradient reaches them, and a tokenizer would stay with a code or two."""
    quantizer = FiniteScalarQuantizer(4, [8, 5])
    latents = (100 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    output = quantizer(latents)
    (through_rounding,) = torch.autograd.grad(output.quantized.square().sum(), latents, retain_graph=True)
    (called_back,) = torch.autograd.grad(output.commitment_loss, latents)
    assert (through_rounding == 0).all(1).float().mean() > 0.5
    after = quantizer(latents.detach() - 100 * called_back)
    assert 0 < after.commitment_loss < output.commitment_loss
    assert quantizer(latents.detach() / 100).commitment_loss == 0


def test_fsq_gives_the_codes_of_the_library():
    library = pytest.importorskip("vector_quantize_pytorch", reason="the tests' extra is not installed")
    levels = [8, 5, 4]
    theirs, ours = library.FSQ(levels), FiniteScalarQuantizer(3, levels).eval()
    latents = torch.randn(2, 64, 3) * 2
    with torch.no_grad():
        for projection in (ours.project_in, ours.project_out):
            projection.weight.copy_(torch.eye(3))
            projection.bias.zero_()
        codes, token_ids = theirs(latents)
        output = ours(latents)
    assert torch.equal(output.token_ids[..., 0], token_ids.long())
    torch.testing.assert_close(output.quantized, codes)


def test_lfq_entropy_is_that_of_all_codes():
    """Against the definition, with a softmax over every code."""
    torch.manual_seed(0)
    quantizer = LookupFreeQuantizer(5, 32, temperature=0.7).train()
    latents = torch.randn(50, 5) * 0.3
    output = quantizer(latents)
    projected, codes = quantizer.project_in(latents), quantizer.code_vectors()
    distances = (projected[:, None] - codes).square().sum(-1)
    probabilities = (-distances / 0.7).softmax(-1)
    of_each = torch.special.entr(probabilities).sum(-1).mean()
    of_all = torch.special.entr(probabilities.mean(0)).sum()
    torch.testing.assert_close(output.entropy_loss, of_each - of_all)
    assert -math.log(32) <= output.entropy_loss.item() <= 0


def test_lfq_entropy_stays_finite_far_from_the_boundary():
    quantizer = LookupFreeQuantizer(4, 16).train()
    latents = (torch.randn(8, 4) * 1e4).requires_grad_()
    output = quantizer(latents)
    output.entropy_loss.backward()
    assert output.entropy_loss.isfinite() and latents.grad.isfinite().all()


def test_cosine_codes_stay_on_the_sphere_and_ignore_length():
    torch.manual_seed(0)
    quantizer = CosineVectorQuantizer(4, 16, code_dim=4).train()
    for _ in range(5):
        quantizer(torch.randn(256, 4))
    torch.testing.assert_close(quantizer.codebooks.norm(dim=-1), torch.ones(1, 16))
    quantizer.eval().project_in.bias.data.zero_()
    latents = torch.randn(64, 4)
    assert torch.equal(quantizer(latents).token_ids, quantizer(7 * latents).token_ids)
    with pytest.raises(ValueError, match="num_quantizers=2"):
        CosineVectorQuantizer(4, 16, num_quantizers=2)


def test_loaded_codes_are_kept_when_training_starts():
    """Not thrown away for latents of the first batch, as an untrained codebook is."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 16, code_dim=4)
    codes = torch.randn(1, 16, 4)
    quantizer.load_codes(codes)
    quantizer.train()(torch.randn(32, 4))
    assert F.cosine_similarity(quantizer.codebooks, codes, dim=-1).min() > 0.8


def test_latent_noise_changes_ids_in_training_only():
    torch.manual_seed(0)
    for quantizer in (
        VectorQuantizer(4, 8, code_dim=4, latent_noise=0.5),
        FiniteScalarQuantizer(4, [5, 5], latent_noise=0.5),
        LookupFreeQuantizer(4, 8, latent_noise=0.5),
    ):
        latents = torch.randn(512, 4)
        quantizer.train()(latents)
        first, second = quantizer(latents).token_ids, quantizer(latents).token_ids
        assert 0.02 < (first != second).float().mean() < 0.9
        quantizer.eval()
        assert torch.equal(quantizer(latents).token_ids, quantizer(latents).token_ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer": "gumbel"}, "quantizer='gumbel'"),
        ({"quantizer": "fsq", "fsq_levels": (8, 1)}, "fsq_levels"),
        ({"quantizer": "lfq", "codebook_size": 1000}, "codebook_size=1000"),
    ],
)
def test_settings_that_fit_no_quantizer_are_named(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ImageTokenizerConfig(**fields)
