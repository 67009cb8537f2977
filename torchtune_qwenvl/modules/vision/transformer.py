"""The vision encoder of all families: embed patches, attend within frames or windows, merge to visual tokens.

    pixels ─> patch_embed (+ position_embed) ─> layers ─────────────> merger ─> visual tokens
                                                  └─ after some ──> deepstack_mergers ─> deepstack features

n patches of all images together, m merge size, d encoder width, w decoder width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from torchtune_qwenvl.modules.rope import AxialRotary
from torchtune_qwenvl.modules.vision.plan import plan_vision, read_grids


class VisualFeatures(NamedTuple):
    """What the encoder makes of a batch of images and clips.

    Attributes:
        tokens: visual tokens [n / m^2, w], in the order of the grids.
        deepstack: features of the same shape for the decoder's first layers; empty without deepstack mergers.
    """

    tokens: Tensor
    deepstack: tuple[Tensor, ...]


class VisionTransformer(nn.Module):
    """Native-resolution vision encoder.

    Frozen first layers need no memory for the backward pass: pixels need no gradient, so autograd starts at
    the first trainable weight.

    Args:
        patch_embed: pixels [n, values] -> [n, d].
        layers: transformer layers over flat patches.
        merger: [n, d] -> [n / m^2, w].
        rotary: turns rows and columns into angles.
        merge: m.
        window: side of an attention window in visual tokens; None for full attention everywhere.
        full_attention: indices of the layers that attend to the whole frame in an encoder with windows.
        patch_norm: acts on embedded patches [n, d].
        position_embed: (grids, m, device) -> [n, d], added to the patches; not with windows.
        deepstack_mergers: layer index -> merger of that layer's output.
    """

    def __init__(
        self,
        *,
        patch_embed: nn.Linear,
        layers: Sequence[nn.Module],
        merger: nn.Module,
        rotary: AxialRotary,
        merge: int,
        window: int | None = None,
        full_attention: Collection[int] = (),
        patch_norm: nn.Module | None = None,
        position_embed: nn.Module | None = None,
        deepstack_mergers: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if window is not None and (position_embed is not None or deepstack_mergers):
            raise ValueError("position_embed and deepstack_mergers take patches as they come: no window")
        self.patch_embed, self.patch_norm = patch_embed, patch_norm
        self.position_embed = position_embed
        self.layers = nn.ModuleList(layers)
        self.merger = merger
        deepstack_mergers = deepstack_mergers or {}
        self.deepstack_mergers = nn.ModuleList(deepstack_mergers.values())
        self.deepstack_layers = {layer: i for i, layer in enumerate(deepstack_mergers)}
        self.rotary = rotary
        self.merge, self.window = merge, window
        self.full_attention = frozenset(full_attention)

    def forward(
        self,
        pixel_values: Tensor,
        grid_thw: Tensor | Sequence[Sequence[int]],
        *,
        return_deepstack: bool = False,
    ) -> Tensor | VisualFeatures:
        """Encode images and clips.

        Args:
            pixel_values: [n, values per patch], patches in merge-block order, uint8 or float.
            grid_thw: [m, 3] frames, rows and columns of patches per image or clip; a list avoids a
                wait for the device.
            return_deepstack: return `VisualFeatures` instead of the visual tokens alone.

        Returns:
            Visual tokens [n / m^2, w], in the order of the grids.

        Raises:
            ValueError: a grid is invalid, or the grids do not add up to the number of patches.
        """
        grids = read_grids(grid_thw)
        expected = sum(t * h * w for t, h, w in grids)
        if expected != len(pixel_values):
            raise ValueError(
                f"grid_thw {grids} describes {expected} patches, pixel_values has {len(pixel_values)}"
            )
        plan = plan_vision(grids, self.merge, self.window, pixel_values.device)
        if plan.order is not None:  # reorder pixels, not embeddings: fewer bytes, and no gradient
            blocks = pixel_values.unflatten(0, (-1, self.merge**2))
            pixel_values = blocks.index_select(0, plan.order).flatten(0, 1)
        rotation = self.rotary(plan.positions)
        x = self.patch_embed(pixel_values)
        if self.patch_norm is not None:
            x = self.patch_norm(x)
        if self.position_embed is not None:
            x = x + self.position_embed(grids, self.merge, x.device).to(x.dtype)
        deepstack = []
        for i, layer in enumerate(self.layers):
            segments = plan.frames if i in self.full_attention else plan.windows
            x = layer(x, rotation=rotation, segments=segments)
            if return_deepstack and i in self.deepstack_layers:
                deepstack.append(self.deepstack_mergers[self.deepstack_layers[i]](x))
        tokens = self.merger(x)
        if plan.restore is not None:
            tokens = tokens.index_select(0, plan.restore)
        return VisualFeatures(tokens, tuple(deepstack)) if return_deepstack else tokens

    def dummy_pixels(self) -> tuple[Tensor, list[list[int]]]:
        """The smallest input: `pixel_values` and `grid_thw` of one black visual token."""
        weight = self.patch_embed.weight
        return weight.new_zeros(self.merge**2, self.patch_embed.in_features), [[1, self.merge, self.merge]]
