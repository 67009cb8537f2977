"""What a checkpoint folder says about its tokenizer, template, images and videos.

There are two generations of files. Published folders have preprocessor_config.json and list the added tokens
in tokenizer_config.json. transformers 5 writes processor_config.json and has the added tokens in
tokenizer.json. Nothing is guessed: if a needed file is missing, that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune_qwenvl.entries import (
    FLAG,
    LENGTH,
    NATURAL,
    OBJECT,
    POSITIVE,
    TEXT,
    Kind,
    check_entries,
    list_of,
)
from torchtune_qwenvl.json_files import CONFIG, read_config, read_json_if_there
from torchtune_qwenvl.transforms.chat.tokenizer import WORDS, BPETokenizer, ExtraToken
from torchtune_qwenvl.transforms.processor_settings import LIMITS, PATCHES, SAMPLING, read_processor_settings

_TOKEN = Kind(
    "a text or an object with a text as content",
    lambda value: isinstance(value, str) or (isinstance(value, Mapping) and TEXT.holds(value.get("content"))),
)
_STOP = Kind(
    "a token's id or a list of them", lambda value: NATURAL.holds(value) or list_of(NATURAL).holds(value)
)
_CONFIG = {
    "text_config": OBJECT,
    "vision_config": OBJECT,
    "max_position_embeddings": LENGTH,
    "tokens_per_second": POSITIVE,
}


@dataclass(frozen=True)
class ProcessorFolder:
    """The parsed files of a checkpoint folder; see `read_processor_folder`.

    Args:
        path: the folder.
        config: config.json.
        tokenizer_config: tokenizer_config.json; empty if there is none.
        image: arguments of `ImageTransform`.
        video: how videos are sampled and limited, arguments of `PublishedTransform`; None if no file says.
        video_processor: transformers' class for videos; None if no file says.
        stop_tokens: ids that end generation; None if no file says.
        template: (Jinja source, file it came from); None if there is none.
    """

    path: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    image: dict[str, Any]
    video: dict[str, Any] | None
    video_processor: str | None
    stop_tokens: list[int] | None
    template: tuple[str, str] | None

    def tokenizer(self, words: str = WORDS) -> BPETokenizer:
        """The folder's tokenizer: tokenizer.json, else vocab.json + merges.txt, which need `words`."""
        single = self.path / "tokenizer.json"
        files = (single, None) if single.is_file() else (self.path / "vocab.json", self.path / "merges.txt")
        names = {
            key: name
            for key in ("eos_token", "pad_token")
            if (name := _token_text(self.tokenizer_config.get(key))) is not None
        }
        where = str(self.path / "tokenizer_config.json")
        added = extra_tokens(self.tokenizer_config, where)
        return BPETokenizer(*files, extra_tokens=added, words=words, **names)

    def check_token_id(self, key: str, token_id: int) -> None:
        """Raise a ValueError if config.json gives another id under `key` than the tokenizer has."""
        if self.config.get(key, token_id) != token_id:
            raise ValueError(
                f"{self.path}: config.json says {key} = {self.config[key]}, the tokenizer has {token_id}; "
                "files of two checkpoints?"
            )

    @property
    def context_length(self) -> int | None:
        """`max_position_embeddings`."""
        return self.text_config.get("max_position_embeddings")

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of config.json: nested since 5.x, else the top level."""
        return self.config.get("text_config") or self.config

    @property
    def vision_config(self) -> dict[str, Any]:
        """The vision encoder's part of config.json."""
        return self.config.get("vision_config") or {}


def read_processor_folder(folder: str | Path) -> ProcessorFolder:
    """Read the small files of a checkpoint folder; the weights are not read.

    Raises:
        ValueError: no such folder, a needed file is missing or broken, or files contradict each other.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint folder")
    config = dict(read_config(path))
    check_entries(config, _CONFIG, str(path / CONFIG))
    for part in ("text_config", "vision_config"):
        check_entries(config.get(part) or {}, _CONFIG, f"{path / CONFIG} ({part})")
    tokenizer_config = read_json_if_there(path / "tokenizer_config.json") or {}
    check_entries(
        tokenizer_config, {"eos_token": _TOKEN, "pad_token": _TOKEN}, str(path / "tokenizer_config.json")
    )
    image = _image_arguments(path)
    _check_against_model(path, image, config.get("vision_config") or {})
    return ProcessorFolder(
        path,
        config,
        tokenizer_config,
        image,
        *_video_arguments(path, image),
        _stop_tokens(path),
        _template(path, tokenizer_config),
    )


def extra_tokens(tokenizer_config: Mapping[str, Any], where: str = "the file") -> list[ExtraToken]:
    """The added tokens that a tokenizer_config.json or tokenizer.json lists, by id.

    Args:
        tokenizer_config: the parsed file.
        where: its name, for errors.

    Raises:
        ValueError: an entry is no token.
    """
    check_entries(tokenizer_config, {"added_tokens_decoder": OBJECT, "added_tokens": list_of(OBJECT)}, where)
    listed = dict((tokenizer_config.get("added_tokens_decoder") or {}).items())
    listed |= {token.get("id"): token for token in tokenizer_config.get("added_tokens") or []}
    tokens = {}
    for i, token in listed.items():
        if not str(i).isdecimal() or not OBJECT.holds(token) or not TEXT.holds(token.get("content")):
            raise ValueError(f"{where}: added token {i!a}: expected an id and its content, got {token!a}")
        check_entries(token, {"special": FLAG}, f"{where}: added token {i}")
        tokens[int(i)] = ExtraToken(token["content"], token.get("special") or False, int(i))
    return [token for _, token in sorted(tokens.items())]


def _image_arguments(path: Path) -> dict[str, Any]:
    found = read_processor_settings(path, "image")
    if found is None:
        raise ValueError(
            f"{path}: neither preprocessor_config.json nor processor_config.json with an image_processor"
        )
    arguments = {name: found.get(name) for name in (*LIMITS, *PATCHES)}
    missing = [name for name, value in arguments.items() if value is None]
    if missing:
        raise ValueError(f"{path}: the image processor's file does not say {', '.join(missing)}")
    if abs(found.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise ValueError(f"{path}: rescale_factor is {found['rescale_factor']}, only 1/255 is supported")
    return arguments


def _video_arguments(path: Path, image: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    found = read_processor_settings(path, "video")
    if found is None:
        return None, None
    for name in PATCHES:
        if found.get(name, image[name]) != image[name]:
            raise ValueError(f"{path}: {name} is {image[name]} for images and {found[name]} for videos")
    limits = {f"video_{name}": found[name] for name in LIMITS}
    return limits | {name: found.get(name) for name in SAMPLING}, found.get("video_processor_type")


def _check_against_model(path: Path, image: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        if theirs in vision and vision[theirs] != image[ours]:
            raise ValueError(
                f"{path}: the image processor's {ours} is {image[ours]}, config.json's {theirs} "
                f"{vision[theirs]}; files of two checkpoints?"
            )


def _stop_tokens(path: Path) -> list[int] | None:
    generation = read_json_if_there(path / "generation_config.json") or {}
    check_entries(generation, {"eos_token_id": _STOP}, str(path / "generation_config.json"))
    stop = generation.get("eos_token_id")
    return [stop] if isinstance(stop, int) else stop


def _template(path: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str, str] | None:
    plain = path / "chat_template.jinja"
    if plain.is_file():
        try:
            return plain.read_text(encoding="utf-8"), str(plain)
        except UnicodeDecodeError as error:
            raise ValueError(f"{plain}: not UTF-8, byte {error.start}; copy or download it again") from error
    for file in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = (read_json_if_there(path / file) or {}).get("chat_template")
        if isinstance(found, list) and list_of(OBJECT).holds(found):  # several under names
            found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
        check_entries({"chat_template": found}, {"chat_template": TEXT}, str(path / file))
        if found:
            return found, str(path / file)
    return None


def _token_text(token: Any) -> str | None:
    return token["content"] if isinstance(token, Mapping) else token


def processor_class(folder: str | Path) -> str | None:
    """transformers' class for the folder's processor, or None if no file names it."""
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        content = read_json_if_there(Path(folder) / name) or {}
        check_entries(content, {"processor_class": TEXT}, str(Path(folder) / name))
        if found := content.get("processor_class"):
            return found
    return None
