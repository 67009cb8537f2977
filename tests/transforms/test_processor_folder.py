"""Both generations of checkpoint folders say the same; contradictions and gaps are errors."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.transforms.processor_folder import read_processor_folder


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("tiny") / "five", layout="5.x")


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny folder's small files, to be changed."""
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    return tmp_path


def change(path: Path, **values) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    content |= values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_published_and_5x_say_the_same(tiny_folder, new_folder):
    assert not (tiny_folder / "processor_config.json").exists()
    assert not (new_folder / "preprocessor_config.json").exists()
    old, new = read_processor_folder(tiny_folder), read_processor_folder(new_folder)
    assert old.image == new.image
    assert old.image["min_pixels"] == 3136 and old.image["max_pixels"] == 12845056
    assert old.image["image_mean"] == tiny.IMAGE_MEAN
    assert old.context_length == new.context_length == 4096
    first, second = old.tokenizer(), new.tokenizer()
    assert first.special_tokens == second.special_tokens
    assert (first.eos_id, first.pad_id, first.vocab_size) == (second.eos_id, second.pad_id, second.vocab_size)
    text = "in the hand <|im_end|> <tool_call> é\n\n"
    assert first.encode(text) == second.encode(text)
    assert old.template[0].strip() == new.template[0].strip()
    assert old.template[1].endswith("chat_template.json") and new.template[1].endswith("chat_template.jinja")


@pytest.mark.parametrize("listed", [False, True])
def test_template_inside_tokenizer_config(folder, listed):
    (folder / "chat_template.json").unlink()
    assert read_processor_folder(folder).template is None
    named = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    change(folder / "tokenizer_config.json", chat_template=named if listed else "b")
    assert read_processor_folder(folder).template == ("b", str(folder / "tokenizer_config.json"))


@pytest.mark.parametrize("value, stop", [(7, [7]), ([7, 9], [7, 9]), (None, None)])
def test_stop_tokens(folder, value, stop):
    change(folder / "generation_config.json", eos_token_id=value)
    assert read_processor_folder(folder).stop_tokens == stop


def test_eos_given_as_an_object(folder):
    change(folder / "tokenizer_config.json", eos_token={"content": "<|endoftext|>", "special": True})
    assert read_processor_folder(folder).tokenizer().eos_id == tiny.token_id("<|endoftext|>")


@pytest.mark.parametrize(
    "file, values, message",
    [
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size is 16, config.json's patch_size 14"),
        (
            "preprocessor_config.json",
            {"merge_size": 4},
            "merge_size is 4, config.json's spatial_merge_size 2",
        ),
        ("preprocessor_config.json", {"image_mean": None}, "does not say image_mean"),
        ("preprocessor_config.json", {"max_pixels": None}, "does not say max_pixels"),
        ("preprocessor_config.json", {"rescale_factor": 0.5}, "rescale_factor is 0.5"),
    ],
)
def test_contradictions(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(ValueError, match=message):
        read_processor_folder(folder)


def test_gaps(folder):
    with pytest.raises(ValueError, match="no such checkpoint folder"):
        read_processor_folder(folder / "gone")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"neither preprocessor_config\.json nor processor_config\.json"):
        read_processor_folder(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not valid JSON"):
        read_processor_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        read_processor_folder(folder)


OTHER_IMAGES = [
    ("image_mean", [0.5, 0.5, 0.5], [0.48145466, 0.4578275, 0.40821073]),
    ("image_std", [0.5, 0.5, 0.5], [0.26862954, 0.26130258, 0.27577711]),
    ("merge_size", 4, 2),
    ("max_pixels", 784, 12845056),
]


@pytest.mark.parametrize(("name", "nested", "flat"), OTHER_IMAGES, ids=[row[0] for row in OTHER_IMAGES])
@pytest.mark.parametrize("read", [load_model, load_transform], ids=lambda read: read.__name__)
def test_two_files_that_say_different_things_about_images(tiny_folder, tmp_path, read, name, nested, flat):
    folder = shutil.copytree(tiny_folder, tmp_path / "both")
    flat_file, nested_file = folder / "preprocessor_config.json", folder / "processor_config.json"
    images = json.loads(flat_file.read_text())
    change(nested_file, image_processor=images)
    read(folder)
    change(nested_file, image_processor=images | {name: nested})
    message = f"{nested_file} (image_processor) says {name} = {nested}, {flat_file} says {flat}"
    with pytest.raises(ValueError, match=re.escape(message) + ".*delete one of the two"):
        read(folder)


def test_two_files_that_say_different_things_about_videos(folder):
    change(folder / "video_preprocessor_config.json", fps=2)
    change(folder / "processor_config.json", video_processor={"fps": 4})
    with pytest.raises(ValueError, match=r"config\.json \(video_processor\) says fps = 4, .* says 2"):
        read_processor_folder(folder)


def test_limits_under_either_name_are_the_same_limits(folder):
    images = json.loads((folder / "preprocessor_config.json").read_text())
    limits = {"shortest_edge": images.pop("min_pixels"), "longest_edge": images.pop("max_pixels")}
    change(folder / "processor_config.json", image_processor=images | {"size": limits})
    assert read_processor_folder(folder).image["max_pixels"] == 12845056
