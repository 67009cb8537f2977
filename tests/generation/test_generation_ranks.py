"""Ranks that share a model say the same and stop together, also where their devices round differently."""

import tiny
from sharded_generation import generate_on_ranks
from torchtune.data import Message

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.generation import generate


def test_every_rank_takes_rank_0s_tokens(tiny_folder):
    transform = load_transform(tiny_folder)
    content = [{"type": "image", "content": tiny.photo(56, 84)}, {"type": "text", "content": "What?"}]
    samples = [transform({"messages": [Message("user", content)]}, inference=True)]
    options = {"pad_id": transform.pad_id, "max_new_tokens": 8}
    said = generate(load_model(tiny_folder).eval(), samples, stop_tokens=(), **options)
    assert len(set(said[0])) > 1
    assert generate_on_ranks(tiny_folder, samples, 2, stop_tokens=(), **options) == [said] * 2

    # Rank 1 by itself would not meet the stop token, and would wait in the next layer for ever.
    stop = said[0][-1]
    until = [said[0][: said[0].index(stop)]]
    assert generate_on_ranks(tiny_folder, samples, 2, stop_tokens=(stop,), **options) == [until] * 2
