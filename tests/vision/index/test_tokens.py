"""Late interaction and token pooling against plain definitions."""

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy
from torch.nn.functional import normalize

from torchtune_qwenvl.vision.index import late_interaction, pool_by_factor
from torchtune_qwenvl.vision.index.token_pooling import ward_groups


def test_late_interaction_sums_the_best_cosines() -> None:
    query, docs = torch.randn(3, 6), [torch.randn(n, 6) for n in (1, 4, 9)]
    expected = [
        sum(max(float(torch.cosine_similarity(q, d, dim=0)) for d in doc) for q in query) for doc in docs
    ]
    torch.testing.assert_close(late_interaction(query, docs), torch.tensor(expected))
    assert late_interaction(query, [query * 5])[0] == pytest.approx(3)
    assert late_interaction(query, torch.randn(2, 7, 6)).shape == (2,)
    for bad, message in (([], "at least one image"), ([torch.ones(2, 5)], r"image 0 .*\[n, 6\]")):
        with pytest.raises(ValueError, match=message):
            late_interaction(query, bad)


@pytest.mark.parametrize("count", [1, 2, 17, 60, 120])
def test_groups_are_those_of_scipy(count: int) -> None:
    points = normalize(torch.randn(120, 5, dtype=torch.float64), dim=1).numpy()
    labels = hierarchy.fcluster(hierarchy.linkage(points, "ward"), count, "maxclust")
    groups = ward_groups(points, count)
    assert len(set(zip(labels, groups, strict=True))) == len(set(labels)) == count
    assert list(dict.fromkeys(groups)) == list(range(count))  # numbered by their first points


def test_pooling_keeps_what_is_alike_together() -> None:
    kinds = normalize(torch.randn(4, 16), dim=1)
    tokens = kinds[[0, 1, 0, 2, 3, 1, 0, 2]] + 0.01 * torch.randn(8, 16)
    pooled = pool_by_factor(tokens, 2)
    torch.testing.assert_close(pooled[0], tokens[[0, 2, 6]].mean(0))
    torch.testing.assert_close(pooled[3], tokens[4])
    assert torch.equal(pool_by_factor(tokens, 1), tokens)
    torch.testing.assert_close(pool_by_factor(tokens, 100), tokens.mean(0, keepdim=True))
    assert pool_by_factor(torch.ones(7, 3), 3).shape == (3, 3)  # equal tokens


def test_neighbours_are_means_of_blocks() -> None:
    tokens = torch.arange(2 * 3 * 4, dtype=torch.float32)[:, None]
    pooled = pool_by_factor(tokens, 4, by="neighbours", grid=(2, 3, 4))
    frame = np.array([[2.5, 4.5], [8.5, 10.5]])
    assert pooled[:, 0].numpy().reshape(2, 2, 2) == pytest.approx(np.stack([frame, frame + 12]))
    with pytest.raises(ValueError, match="expected the grid"):
        pool_by_factor(tokens, 4, by="neighbours", grid=(1, 3, 4))


@pytest.mark.parametrize(("tokens", "factor"), [(torch.ones(0, 3), 2), (torch.ones(3, 3), 0)])
def test_pooling_refuses(tokens: torch.Tensor, factor: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pool_by_factor(tokens, factor)
