"""The vision encoder of all families: embed patches, attend within frames or windows, merge to visual tokens.

    pixels ─> patch_embed (+ position_embed, cls_token) ─> layers ──> merger ─> visual tokens (─> head)
                                                             └─ some ─> deepstack_mergers ─> more features

n patches of all images together, m merge size, d encoder width, w decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from torchtune_qwenvl.modules.rope import AxialRotary, Rotation
from torchtune_qwenvl.modules.vision.cls_token import ClsToken
from torchtune_qwenvl.modules.vision.features import LayerFeatures, frames_in_reading_order
from torchtune_qwenvl.modules.vision.layers import PatchEmbed
from torchtune_qwenvl.modules.vision.learned_positions import LearnedPositions
from torchtune_qwenvl.modules.vision.plan import Grid, LearnedTable, VisionPlan, VisionPlanner, read_grids
from torchtune_qwenvl.modules.vision.timm_names import TimmNames

Grids = Tensor | Sequence[Sequence[int]]
_ORIGINAL = "patch_embed.proj.weight"  # a name that every original encoder has and none of ours


class VisualFeatures(NamedTuple):
    """What the encoder makes of a batch of images and clips.

    Attributes:
        tokens: visual tokens [n / m^2, w], in the order of the grids.
        deepstack: features of the same shape for the decoder's first layers; empty without deepstack mergers.
    """

    tokens: Tensor
    deepstack: tuple[Tensor, ...]


class _Begun(NamedTuple):
    """What the first layer gets: embedded patches, and where each of them belongs."""

    x: Tensor
    grids: tuple[Grid, ...]
    plan: VisionPlan
    rotation: Rotation | None


class VisionTransformer(TimmNames):
    """Native-resolution vision encoder.

    Frozen first layers need no memory for the backward pass: pixels need no gradient, so autograd starts at
    the first trainable weight.

    Args:
        patch_embed: pixels [n, values] -> [n, d].
        layers: transformer layers over flat patches.
        merger: [n, d] -> [n / m^2, w]. With m = 1 it is a final norm, or `nn.Identity()`.
        rotary: turns rows and columns into angles; None if only learned positions are used.
        merge: m.
        width: d.
        out_width: w.
        window: side of an attention window in visual tokens; None for full attention everywhere.
        full_attention: indices of the layers that attend to the whole frame in an encoder with windows.
        patch_norm: acts on embedded patches [n, d].
        position_embed: `LearnedPositions`, [n, d] added to the patches; not with windows.
        cls_token: adds a token in front of every frame; not with windows, `rotary` or m > 1.
        embed_dropout: acts on the input of the first layer.
        deepstack_mergers: layer index -> merger of the output of that layer.
        config: what the encoder was built from, a plain dict; None for the encoder of a larger model.
        from_original: turns the original implementation's state dict into ours, for `load_state_dict`.
    """

    def __init__(
        self,
        *,
        patch_embed: PatchEmbed,
        layers: Sequence[nn.Module],
        merger: nn.Module,
        rotary: AxialRotary | None,
        merge: int,
        width: int,
        out_width: int,
        window: int | None = None,
        full_attention: Collection[int] = (),
        patch_norm: nn.Module | None = None,
        position_embed: nn.Module | None = None,
        cls_token: ClsToken | None = None,
        embed_dropout: nn.Module | None = None,
        deepstack_mergers: Mapping[int, nn.Module] | None = None,
        config: Mapping[str, Any] | None = None,
        from_original: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if window is not None and (position_embed is not None or deepstack_mergers):
            raise ValueError("position_embed and deepstack_mergers take patches as they come: no window")
        if cls_token is not None and (window is not None or rotary is not None or merge > 1):
            raise ValueError("a cls token has no place in a window, no angle and no block to merge with")
        self.patch_embed: PatchEmbed = patch_embed
        self.patch_norm = patch_norm
        self.position_embed = position_embed
        self.cls_token, self.embed_dropout = cls_token, embed_dropout
        self.layers = nn.ModuleList(layers)
        self.merger = merger
        deepstack_mergers = deepstack_mergers or {}
        self.deepstack_mergers = nn.ModuleList(deepstack_mergers.values())
        self.deepstack_layers = {layer: i for i, layer in enumerate(deepstack_mergers)}
        self.rotary = rotary
        self.merge, self.window = merge, window
        self.full_attention = frozenset(full_attention)
        self.embed_dim, self.num_features, self.depth = width, out_width, len(self.layers)
        self.config = None if config is None else dict(config)
        self._from_original = from_original
        self.head: nn.Module = nn.Identity()
        self.global_pool = "mean" if cls_token is None else "cls"

    def forward(
        self,
        pixel_values: Tensor,
        grid_thw: Grids,
        *,
        return_deepstack: bool = False,
        plan: Tensor | None = None,
    ) -> Tensor | VisualFeatures:
        """Encode images and clips.

        Args:
            pixel_values: [n, values per patch], patches in merge-block order, uint8 or float.
            grid_thw: [m, 3] frames, rows and columns of patches per image or clip; a list avoids a
                device sync.
            return_deepstack: return `VisualFeatures` instead of the visual tokens alone.
            plan: `planner.pack(grids)` on the device, which collate can make; made here if left out.

        Returns:
            Visual tokens [n / m^2, w], in the order of the grids, or `VisualFeatures`. With a
            head (`reset_classifier`) logits [images, classes].

        Raises:
            ValueError: a grid is invalid, or the grids do not add up to the number of patches.
        """
        if return_deepstack:
            kept = self.features(pixel_values, grid_thw, (), whole=True, plan=plan)
            assert kept.tokens is not None
            return VisualFeatures(kept.tokens, kept.deepstack)
        if isinstance(self.head, nn.Identity):
            return self.forward_features(pixel_values, grid_thw)
        return self.forward_head(self.features(pixel_values, grid_thw, [self.depth - 1], deepstack=False))

    def features(
        self,
        pixel_values: Tensor,
        grid_thw: Grids,
        layers: Collection[int],
        *,
        merged: bool = False,
        norm: bool = False,
        whole: bool = False,
        deepstack: bool = True,
        plan: Tensor | None = None,
    ) -> LayerFeatures:
        """The outputs of some layers, by one pass.

        Args:
            pixel_values: as in `forward`.
            grid_thw: as in `forward`.
            layers: indexes of the layers to keep.
            merged: put what is kept through the merger too.
            norm: apply the final norm to what is kept.
            whole: run all layers; otherwise none above the last one that is kept.
            deepstack: run the deepstack mergers.
            plan: as in `forward`.
        """
        begun = self._begin(pixel_values, grid_thw, plan)
        stop = self.depth if whole else max(layers) + 1
        x = begun.x
        patches: dict[int, Tensor] = {}
        through: dict[int, Tensor] = {}
        cls: dict[int, Tensor] = {}
        stacked: list[Tensor] = []
        for i, x in self._run(begun, stop):
            if deepstack and i in self.deepstack_layers:
                stacked.append(self.deepstack_mergers[self.deepstack_layers[i]](x))
            if i not in layers:
                continue
            if merged:
                through[i] = self._visual_tokens(x, begun)
            kept = self.final_norm(x) if norm else x
            if self.cls_token is not None:
                cls[i], kept = self.cls_token.split(kept, begun.plan.patches_per_frame)
            patches[i] = begun.plan.restore_patches(kept, self.merge)
        tokens = self._visual_tokens(x, begun) if stop == self.depth else None
        return LayerFeatures(begun.grids, patches, through, cls, tuple(stacked), tokens)

    def attention(self, pixel_values: Tensor, grid_thw: Grids, layer: int) -> list[Tensor]:
        """Attention weights of one layer, for looking at.

        Args:
            pixel_values: as in `forward`.
            grid_thw: as in `forward`.
            layer: its index.

        Returns:
            Per image [t, heads, h * w, h * w] in fp32 and in reading order: rows look at columns. Patches of
            other windows get 0. With a cls token it comes first, [t, heads, 1 + h * w, 1 + h * w].
        """
        begun = self._begin(pixel_values, grid_thw)
        below = [begun.x, *(x for _, x in self._run(begun, layer))]
        block: Any = self.layers[layer]
        segments = begun.plan.frames if layer in self.full_attention else begun.plan.windows
        weights = block.attn.attention_weights(
            block.sa_norm(below[-1]), rotation=begun.rotation, segments=segments
        )
        return frames_in_reading_order(weights, begun.plan, begun.grids, self.merge)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's; also takes the state dict of the original encoder (`original.visual.state_dict()`)."""
        if self._from_original is not None and any(name.endswith(_ORIGINAL) for name in state_dict):
            state_dict = self._from_original(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def final_norm(self) -> nn.Module:
        """The norm on patches [n, d] after the last layer: the merger's own, or the merger if it is one."""
        return getattr(self.merger, "norm", self.merger)

    @property
    def planner(self) -> VisionPlanner:
        """Plans batches for this encoder, also in another process."""
        learned = self.position_embed
        table = LearnedTable(learned.side, learned.stretch) if isinstance(learned, LearnedPositions) else None
        return VisionPlanner(self.merge, self.window, 0 if self.cls_token is None else 1, table)

    def _begin(self, pixel_values: Tensor, grid_thw: Grids, packed: Tensor | None = None) -> _Begun:
        grids = read_grids(grid_thw)
        expected = sum(t * h * w for t, h, w in grids)
        if expected != len(pixel_values):
            raise ValueError(
                f"grid_thw {grids} describes {expected} patches, pixel_values has {len(pixel_values)}"
            )
        plan = self.planner.plan(grids, pixel_values.device, packed)
        if plan.order is not None:  # the pixels are moved, not their embeddings: fewer bytes, no gradient
            blocks = pixel_values.unflatten(0, (-1, self.merge**2))
            pixel_values = blocks.index_select(0, plan.order).flatten(0, 1)
        x = self.patch_embed(pixel_values)
        if self.patch_norm is not None:
            x = self.patch_norm(x)
        if self.position_embed is not None:
            positions = self.position_embed(grids, self.merge, x.device, plan.stretched)
            x = x + positions.to(x.dtype)
        if self.cls_token is not None:
            x = self.cls_token(x, plan.patches_per_frame)
        if self.embed_dropout is not None:
            x = self.embed_dropout(x)
        return _Begun(x, grids, plan, None if self.rotary is None else self.rotary(plan.positions))

    def _run(self, begun: _Begun, stop: int) -> Iterator[tuple[int, Tensor]]:
        """(index, output) of each layer below `stop`, in the encoder's order of patches."""
        x = begun.x
        for i, layer in enumerate(self.layers[:stop]):
            segments = begun.plan.frames if i in self.full_attention else begun.plan.windows
            x = layer(x, rotation=begun.rotation, segments=segments)
            yield i, x

    def _visual_tokens(self, x: Tensor, begun: _Begun) -> Tensor:
        """Output of a layer -> tokens [n / m^2, w] in the order of the grids, cls tokens left out."""
        tokens = self.merger(x)
        if self.cls_token is not None:
            _, tokens = self.cls_token.split(tokens, begun.plan.patches_per_frame)
        return begun.plan.restore_tokens(tokens)

    def dummy_pixels(self) -> tuple[Tensor, list[list[int]]]:
        """The smallest input: `pixel_values` and `grid_thw` of one black visual token."""
        weight = self.patch_embed.weight
        return weight.new_zeros(self.merge**2, self.patch_embed.in_features), [[1, self.merge, self.merge]]
