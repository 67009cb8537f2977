"""The size of a sample in tokens and patches, by which samples are packed and grouped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class SampleSize(NamedTuple):
    """Size of a sample.

    Attributes:
        tokens: tokens in the decoder, including visual ones.
        patches: patches in the encoder, of all images and videos.
    """

    tokens: int
    patches: int

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> SampleSize:
        """The size of a sample that a transform returned."""
        vision = sample.get("encoder_input", {}).get("vision", {"images": []})
        return cls(len(sample["tokens"]), sum(len(image) for image in vision["images"]))
