"""Several files as one dataset: names, places in messages, sizes, figures per member, resume, packing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import (
    MixedDataset,
    PackedSampler,
    ResumableSampler,
    build_loader,
    measure,
    mixed_dataset,
)
from torchtune_qwenvl.transforms.errors import BadSample


@pytest.fixture(scope="module")
def transform(tiny_folder: Path) -> Any:
    return load_transform(tiny_folder, dtype="uint8")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mix")
    lines = {
        "chats": [{"question": f"chat {i}", "answer": "yes " * i} for i in range(1, 7)],
        "charts": [{"question": f"chart {i}", "answer": "no"} for i in range(4)],
        "broken": [{"question": "good", "answer": "yes"}, {"question": "no answer"}],
    }
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return {name: str(folder / f"{name}.jsonl") for name in lines}


def mixed(transform: Any, files: dict[str, str], *weights: float, **options: Any) -> MixedDataset:
    chats = {"source": files["chats"], "weight": weights[0]}
    charts = {
        "_component_": "torchtune_qwenvl.data.vision_chat_dataset",
        "source": files["charts"],
        "weight": weights[1],
    }
    return mixed_dataset(transform, datasets=[chats, charts], **options)


def test_samples_are_the_members(transform: Any, files: dict[str, str]) -> None:
    data = mixed(transform, files, 0.6, 0.4)
    assert data.members.names == ["chats", "charts"] and data.mixture.drawn == [6, 4]
    order = data.mixture.order(0).tolist()
    assert [data[i]["tokens"] for i in range(len(data))] == [data.members[i]["tokens"] for i in order]
    assert [data.size(i).tokens for i in range(len(data))] == [len(sample["tokens"]) for sample in data]
    assert data.members.where(7).endswith("charts.jsonl, sample 1 (from 0; line 2)")


@pytest.mark.parametrize("workers", [0, 2])
def test_figures_per_member_and_the_file_of_a_bad_sample(
    transform: Any, files: dict[str, str], workers: int
) -> None:
    entries = [{"source": files["charts"]}, {"source": files["broken"], "label": "rest"}]
    data = mixed_dataset(transform, datasets=entries)
    sampler = ResumableSampler(len(data), mixture=data.mixture)
    options = {"batch_size": 3, "sampler": sampler, "num_workers": workers}
    batches = list(build_loader(data.members, on_bad_sample="skip", **options))
    assert [sum(batch.drawn.get(member, 0) for batch in batches) for member in (0, 1)] == [4, 2]
    assert [sum(batch.lost.get(member, 0) for batch in batches) for member in (0, 1)] == [0, 1]
    with pytest.raises(BadSample, match=r"broken\.jsonl, sample 1 \(from 0; line 2\): .*question and answer"):
        list(build_loader(data.members, **options))


class Foreign(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        raise ValueError("nothing here")


def test_other_datasets_are_named(transform: Any, files: dict[str, str]) -> None:
    ours = mixed(transform, files, 0.5, 0.5).members.datasets[0]
    data = MixedDataset([ours, ConcatDataset([Foreign(), Foreign()])], [0.5, 0.5], ["ours", "theirs"])
    loader = build_loader(data.members, batch_size=1, sampler=ResumableSampler(6, mixture=data.mixture))
    with pytest.raises(BadSample, match=r"^dataset theirs, sample \d \(from 0\): nothing here"):
        list(loader)


@pytest.mark.parametrize("pack_to", [None, 80])
def test_resume_at_any_batch(transform: Any, files: dict[str, str], pack_to: int | None) -> None:
    """In the second epoch, which goes on in the passes of the first."""
    data = mixed(transform, files, 0.25, 0.75)
    sizes = measure(data.members)

    def loader() -> Any:
        order = {"mixture": data.mixture, "seed": 3, "world_size": 2, "rank": 1}
        sampler = (
            ResumableSampler(len(data), **order)
            if pack_to is None
            else PackedSampler(sizes, pack_to=pack_to, look_ahead=3, **order)
        )
        return build_loader(data.members, batch_size=1, sampler=sampler)

    first = loader()
    first.set_epoch(1)
    states, whole = [first.state_dict()], []
    for batch in first:
        whole.append(batch.inputs["tokens"].tolist())
        states.append(first.state_dict())
    assert len(whole) >= 2
    for done, state in enumerate(states):
        again = loader()
        again.load_state_dict(state)
        assert [batch.inputs["tokens"].tolist() for batch in again] == whole[done:]


def test_another_mix_cannot_be_resumed(transform: Any, files: dict[str, str]) -> None:
    data, other = (mixed(transform, files, *weights) for weights in ((0.5, 0.5), (0.6, 0.4)))
    state = ResumableSampler(len(data), mixture=data.mixture).state_dict()
    with pytest.raises(
        ValueError, match=r"mixed its datasets differently: expected .*give it the datasets and"
    ):
        ResumableSampler(len(other), mixture=other.mixture).load_state_dict(state)


def test_entries_that_do_not_fit(transform: Any, files: dict[str, str]) -> None:
    one = {"source": files["chats"]}
    with pytest.raises(ValueError, match="two are called 'chats'; give each a label"):
        mixed_dataset(transform, datasets=[one, one])
    with pytest.raises(ValueError, match=r"a weight for all 2 or for none, dataset 1 .from 0. has none"):
        mixed_dataset(transform, datasets=[{**one, "weight": 1.0}, {"source": files["charts"]}])
    with pytest.raises(ValueError, match="at least one dataset, got none"):
        mixed_dataset(transform, datasets=[])
