"""Documents in one row without padding: loss and gradients of the padded batch, and no leak between them."""

import random

import pytest
import tiny
import torch
from cases import Case, Video, of_scale, ours_like, relative
from tiny_families import FAMILIES

from torchtune_qwenvl.data import collate

MIXTURES = 120
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


def run(model, batch) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss, n = model(**batch)
    loss.backward()
    return loss.detach(), int(n), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_packed_equals_unpacked_on_many_mixtures() -> None:
    """Every parameter of Qwen2.5-VL, 120 mixtures of 1 to 7 documents."""
    hf, rng = tiny.tiny_hf_model(seed=5), random.Random(0)
    model = ours_like(hf).train()
    worst = 0.0
    for mixture in range(MIXTURES):
        rows = [document(rng) for _ in range(rng.randint(1, 7))]
        samples = Case(hf, *rows, labelled=rng.randint(1, 6), seed=mixture).samples
        loss, n, gradients = run(model, collate(samples))
        packed_loss, packed_n, packed = run(model, collate(samples, padding_free=True))
        assert packed_n == n
        assert abs(packed_loss - loss) <= 1e-5 * abs(loss), rows
        for name, gradient in gradients.items():
            if gradient.any():
                worst = max(worst, relative(packed[name], gradient))
            else:  # no image, or nothing labelled
                assert not packed[name].any(), (name, rows)
        assert worst <= 1e-5, rows
    print(f"worst gradient of {MIXTURES} mixtures: {worst:.1e} relative")


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
    packed["layout"]["document_lengths"] = torch.tensor([packed["tokens"].numel()])
    joined = model(**packed).squeeze(0)
    first = len(samples[0]["tokens"])
    assert of_scale(joined[:first], together[0]) <= 5e-6
    assert of_scale(joined[first : first + 17], together[1]) > 1e-2


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
