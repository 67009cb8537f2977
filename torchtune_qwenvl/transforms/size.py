"""How much work a sample is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class SampleSize(NamedTuple):
    """Size of a sample.

    Attributes:
        tokens: tokens in the decoder, visual ones among them.
        patches: patches of all images in the encoder.
    """

    tokens: int
    patches: int

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> SampleSize:
        """Size of a transform's sample."""
        vision = sample.get("encoder_input", {}).get("vision", {"images": []})
        return cls(len(sample["tokens"]), sum(len(image) for image in vision["images"]))
