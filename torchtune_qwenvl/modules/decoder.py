"""The language model: embeddings, layers and head, for flat tokens with positions on three axes.

n tokens of all rows, k of them that meet the head, w model width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.experts.routers import Router, RouterStatistics
from torchtune_qwenvl.modules.kv_cache import KVCache
from torchtune_qwenvl.modules.rope import AxialRotary


class TiedOutput(nn.Module):
    """A head without a weight of its own: it uses that of the embeddings.

    Unlike torchtune's TiedLinear it is a module, so that hooks work. It keeps the embedding in a tuple, where
    torch does not register it; otherwise the state dict would have it twice.
    """

    def __init__(self, tok_embeddings: nn.Embedding) -> None:
        super().__init__()
        self._source = (tok_embeddings,)

    def forward(self, x: Tensor) -> Tensor:
        """[..., w] -> [..., v]."""
        return F.linear(x, self._source[0].weight)


class Deepstack(NamedTuple):
    """Features of v visual tokens for the first layers of the decoder, see Qwen3-VL.

    Attributes:
        places: int64 [v], indices of the visual tokens among the n tokens.
        features: [v, w] each; the i-th is added after layer i.
    """

    places: Tensor
    features: Sequence[Tensor]


class VisionLanguageDecoder(nn.Module):
    """Decoder-only transformer.

    Args:
        tok_embeddings: token ids -> [.., w].
        layers: transformer layers over flat tokens.
        norm: before the head.
        output: the head [.., w] -> [.., v].
        rotary: computes angles from positions [n, 3].
    """

    def __init__(
        self,
        *,
        tok_embeddings: nn.Embedding,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        output: nn.Module,
        rotary: AxialRotary,
    ) -> None:
        super().__init__()
        self.tok_embeddings = tok_embeddings
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.output = output
        self.rotary = rotary
        self.has_routers = any(isinstance(module, Router) for module in self.modules())

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor,
        segments: Segments,
        keep: Tensor | None = None,
        cache: KVCache | None = None,
        deepstack: Deepstack | None = None,
        routers: RouterStatistics | None = None,
    ) -> Tensor:
        """Embeddings -> states for the head.

        Args:
            x: [n, w].
            positions: [n, 3] on the axes t, h, w.
            segments: rows or documents; not used once the cache holds the prompt.
            keep: [k] indices of the tokens that meet the head; None for all.
            cache: takes the prompt in the first call and one more token per row in every later one.
            deepstack: features that are added to the visual tokens after the first layers.
            routers: where mixtures of experts record what their routers do, if that is wanted.

        Returns:
            Normalised states [n or k, w].
        """
        rotation = self.rotary(positions, x.dtype)
        for i, layer in enumerate(self.layers):
            layer_cache = cache.layers[i] if cache else None
            x = layer(x, rotation=rotation, segments=segments, cache=layer_cache, routers=routers)
            if deepstack is not None and i < len(deepstack.features):
                x = x.index_add(0, deepstack.places, deepstack.features[i].to(x.dtype))
        return self.norm(x if keep is None else x.index_select(0, keep))
