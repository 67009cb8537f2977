"""Tokens beyond the embeddings are named at load; resized ones train, and load in transformers and PEFT."""

import json

import pytest
import tiny
import torch
from cases import Case, of_scale
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from torchtune_qwenvl import load_model, load_transform, save_model
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.checkpoints.checkpointer import FolderCheckpointer
from torchtune_qwenvl.checkpoints.embedding_rows import check_token_ids, check_transform
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.weight_plan import plan_weights
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models import get_family

OLD, NEW = 304, 309  # rows before and after
EMBEDDINGS, HEAD = "decoder.tok_embeddings.weight", "decoder.output.weight"
LORA = {
    "encoder_trainable": "frozen",
    "fusion_trainable": "frozen",
    "decoder_trainable": "lora",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "lora_rank": 2,
    "lora_alpha": 4,
}


@pytest.fixture(
    scope="module",
    params=[
        ("qwen2_5_vl", True, "published"),
        ("qwen2_5_vl", False, "5.x"),
        ("qwen3_vl_moe", False, "published"),
    ],
    ids=lambda p: f"{p[0]} {'' if p[1] else 'un'}tied {p[2]}",
)
def source(request, tmp_path_factory):
    """A tiny folder with OLD rows and a user's token with the id NEW - 1."""
    family, tie, layout = request.param
    path = tmp_path_factory.mktemp("resized") / "source"
    tiny.save_tiny_folder(path, family=family, tie=tie, layout=layout, vocab_size=OLD, seed=3)
    add_token(path)
    return path


def add_token(path):
    config = json.loads((path / "tokenizer_config.json").read_text())
    if "added_tokens_decoder" not in config:  # as transformers 5 writes it, in tokenizer.json
        whole = json.loads((path / "tokenizer.json").read_text())
        first = len(whole["model"]["vocab"]) + len(whole["added_tokens"])
        whole["added_tokens"] += [
            {**whole["added_tokens"][0], "id": i, "content": f"<|mine {i}|>"} for i in range(first, NEW)
        ]
        return (path / "tokenizer.json").write_text(json.dumps(whole))
    listed = config["added_tokens_decoder"]
    for i in range(max(map(int, listed)) + 1, NEW):
        listed[str(i)] = {**next(iter(listed.values())), "content": f"<|mine {i}|>"}
    return (path / "tokenizer_config.json").write_text(json.dumps(config))


def case_of(hf):
    case = Case(hf, [3, (1, 4, 6), 5], [NEW - 260])
    batch = collate(case.samples, padding_idx=0)
    batch.pop("labels")
    theirs = case.reference_inputs()
    theirs.pop("labels")
    batch["tokens"][0, 1] = theirs["input_ids"][0, 1] = NEW - 1
    return batch, theirs


@torch.no_grad()
def logits_of(model, inputs):
    logits = model(**inputs)
    return getattr(logits, "logits", logits)


def compare(expected, got, theirs):
    real = theirs["attention_mask"].bool()
    assert of_scale(got[real], expected[real]) <= 1e-5


@torch.no_grad()
def resized_reference(source, weights):
    """transformers' model with as many rows, which are given."""
    hf = AutoModelForImageTextToText.from_pretrained(source)
    hf.resize_token_embeddings(NEW, mean_resizing=False)
    hf.get_input_embeddings().weight.copy_(weights[EMBEDDINGS])
    hf.get_output_embeddings().weight.copy_(weights.get(HEAD, weights[EMBEDDINGS]))
    return hf.eval()


def test_a_token_beyond_the_embeddings_is_named_at_load(source):
    with pytest.raises(
        ValueError, match=rf"beyond the model's {OLD} rows .*'<\|mine 304\|>' \(304\)"
    ) as error:
        load_model(source)
    assert f"set resize_embeddings to at least {NEW}" in str(error.value)
    with pytest.raises(ValueError, match=rf"at least {NEW} "):
        load_model(source, resize_embeddings=NEW - 1)
    with pytest.raises(ValueError, match=rf"expected at least the {OLD} rows .* got 10"):
        load_model(source, resize_embeddings=10)


def test_new_rows_are_the_mean_and_are_saved(source, tmp_path):
    model = load_model(source, resize_embeddings=NEW).eval()
    weights = {name: p.detach() for name, p in model.named_parameters() if name in (EMBEDDINGS, HEAD)}
    for weight in weights.values():
        assert len(weight) == NEW
        assert torch.allclose(weight[OLD:], weight[:OLD].mean(0).expand(NEW - OLD, -1), atol=1e-7)
    reference = resized_reference(source, weights)
    batch, theirs = case_of(reference)
    compare(logits_of(reference, theirs), logits_of(model, batch), theirs)
    save_model(model, tmp_path / "out", source=source)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert again.config.get_text_config().vocab_size == NEW
    assert torch.equal(again.get_input_embeddings().weight, weights[EMBEDDINGS])
    compare(logits_of(again.eval(), theirs), logits_of(load_model(tmp_path / "out").eval(), batch), theirs)
    assert load_transform(tmp_path / "out").special_tokens["<|mine 308|>"] == NEW - 1


def test_embeddings_train_next_to_lora_and_go_to_peft(source, tmp_path, peft_without_torchao):
    model = load_model(source, resize_embeddings=NEW, **LORA).eval()
    trains = {name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert trains == {EMBEDDINGS, HEAD} & set(dict(model.named_parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    reference = AutoModelForImageTextToText.from_pretrained(source)
    reference.resize_token_embeddings(NEW, mean_resizing=False)
    batch, theirs = case_of(reference)
    expected = logits_of(model, batch)
    save_adapter(model, tmp_path / "adapter", source=source)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert [name.rpartition(".")[2] for name in config["modules_to_save"]] == ["lm_head", "embed_tokens"]
    peft = PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    compare(logits_of(peft, theirs), expected, theirs)

    arguments = adapter_arguments(tmp_path / "adapter", source)
    assert arguments["resize_embeddings"] == NEW and arguments["embeddings_trainable"]
    again = load_adapter(load_model(source, **arguments), tmp_path / "adapter").eval()
    assert torch.equal(logits_of(again, batch), expected)

    save_model(model, tmp_path / "merged", source=source)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    compare(logits_of(merged, theirs), expected, theirs)


def test_what_trains_is_said_or_follows_the_decoder(tiny_folder):
    def trains(**arguments):
        model = load_model(tiny_folder, **arguments)
        return dict(model.named_parameters())[EMBEDDINGS].requires_grad

    assert trains() and not trains(**LORA) and trains(**LORA, embeddings_trainable=True)
    assert trains(**LORA, resize_embeddings=600)
    assert not trains(**LORA, resize_embeddings=600, embeddings_trainable=False)
    assert not trains(embeddings_trainable=False)
    assert trains(decoder_trainable="frozen", embeddings_trainable=True)


def test_each_rank_reads_its_own_rows(source):
    with CheckpointFolder(source) as files:
        with torch.device("meta"):
            model = get_family(source).from_config(files.config, resize_embeddings=NEW)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        stored = plan_weights(files, get_family(source).weights, shapes)[EMBEDDINGS]
        whole = stored.read()
        assert whole.shape == shapes[EMBEDDINGS]
        for start, stop in ((0, 10), (300, 306), (304, 309), (306, 309), (309, 309), (0, 400)):
            assert torch.equal(stored.read(start, stop), whole[start:stop])


def test_the_checkpointer_of_stock_recipes_resizes_too(source, tmp_path):
    checkpointer = FolderCheckpointer(str(source), str(tmp_path), resize_embeddings=NEW)
    state = checkpointer.load_checkpoint()
    assert len(state["model"][EMBEDDINGS]) == NEW
    checkpointer.save_checkpoint(state, 0)
    assert len(dict(load_model(tmp_path / "epoch_0").named_parameters())[EMBEDDINGS]) == NEW


def test_a_folder_without_a_tokenizer_is_not_checked(tmp_path):
    check_token_ids(tmp_path, 1)


def test_a_transform_with_more_tokens_than_the_model_is_refused(source):
    model = load_model(source, resize_embeddings=NEW)
    transform = load_transform(source)
    check_transform(transform, model)
    transform.special_tokens["<|more|>"] = NEW
    with pytest.raises(ValueError, match=rf"1 tokens beyond the model's {NEW} rows .*'<\|more\|>' \({NEW}\)"):
        check_transform(transform, model)
