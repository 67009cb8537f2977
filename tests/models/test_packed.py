"""Documents in one row without padding: loss and gradients of the padded batch, and no leak between them."""

import random

import pytest
import tiny
import torch
from cases import DELTA_NETS, Case, Video, as_wide_as, of_scale, ours_like, relative
from faults.campaign import campaign_size
from tiny_families import FAMILIES

from torchtune_qwenvl.data import collate

MIXTURES = 120
NOTHING = 1e-12  # of the largest gradient: rounding
EDGES = [1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129]
MEDIA = [(1, 4, 4), (1, 4, 6), (1, 8, 4), (1, 12, 8), (1, 2, 2), Video(2, 4, 4), Video(3, 2, 4, seconds=3.0)]


@pytest.fixture(scope="module", params=FAMILIES)
def hf(request: pytest.FixtureRequest):
    return tiny.tiny_hf_model(seed=5, family=request.param)


def document(rng: random.Random) -> list:
    """Text only, one image or video, or many, text around and between; sometimes a single token."""
    n_media = rng.choice([0, 0, 1, 1, 2, 4])
    if not n_media and rng.random() < 0.1:
        return [1]
    pieces: list = [rng.randint(1, 9)]
    for _ in range(n_media):
        pieces += [rng.choice(MEDIA), rng.randint(1, 20)]
    return pieces if n_media else [rng.randint(2, 40)]


def around_the_edges(rng: random.Random) -> list:
    """The same for delta nets: often as long as their convolution or their chunks."""
    return [rng.choice(EDGES)] if rng.random() < 0.5 else document(rng)


def run(model, batch) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    with as_wide_as(model, batch) as inputs:
        loss, n = model(**inputs)
        loss.backward()
    return loss.detach(), int(n), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("family", "document", "mixtures"),
    [
        ("qwen2_5_vl", document, MIXTURES),
        *((family, around_the_edges, campaign_size(8, MIXTURES)) for family in DELTA_NETS),
    ],
    ids=["qwen2_5_vl", *DELTA_NETS],
)
def test_packed_equals_unpacked_on_many_mixtures(family, document, mixtures) -> None:
    """Loss and every gradient of mixtures of 1 to 7 documents; what delta nets amplify is taken in fp64."""
    hf, rng = tiny.tiny_hf_model(seed=5, family=family), random.Random(0)
    model = ours_like(hf).train()
    if family in DELTA_NETS:
        model = model.double()
    worst = 0.0
    for mixture in range(mixtures):
        rows = [document(rng) for _ in range(rng.randint(1, 7))]
        samples = Case(hf, *rows, labelled=rng.randint(1, 6), seed=mixture).samples
        loss, n, gradients = run(model, collate(samples))
        packed_loss, packed_n, packed = run(model, collate(samples, padding_free=True))
        assert packed_n == n
        assert abs(packed_loss - loss) <= 1e-5 * abs(loss), rows
        nothing = NOTHING * max(gradient.norm() for gradient in gradients.values())
        for name, gradient in gradients.items():
            if gradient.norm() > nothing:
                worst = max(worst, relative(packed[name], gradient))
            else:  # no image, nothing labelled, or attention to a single key
                assert packed[name].norm() <= nothing, (name, rows)
        assert worst <= 1e-5, rows
    print(f"{family}: worst gradient of {mixtures} mixtures: {worst:.1e} relative")


def test_every_family_packs(hf) -> None:
    model = ours_like(hf).train()
    clip = Video(2, 4, 6, seconds=3.0)
    rows = [3, (1, 4, 6), 5], [17], [2, (1, 8, 4), 3, clip, 6], [6], [2, clip, 5]
    samples = Case(hf, *rows).samples
    loss, n, gradients = run(model, collate(samples))
    packed_loss, packed_n, packed = run(model, collate(samples, padding_free=True))
    assert packed_n == n and abs(packed_loss - loss) <= 1e-5 * loss
    for name, gradient in gradients.items():
        assert relative(packed[name], gradient) <= 1e-5, name


def test_logits_of_a_document_do_not_depend_on_its_neighbours(hf) -> None:
    model = ours_like(hf)
    samples = Case(hf, [12, (1, 4, 6), 5], [17], [2, (1, 8, 4), 6], [2, Video(2, 4, 6), 6]).samples
    packed = collate(samples, padding_free=True)
    packed.pop("labels")
    together = model(**packed).squeeze(0).split(packed["layout"]["document_lengths"].tolist())
    for sample, logits in zip(samples, together, strict=True):
        alone = collate([sample])
        alone.pop("labels")
        assert of_scale(logits, model(**alone)[0]) <= 5e-6
    # What the boundaries do: as one document the second one sees the first.
    packed["layout"] = {"document_lengths": torch.tensor([packed["tokens"].numel()])}
    joined = model(**packed).squeeze(0)
    first = len(samples[0]["tokens"])
    assert of_scale(joined[:first], together[0]) <= 5e-6
    assert of_scale(joined[first : first + 17], together[1]) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_bit_of_a_document_depends_on_what_its_neighbour_says(hf, dtype) -> None:
    """With other tokens in it, the logits of all other documents are the same bits.

    Not with experts: there the tokens of all documents that chose an expert are one product, and how long
    that is decides how it rounds.
    """
    if hf.config.model_type.endswith("_moe"):
        pytest.skip("an expert's product holds tokens of all documents")
    model = ours_like(hf).to(dtype)
    samples = Case(hf, [3], [30, (1, 4, 6), 35], [65]).samples
    packed = collate(samples, padding_free=True)
    packed.pop("labels")
    lengths = [len(sample["tokens"]) for sample in samples]
    before = model(**packed)[0].split(lengths)
    for changed in range(len(samples)):
        tokens = packed["tokens"].clone()
        said = tokens[0].split(lengths)[changed]
        said[said != model.image_token_id] = 7
        after = model(**{**packed, "tokens": tokens})[0].split(lengths)
        for document, (one, other) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(one, other) == (document != changed)


def test_text_positions_start_anew_in_every_document() -> None:
    hf = tiny.tiny_hf_model()
    model = ours_like(hf)
    samples = Case(hf, [7], [4], [9]).samples
    packed = collate(samples, padding_free=True)
    packed.pop("labels")
    expected = model(**packed)
    del packed["input_pos"], packed["encoder_input"]
    assert torch.equal(model(**packed), expected)


def test_documents_must_add_up() -> None:
    hf = tiny.tiny_hf_model()
    batch = collate(Case(hf, [7], [4]).samples, padding_free=True)
    batch["layout"]["document_lengths"] = [7, 5]
    with pytest.raises(ValueError, match="add up to 12, tokens are 11"):
        ours_like(hf)(**batch)
