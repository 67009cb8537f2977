"""Facts about one sample, collected by a transform, so that they describe what training would see.

`Examiner` replaces the transform of a dataset. Whatever the kind of dataset, its records are then read,
parsed and looked up as in training, and each sample carries its facts.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchtune.data import Message
from torchtune.modules.transforms import Transform

from torchtune_qwenvl.transforms.chat.tools import Tools, to_json
from torchtune_qwenvl.transforms.errors import SampleTooLong
from torchtune_qwenvl.transforms.images.decode import image_size

# Mean brightness, 0 .. 255, of images that show next to nothing.
DARK, BRIGHT = 4.0, 251.0


@dataclass(frozen=True)
class Facts:
    """What is known about one sample.

    Attributes:
        index: its number in the dataset, from 0.
        where: file and number.
        tokens: number of tokens before truncation.
        visual_tokens: how many of them belong to images and videos.
        trained_tokens: how many of them are trained on.
        kept_tokens: how many of them `max_seq_len` keeps; 0 if the whole sample is dropped.
        images: (height, width) of each image file in pixels.
        videos: number of videos.
        spelled: added tokens that the text spells and that are encoded as letters.
        fingerprint: equal for samples with the same text and the same files.
        notes: what is odd about its record or images, or not read of it.
        kind: kind of error, without places and numbers; empty for a good sample.
        reason: the whole error message.
    """

    index: int = -1
    where: str = ""
    tokens: int = 0
    visual_tokens: int = 0
    trained_tokens: int = 0
    kept_tokens: int = 0
    images: tuple[tuple[int, int], ...] = ()
    videos: int = 0
    spelled: tuple[str, ...] = ()
    fingerprint: bytes = b""
    notes: tuple[str, ...] = ()
    kind: str = ""
    reason: str = ""

    @property
    def too_long(self) -> bool:
        """Whether a good sample cannot be trained on, since `max_seq_len` keeps nothing of it."""
        return not self.kind and self.tokens > 0 and self.kept_tokens == 0


class Examiner(Transform):
    """A transform that adds `facts` to each sample; it truncates and drops none.

    Args:
        transform: the model's; its `max_seq_len` and policy decide what would be kept.
        decode: False reads only the headers of images and makes no patches.
    """

    def __init__(self, transform: Any, decode: bool = True) -> None:
        self.transform, self.decode = transform, decode
        self.unlimited = copy.copy(transform)
        self.unlimited.max_seq_len = self.unlimited.context_length = None
        self.unlimited.spelled = transform.spelled.quiet()  # the summary says it of all samples
        self.visual_ids = {transform.image_token_id, transform.video_token_id}

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """The transform's sample with `facts`; without decoding, only tokens, mask and `facts`."""
        messages, tools = list(sample["messages"]), sample.get("tools") or ()
        if self.decode:
            made = self.unlimited(sample)
        else:
            tokens, mask = self.unlimited.tokenize_messages(messages, tools=tools)
            made = {"tokens": tokens, "mask": mask}
        facts = self._facts(messages, tools, made["tokens"], made["mask"])
        return {**made, "facts": replace(facts, notes=self._empty_images(made)) if self.decode else facts}

    def _facts(
        self, messages: Sequence[Message], tools: Tools, tokens: Sequence[int], mask: Sequence[bool]
    ) -> Facts:
        limit = self.transform.image_transform.max_image_pixels
        images = [part["content"] for part in _parts(messages, "image")]
        return Facts(
            tokens=len(tokens),
            visual_tokens=sum(token in self.visual_ids for token in tokens),
            trained_tokens=len(mask) - sum(mask),
            kept_tokens=self._kept(messages, tools, len(tokens)),
            images=tuple(image_size(image, max_image_pixels=limit) for image in images),
            videos=len(_parts(messages, "video")),
            spelled=self.transform.spelled.of(messages),
            fingerprint=fingerprint(messages, tools),
        )

    def _empty_images(self, made: Mapping[str, Any]) -> tuple[str, ...]:
        """Notes on images and videos that show next to nothing, such as deep images that were misread."""
        transform = self.transform.image_transform
        means = [brightness(patches, transform) for patches in made["encoder_input"]["vision"]["images"]]
        named = {"black": any(mean < DARK for mean in means), "white": any(mean > BRIGHT for mean in means)}
        return tuple(f"an image is nearly {colour}" for colour, there in named.items() if there)

    def _kept(self, messages: Sequence[Message], tools: Tools, n_tokens: int) -> int:
        if self.transform.max_seq_len is None or n_tokens <= self.transform.max_seq_len:
            return n_tokens
        try:
            return len(self.transform.tokenize_messages(messages, tools=tools)[0])
        except SampleTooLong:
            return 0


def brightness(patches: Tensor, transform: Any) -> float:
    """The mean of all pixels, 0 .. 255, from patches [n, c * ...] as the transform makes them."""
    channels = len(transform.image_mean)
    means = patches.float().unflatten(1, (channels, -1)).mean((0, 2))
    if patches.dtype == torch.uint8:
        return means.mean().item()
    scaled = means * torch.tensor(transform.image_std) + torch.tensor(transform.image_mean)
    return 255 * scaled.mean().item()


def fingerprint(messages: Sequence[Message], tools: Tools = ()) -> bytes:
    """Hash of tools, roles and parts: text and encoded images by content, files by path."""
    digest = hashlib.blake2b(to_json(list(tools)).encode("utf-8", "surrogatepass"), digest_size=12)
    for message in messages:
        for part in message.content:
            content = part["content"]
            named = content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogatepass")
            digest.update(f"{message.role} {part['type']} {len(named)} ".encode() + named)
    return digest.digest()


def _parts(messages: Sequence[Message], kind: str) -> list[Mapping[str, Any]]:
    return [part for message in messages for part in message.content if part["type"] == kind]
