"""Multi-token prediction: a small second decoder that predicts the token after the next one.

    state of token t ───────> pre_fc_norm_hidden ────┐
                                                     ├─ fc ─> layers ─> norm ─> the model's head: token t + 2
    embedding of token t + 1 ─> pre_fc_norm_embedding ┘

The state is that which the model's own head gets. Positions are those of token t. Servers use these layers to
propose tokens; a model that is tuned without them proposes worse ones, not wrong ones.

n tokens, k predicted positions, w model width. Source: DeepSeek-V3, arXiv:2412.19437, section 2.2; names and
the order in `fc` as in vLLM's `Qwen3_5MultiTokenPredictor`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.experts.routers import RouterStatistics
from torchtune_qwenvl.modules.rope import Rotation


class MultiTokenPrediction(nn.Module):
    """States for predicting the token after the next one.

    Args:
        pre_fc_norm_embedding: norm of the next token's embedding.
        pre_fc_norm_hidden: norm of the token's state.
        fc: 2 w -> w, of the embedding and then the state.
        layers: transformer layers.
        norm: before the head.
    """

    def __init__(
        self,
        *,
        pre_fc_norm_embedding: nn.Module,
        pre_fc_norm_hidden: nn.Module,
        fc: nn.Module,
        layers: Sequence[nn.Module],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = pre_fc_norm_embedding, pre_fc_norm_hidden
        self.fc, self.layers, self.norm = fc, nn.ModuleList(layers), norm

    def forward(
        self,
        x: Tensor,
        states: Tensor,
        *,
        rotation: Rotation,
        segments: Segments,
        keep: Tensor,
        routers: RouterStatistics | None = None,
    ) -> Tensor:
        """States of the positions `keep` [k] for the head.

        Args:
            x: embeddings [n, w], visual tokens in their places.
            states: what the model's head gets [n, w].
            rotation: of the tokens' positions.
            segments: rows or documents.
            keep: see `predicted_positions`.
            routers: where mixtures of experts record what their routers do, if that is wanted.

        Returns:
            [k, w].
        """
        # The last token of a segment gets the next one's first embedding. Nothing is predicted from there.
        following = x.roll(-1, 0)
        parts = (self.pre_fc_norm_embedding(following), self.pre_fc_norm_hidden(states))
        y = self.fc(torch.cat(parts, -1))
        for layer in self.layers:
            y = layer(y, rotation=rotation, segments=segments, routers=routers)
        return self.norm(y.index_select(0, keep))


def predicted_positions(labelled: Tensor, segments: Segments) -> Tensor:
    """Flat positions t for which t + 2 is labelled and in t's segment.

    Args:
        labelled: int64 [k], flat positions whose next token is labelled.
        segments: rows or documents.

    Returns:
        int64, ascending.
    """
    target = labelled + 1
    return target[segments.places().index_select(0, target) >= 2] - 2
