"""The contracts that other people's scripts call, as README and docstrings show them."""

import inspect
import subprocess
import sys

import pytest
import tiny
import torch
from torchtune.config._utils import _get_component_from_path
from torchtune.data import Message

import torchtune_qwenvl

COMPONENTS = [
    "torchtune_qwenvl.load_model",
    "torchtune_qwenvl.load_transform",
    "torchtune_qwenvl.save_model",
    "torchtune_qwenvl.data.collate",
    "torchtune_qwenvl.data.vision_chat_dataset",
    "torchtune_qwenvl.training.checkpointer.FolderCheckpointer",
    *(
        f"torchtune_qwenvl.models.qwen2_5_vl.{name}"
        for name in (
            *("qwen2_5_vl_vision_encoder", "qwen2_5_vl_decoder", "qwen2_5_vl_from_config"),
            *("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen2_5_vl_32b", "qwen2_5_vl_72b"),
            *("qwen2_5_vl_transform", "Qwen2_5_VLImageTransform", "Qwen2_5_VLTransform"),
        )
    ),
]


@pytest.mark.parametrize("path", COMPONENTS)
def test_components_are_found_by_dotted_path_and_documented(path):
    component = _get_component_from_path(path)
    assert callable(component)
    assert len(inspect.getdoc(component)) > 30


def test_the_whole_way_from_folder_to_folder(tmp_path, tiny_folder):
    """The lines of the README: load, transform, collate, logits, loss, save."""
    model = torchtune_qwenvl.load_model(tiny_folder, dtype=None, device="cpu")
    transform = torchtune_qwenvl.load_transform(tiny_folder, max_seq_len=512)
    content = [{"type": "image", "content": tiny.photo(60, 90)}, {"type": "text", "content": "What?"}]
    messages = [Message("user", content), Message("assistant", "A photo.")]
    sample = transform({"messages": messages})
    assert {"tokens", "mask", "input_pos", "encoder_input"} <= sample.keys()
    labels = [-100 if masked else t for t, masked in zip(sample["tokens"], sample["mask"], strict=True)]
    batch = torchtune_qwenvl.data.collate(
        [{**sample, "labels": labels}], padding_idx=transform.pad_id, ignore_idx=-100
    )
    labels = batch.pop("labels")
    logits = model(**batch)
    assert logits.shape == (1, len(sample["tokens"]), 512)
    loss_sum, n = model(**batch, labels=labels)
    shifted = torch.nn.functional.cross_entropy(
        logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
    )
    torch.testing.assert_close(loss_sum, shifted)
    assert n == (labels != -100).sum() > 0
    out = torchtune_qwenvl.save_model(model, tmp_path / "out", source=tiny_folder)
    torch.testing.assert_close(torchtune_qwenvl.load_model(out)(**batch), logits)


def test_unknown_names_and_folders_are_told(tmp_path):
    with pytest.raises(AttributeError, match="has no attribute 'load_modell'"):
        torchtune_qwenvl.load_modell  # noqa: B018
    with pytest.raises(ValueError, match=r"config\.json"):
        torchtune_qwenvl.load_transform(tmp_path)


def test_importing_the_package_is_cheap():
    code = "import sys, torchtune_qwenvl; assert not {'torch', 'torchtune'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_imports_neither_transformers_nor_peft(tiny_folder):
    code = (
        "import sys, torchtune_qwenvl as q, torchtune_qwenvl.data\n"
        "import torchtune_qwenvl.training.checkpointer\n"
        f"q.load_transform({str(tiny_folder)!r}); q.load_model({str(tiny_folder)!r})\n"
        "print(*sorted({'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.split() == []
