"""The structure of the demonstration files that LLaMA-Factory and the Qwen team's trainer publish.

The words are ours; the keys, their order, tags and nesting are those of mllm_demo, mllm_video_demo,
alpaca_en_demo, identity, v1_sft_demo, glaive_toolcall_en_demo, dpo_en_demo, kto_en_demo and mllm_audio_demo
there, and of single_images, video and the multi-image, grounding and text records of the README here. All are
read without a setting.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import videos

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import SkippedSample, vision_chat_dataset
from torchtune_qwenvl.transforms.errors import BadSample

TOOLS = json.dumps(
    [
        {
            "name": "calculate_tip",
            "description": "The tip of a bill",
            "parameters": {
                "type": "object",
                "properties": {"bill": {"type": "number"}, "share": {"type": "number"}},
                "required": ["bill", "share"],
            },
        }
    ]
)
LLAMA_FACTORY: dict[str, dict[str, Any]] = {
    "mllm_demo": {
        "messages": [
            {"content": "<image>Who is playing?", "role": "user"},
            {"content": "Two boys of the village.", "role": "assistant"},
            {"content": "With what?", "role": "user"},
            {"content": "With a red ball.", "role": "assistant"},
        ],
        "images": ["demo_data/1.jpg"],
    },
    "mllm_video_demo": {
        "messages": [
            {"content": "<video>Why does the girl laugh?", "role": "user"},
            {"content": "The dog has her hat.", "role": "assistant"},
        ],
        "videos": ["demo_data/1.mp4"],
    },
    "alpaca_en_demo": {"instruction": "Name the capital.", "input": "Of Kenya", "output": "Nairobi."},
    "identity": {"instruction": "hi", "input": "", "output": "Hello! I am {{name}}, made by {{author}}."},
    "v1_sft_demo": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "value": "You help."}], "loss_weight": 0.0},
            {"role": "user", "content": [{"type": "text", "value": "hi"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": "Hello!"}], "loss_weight": 1.0},
        ]
    },
}
TOOL_CALLS = {
    "conversations": [
        {"from": "human", "value": "My bill is 50. What is a tip of a fifth?"},
        {
            "from": "function_call",
            "value": '{"name": "calculate_tip", "arguments": {"bill": 50, "share": 0.2}}',
        },
        {"from": "observation", "value": '{"tip": 10}'},
        {"from": "gpt", "value": "Ten."},
    ],
    "tools": TOOLS,
}
QWEN: dict[str, dict[str, Any]] = {
    "single_images": {
        "image": "demo_data/1.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is the color of the house?"},
            {"from": "gpt", "value": "It is white."},
        ],
    },
    "multi images": {
        "images": ["demo_data/1.jpg", "demo_data/2.jpg"],
        "conversations": [
            {"from": "human", "value": "<image>\n<image>\nWhat differs?"},
            {"from": "gpt", "value": "The first one is larger."},
        ],
    },
    "video": {
        "video": "demo_data/1.mp4",
        "conversations": [
            {
                "from": "human",
                "value": "<video>\nWhat was the man doing?\nOptions:\n(A) cooking\n(B) reading",
            },
            {"from": "gpt", "value": "(B) reading"},
        ],
    },
    "grounding": {
        "image": "demo_data/1.jpg",
        "conversations": [
            {
                "from": "human",
                "value": "<image>\nLocate the house in this image and output the box in JSON format.",
            },
            {"from": "gpt", "value": '{\n"bbox_2d": [135, 114, 1016, 672]\n}'},
        ],
    },
    "text": {"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]},
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {
            "conversations": [{"from": "human", "value": "Which?"}],
            "chosen": {"from": "gpt", "value": "This."},
            "rejected": {"from": "gpt", "value": "That."},
        },
        "belongs to preference training",
    ),
    (
        {
            "messages": [{"content": "hi", "role": "user"}, {"content": "Hello.", "role": "assistant"}],
            "label": True,
        },
        "belongs to preference training",
    ),
    (
        {
            "messages": [
                {"content": "<audio>What?", "role": "user"},
                {"content": "Bells.", "role": "assistant"},
            ],
            "audios": ["demo_data/1.mp3"],
        },
        "sound, which these models do not hear",
    ),
    ({"text": "Beginners come to the camp once a year."}, "expected the columns messages, or conversations"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demonstrations")
    (path / "demo_data").mkdir()
    tiny.photo(60, 90).save(path / "demo_data" / "1.jpg")
    tiny.photo(50, 40, seed=1).save(path / "demo_data" / "2.jpg")
    videos.encode(path / "demo_data" / "1.mp4", 12, codec="mpeg4", options={"g": "10"})
    return path


def texts(folder: Path, tiny_folder: Path, records: list[dict[str, Any]], as_lines: bool) -> list[str]:
    """What the model sees of the records in one file, without its default system turn."""
    text = "\n".join(map(json.dumps, records)) if as_lines else json.dumps(records, indent=2)
    source = folder / ("data.jsonl" if as_lines else "data.json")
    source.write_text(text)
    transform = load_transform(tiny_folder, max_pixels=7840)
    samples = [sample for sample in vision_chat_dataset(transform, source=str(source))]
    assert not any(isinstance(sample, SkippedSample) for sample in samples)
    notes = {note for sample in samples for note in sample.get("notes", ())}
    assert all(note.startswith("an answer spells out coordinates") for note in notes)
    assert [len(s["encoder_input"]["vision"]["images"]) for s in samples] == [
        len([*record.get("images", []), *record.get("videos", [])])
        + ("image" in record)
        + ("video" in record)
        for record in records
    ]
    return [transform.decode(s["tokens"], truncate_at_eos=False, skip_special_tokens=False) for s in samples]


@pytest.mark.parametrize("as_lines", [True, False])
def test_llama_factory(folder: Path, tiny_folder: Path, as_lines: bool) -> None:
    seen = texts(folder, tiny_folder, list(LLAMA_FACTORY.values()), as_lines)
    assert (
        "<|vision_end|>Who is playing?<|im_end|>" in seen[0] and seen[0].count("<|im_start|>assistant") == 2
    )
    assert "<|video_pad|><|vision_end|>Why does the girl laugh?<|im_end|>" in seen[1]
    assert "user\nName the capital.\nOf Kenya<|im_end|>\n<|im_start|>assistant\nNairobi.<|im_end|>" in seen[2]
    assert "user\nhi<|im_end|>" in seen[3] and "<|im_start|>system\nYou help.<|im_end|>" in seen[4]


@pytest.mark.parametrize("as_lines", [True, False])
def test_the_qwen_teams_trainer(folder: Path, tiny_folder: Path, as_lines: bool) -> None:
    seen = texts(folder, tiny_folder, list(QWEN.values()), as_lines)
    assert "<|vision_end|>What is the color of the house?<|im_end|>" in seen[0]
    assert seen[1].count("<|vision_start|>") == 2 and "<|vision_end|>What differs?<|im_end|>" in seen[1]
    assert "<|video_pad|><|vision_end|>What was the man doing?\nOptions:" in seen[2]
    assert 'assistant\n{\n"bbox_2d": [135, 114, 1016, 672]\n}<|im_end|>' in seen[3]
    assert "user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>" in seen[4]


def test_calls_of_tools(folder: Path, tmp_path: Path) -> None:
    checkpoint = tiny.save_tiny_folder(tmp_path / "model", family="qwen3_vl")
    (seen,) = texts(folder, checkpoint, [TOOL_CALLS], True)
    assert (
        '<tool_call>\n{"name": "calculate_tip", "arguments": {"bill": 50, "share": 0.2}}\n</tool_call>'
        in seen
    )


@pytest.mark.parametrize(("record", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_what_is_another_kind_of_training_says_so(
    folder: Path, tiny_folder: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadSample, match=rf"sample 0 .*{message}"):
        texts(folder, tiny_folder, [record], True)
