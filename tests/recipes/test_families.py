"""Our recipe and torchtune's own on every family, with images and videos."""

import json

import pytest
import tiny
import torch
import yaml
from launch import run
from safetensors.torch import load_file
from stock import config, losses, start
from transformers import AutoModelForImageTextToText
from videos import encode

from torchtune_qwenvl import load_model
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter

RATE = 1e3  # of plain SGD: one step moves the weights far against their rounding
LORA = {
    **dict.fromkeys(("encoder_trainable", "fusion_trainable", "decoder_trainable"), "lora"),
    **{"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4, "lora_alpha": 8, "apply_lora_to_mlp": True},
}


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def workspace(request, tmp_path_factory):
    """Checkpoint folder and four conversations: the first has an image, the third a video."""
    root = tmp_path_factory.mktemp(request.param)
    tiny.save_tiny_folder(root / "checkpoint", family=request.param, seed=4)
    tiny.photo(56, 84).save(root / "0.png")
    encode(root / "2.mp4", 8, 60, 90, rate=4, codec="mpeg4")
    rows = []
    for i, media in enumerate([{"image": "0.png"}, {}, {"video": "2.mp4"}, {}]):
        turns = [("human", "".join(f"<{kind}>" for kind in media) + "what?"), ("gpt", "abcd"[i] * 3)]
        rows.append({"conversations": [{"from": f, "value": v} for f, v in turns], **media})
    (root / "data.json").write_text(json.dumps(rows))
    (root / "stock.json").write_text(json.dumps(rows[::2] * 4))
    settings = {
        "checkpoint_dir": str(root / "checkpoint"),
        "dtype": "fp32",
        "num_workers": 0,
        "shuffle": False,
        "max_steps_per_epoch": 1,
        "optimizer": {"_component_": "torch.optim.SGD", "lr": RATE},
        "model": config(root, root, {}, request.param)["model"],
        "dataset": {
            "_component_": "torchtune_qwenvl.data.vision_chat_dataset",
            "source": str(root / "data.json"),
        },
    }
    (root / "ours.yaml").write_text(yaml.safe_dump(settings))
    return request.param, root


def test_two_ranks_and_packed_rows_take_the_step_of_one_padded_batch(workspace):
    """Rank 0 gets only an image and a video, rank 1 only text; packed, all four share a row."""
    _, root = workspace
    before, steps = load_file(root / "checkpoint" / "model.safetensors"), {}
    ways = {
        "one": ("batch_size=4",),
        "two": ("batch_size=2", "padding_free=true"),
        "packed": ("pack_to=900",),
    }
    for way, overrides in ways.items():
        processes = 2 if way == "two" else 1
        finished = run(root / way, *overrides, config=root / "ours.yaml", processes=processes)
        assert finished.codes == [0] * processes, finished.printed
        after = load_file(root / way / "model" / "model.safetensors")
        steps[way] = {name: (before[name] - after[name]).double() for name in before}
    assert "4 samples packed into 1 row" in finished.printed
    for name, one in steps["one"].items():
        for way in ("two", "packed"):
            assert (steps[way][name] - one).norm() <= 1e-5 * one.norm(), (way, name)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_stock_recipe(workspace, method):
    family, root = workspace
    arguments = dict(LORA) if method == "lora" else {}
    settings = config(root, root / method, arguments, family)
    ours = "torchtune_qwenvl.data.vision_chat_dataset"  # torchtune's datasets know no videos
    settings["dataset"] = {"_component_": ours, "source": str(root / "stock.json")}
    settings["batch_size"] = 2
    logged = losses(start(settings), settings)
    assert len(logged) == 4 and logged[-1] < logged[0]
    final = root / method / "epoch_0"
    merged, info = AutoModelForImageTextToText.from_pretrained(final, output_loading_info=True)
    assert not any(info.values()), info
    if method == "lora":
        found = adapter_arguments(final / "adapter", root / "checkpoint")
        again = load_adapter(load_model(root / "checkpoint", **found), final / "adapter")
        tokens = torch.arange(20)[None]
        with torch.no_grad():
            torch.testing.assert_close(
                again.eval()(tokens), merged(input_ids=tokens).logits, atol=1e-4, rtol=1e-4
            )
