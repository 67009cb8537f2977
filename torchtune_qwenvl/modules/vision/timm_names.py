"""A vision encoder under the names that timm gives its models, for code written for timm.

Source: timm 1.0, `VisionTransformer`. `forward_features` returns tokens without pooling,
`forward_intermediates` those of several layers, `reset_classifier` replaces the head, `group_matcher` and
`no_weight_decay` serve the optimizer. What differs: images have their own sizes, so inputs are patches and
grids, and tokens are flat.

n patches of all images together; t, h, w frames, rows and columns of patches of one image; d encoder width;
m merge size; [n / m^2, w] the encoder's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchtune_qwenvl.modules.vision.features import (
    LayerFeatures,
    check_pool,
    layer_indexes,
    pool_tokens,
    split_images,
    to_map,
)

Grids = Tensor | Sequence[Sequence[int]]


class TimmNames(nn.Module):
    """The methods; `VisionTransformer` has what they use."""

    head: nn.Module
    global_pool: str

    def forward_features(self: Any, pixel_values: Tensor, grid_thw: Grids) -> Tensor:
        """Tokens [n / m^2, w] without pooling and head."""
        return self.features(pixel_values, grid_thw, (), whole=True, deepstack=False).tokens

    def forward_intermediates(
        self: Any,
        pixel_values: Tensor,
        grid_thw: Grids,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list | tuple[Tensor, list]:
        """Patch features of several layers, in reading order.

        Args:
            pixel_values: see `VisionTransformer.forward`.
            grid_thw: see `VisionTransformer.forward`.
            indices: None for all layers, n for the last n, a list for these.
            norm: apply the final norm to each.
            stop_early: run no layer above the last one wanted; needs `intermediates_only`.
            output_fmt: "NCHW" gives [frames, d, h, w], "NLC" [images, t * h * w, d].
            intermediates_only: leave the tokens of the whole encoder out.

        Returns:
            (tokens [n / m^2, w], one entry per layer), or the entries alone. An entry is a tensor if all
            images have the same grid, else a list with one tensor per image.

        Raises:
            ValueError: unknown layers or format, or `stop_early` without `intermediates_only`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt: expected "NCHW" or "NLC", got {output_fmt!r}')
        if stop_early and not intermediates_only:
            raise ValueError(
                "stop_early needs intermediates_only=True: the encoder's tokens need every layer"
            )
        wanted = layer_indexes(indices, self.depth)
        kept = self.features(pixel_values, grid_thw, wanted, norm=norm, whole=not stop_early, deepstack=False)
        found = [_formatted(kept, i, self.merge, output_fmt) for i in wanted]
        return found if intermediates_only else (kept.tokens, found)

    def forward_head(self: Any, kept: LayerFeatures, pre_logits: bool = False) -> Tensor:
        """Pool the tokens of each image and classify: [images, classes], or [images, w] with `pre_logits`.

        Args:
            kept: features that hold the last layer.
            pre_logits: leave the head out.
        """
        assert kept.tokens is not None
        cls = None
        if self.cls_token is not None:
            normed = self.final_norm(kept.cls[self.depth - 1])
            cls = normed.split([t for t, _, _ in kept.grids])
        tokens = split_images(kept.tokens, kept.grids, self.merge)
        pooled = pool_tokens(tokens, self.global_pool, cls)
        return pooled if pre_logits else self.head(pooled)

    def reset_classifier(self: Any, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a linear one with these classes, or by none if `num_classes` is 0.

        Args:
            num_classes: outputs of the head.
            global_pool: "mean", "max" or "cls"; None keeps the present one.

        Raises:
            ValueError: an unknown pooling, or "cls" for an encoder without a cls token.
        """
        if global_pool is not None:
            check_pool(global_pool, has_cls=self.cls_token is not None)
            self.global_pool = global_pool
        like = self.patch_embed.weight
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(like.device, like.dtype)

    @staticmethod
    def group_matcher(coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, from the input to the output, for rates that fall from layer to layer.

        Args:
            coarse: the same: a layer is a group.
        """
        stem = r"^(cls_token|position_embed|patch_embed|patch_norm)"
        return {
            "stem": stem,
            "blocks": [(r"^layers\.(\d+)", None), (r"^(merger|deepstack_mergers)", (99999,))],
        }

    def no_weight_decay(self: Any) -> set[str]:
        """Names of parameters that weight decay should leave alone: learned positions and the cls token."""
        return {n for n, _ in self.named_parameters() if n.startswith(("position_embed.", "cls_token."))}


def _formatted(kept: LayerFeatures, layer: int, merge: int, output_fmt: str) -> Tensor | list[Tensor]:
    images = split_images(kept.patches[layer], kept.grids, 1)
    maps = [to_map(image, grid, merge) for image, grid in zip(images, kept.grids, strict=True)]
    if output_fmt == "NLC":
        tokens = [image.flatten(0, 2) for image in maps]
        return torch.stack(tokens) if len(set(kept.grids)) == 1 else tokens
    pictures = [image.permute(0, 3, 1, 2) for image in maps]
    return torch.cat(pictures) if len(set(kept.grids)) == 1 else pictures
