"""Text embeddings with visual tokens in their places, through the decoder, to logits or a loss.

    tokens ──> tok_embeddings ──┐
    pixels ──> vision_encoder ──┴─> decoder ──> head ──> logits          (no labels)
                                                  └────> (loss sum, n)   (labels; labelled positions only)

b rows, s tokens per row, n patches, k labelled positions, w decoder width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.experts.routers import RouterStatistics, watch_routers
from torchtune_qwenvl.modules.kv_cache import KVCache
from torchtune_qwenvl.modules.loss import chunked_cross_entropy, labelled_positions
from torchtune_qwenvl.modules.trainable import Training
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer


class VisionLanguageModel(nn.Module):
    """A vision encoder and a decoder that meet in the embeddings.

    Args:
        vision_encoder: pixels and grids -> visual tokens [.., w].
        decoder: embeddings -> states.
        image_token_id: placeholder in `tokens` of one visual token of an image.
        video_token_id: the same for a clip.
        training_plan: what trains; sets `requires_grad`.
        config: what the model was built from, a plain dict in the files' terms.
        loss_chunk_tokens: most positions whose logits exist at once in training.
        router_aux_loss_coef: weight of the load-balance loss beside a token's mean loss, where the decoder
            has routers.
    """

    def __init__(
        self,
        *,
        vision_encoder: VisionTransformer,
        decoder: VisionLanguageDecoder,
        image_token_id: int,
        video_token_id: int,
        training_plan: Training,
        config: Mapping[str, Any],
        loss_chunk_tokens: int = 2048,
        router_aux_loss_coef: float = 0.0,
    ) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.decoder = decoder
        self.image_token_id, self.video_token_id = image_token_id, video_token_id
        self.training_plan = training_plan
        self.config = dict(config)
        self.loss_chunk_tokens = loss_chunk_tokens
        self.router_aux_loss_coef = router_aux_loss_coef
        self.num_output_chunks = 0
        training_plan.apply(self)

    @property
    def output(self) -> nn.Module:
        """The head, where torchtune's recipes look for it."""
        return self.decoder.output

    def set_num_output_chunks(self, num_output_chunks: int) -> None:
        """Return logits as a list of chunks along s, for torchtune's CEWithChunkedOutputLoss."""
        self.num_output_chunks = num_output_chunks

    def adapter_params(self) -> list[str]:
        """Fully trained parameters beside a "lora" part: torchtune's LoRA recipes freeze all others."""
        plan = self.training_plan
        if "lora" not in plan.modes.values():
            return []
        return [name for name, _ in self.named_parameters() if plan.mode_of(name) == "full"]

    def make_cache(self, prompt_lengths: Sequence[int], capacity: int) -> KVCache:
        """A cache for prompts of these lengths, at most `capacity` tokens per row, padding included."""
        weight = self.decoder.tok_embeddings.weight
        return KVCache(
            prompt_lengths,
            capacity,
            layers=len(self.decoder.layers),
            kv_heads=self.decoder.kv_heads,
            head_dim=self.decoder.head_dim,
            dtype=_compute_dtype(weight),
            device=weight.device,
        )

    def forward(
        self,
        tokens: Tensor,
        *,
        labels: Tensor | None = None,
        input_pos: Tensor | None = None,
        encoder_input: Mapping[str, Any] | None = None,
        layout: Mapping[str, Any] | None = None,
        mask: None = None,
        cache: KVCache | None = None,
    ) -> Tensor | list[Tensor] | tuple[Tensor, Tensor]:
        """Logits, or with `labels` the loss.

        Args:
            tokens: int64 [b, s], right-padded.
            labels: int64 [b, s], unshifted, -100 ignored.
            input_pos: int64 [b, s, 3] on the axes t, h, w; None for plain text.
            encoder_input: {"vision": {"pixel_values": [n, values per patch], "grid_thw": [m, 3]}}.
            layout: what collate computed on the host: "labelled" int64 [k], flat positions whose next token
                is labelled; "visual" int64, flat positions of the visual tokens. Saves device syncs.
                "document_lengths", tokens of every document in the order of the flat tokens, a list or a
                tensor (best on the host): attention then stays within documents, not rows.
            mask: none is taken; attention runs over segments.
            cache: for generation, see `make_cache`.

        Returns:
            Without labels logits [b, s, v] (a list of chunks after `set_num_output_chunks`); with a cache [b,
            1, v], those of every row's last token. With labels the fp32 sum of the losses and their number,
            int64.

        Raises:
            ValueError: where visual tokens and placeholders differ in number, positions are missing, or
                documents do not add up to the tokens.
        """
        if mask is not None:
            raise ValueError("mask: none is taken, attention runs over rows; drop it from the batch")
        layout = layout or {}
        b, s = tokens.shape
        decoding = cache is not None and not cache.empty
        x, visual = self._embed(tokens, encoder_input, layout, decoding)
        segments = _documents(tokens, layout) or Segments.rows(b, s, tokens.device)
        positions = self._positions(segments, input_pos, encoder_input)
        if cache is not None:
            return self._next_logits(x, positions, segments, cache, s, visual)
        if labels is None:
            states = self.decoder(x, positions=positions, segments=segments, **visual).view(b, s, -1)
            if self.num_output_chunks:
                return [self.output(chunk) for chunk in states.chunk(self.num_output_chunks, dim=1)]
            return self.output(states)
        labelled = layout["labelled"] if "labelled" in layout else labelled_positions(labels)
        routers = self._watched_routers(layout, b, s)
        states = self.decoder(x, positions=positions, segments=segments, keep=labelled, **visual)
        targets = labels.flatten().index_select(0, labelled + 1)
        loss = chunked_cross_entropy(states, targets, self.output, self.loss_chunk_tokens)
        if routers is not None:
            loss = loss + self.router_aux_loss_coef * len(labelled) * routers.load_balance_loss()
        return loss, torch.full((), len(labelled), dtype=torch.int64, device=loss.device)

    def _watched_routers(self, layout: Mapping[str, Tensor], b: int, s: int) -> RouterStatistics | None:
        if not self.router_aux_loss_coef:
            return None
        real = None
        if "lengths" in layout:
            lengths = layout["lengths"]
            real = (torch.arange(s, device=lengths.device) < lengths[:, None]).flatten()
        return watch_routers(self.decoder.layers, real)

    def _next_logits(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Segments,
        cache: KVCache,
        s: int,
        visual: Mapping[str, Any],
    ) -> Tensor:
        cache.reserve(s)
        starts = torch.arange(0, len(x), s, device=x.device)
        last = starts + cache.lengths - 1 if cache.prefilling else starts
        states = self.decoder(x, positions=positions, segments=segments, keep=last, cache=cache, **visual)
        cache.advance()
        return self.output(states).unsqueeze(1)

    def _positions(
        self, segments: Segments, input_pos: Tensor | None, encoder_input: Mapping[str, Any] | None
    ) -> Tensor:
        """[b * s, 3]."""
        if input_pos is not None:
            return input_pos.flatten(0, 1)
        if _vision_input(encoder_input) is not None:
            raise ValueError("input_pos is missing: with images every token needs a position on three axes")
        return segments.places()[:, None].expand(-1, 3)

    def _embed(
        self,
        tokens: Tensor,
        encoder_input: Mapping[str, Any] | None,
        layout: Mapping[str, Any],
        decoding: bool,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings [b * s, w] with the visual tokens in the places of their placeholders.

        With them what the decoder takes beside: those places and the deepstack features, if there are any.
        """
        flat = tokens.flatten()
        x = self.decoder.tok_embeddings(flat)
        x = x.to(_compute_dtype(x))  # under autocast the residual stream is in the compute dtype
        if decoding:
            return x, {}
        places = layout["visual"] if "visual" in layout else self._visual_positions(flat)
        vision = _vision_input(encoder_input)
        if vision is None:
            if len(places):
                raise ValueError(
                    f"tokens hold {len(places)} placeholders of visual tokens, but no images came"
                )
            return self._with_idle_encoder(x), {}
        features, deepstack = self.vision_encoder(**vision, deepstack=True)
        if len(places) != len(features):
            raise ValueError(
                f"the images give {len(features)} visual tokens, tokens hold {len(places)} placeholders "
                f"(ids {self.image_token_id}, {self.video_token_id}): both must come from the same samples"
            )
        x = x.index_copy(0, places, features.to(x.dtype))
        return x, {"visual": places, "deepstack": deepstack} if deepstack else {}

    def _visual_positions(self, flat: Tensor) -> Tensor:
        return ((flat == self.image_token_id) | (flat == self.video_token_id)).nonzero().squeeze(1)

    def _with_idle_encoder(self, x: Tensor) -> Tensor:
        """For batches of text: one black visual token at weight zero.

        Every rank then runs the encoder's collectives, and its weights get zero gradients instead of none.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        trains = self.training and any(p.requires_grad for p in self.vision_encoder.parameters())
        if not (distributed or trains):
            return x
        tokens, deepstack = self.vision_encoder(*self.vision_encoder.dummy_pixels(), deepstack=True)
        return x + 0 * torch.stack([tokens, *deepstack]).sum().to(x.dtype)


def _documents(tokens: Tensor, layout: Mapping[str, Any]) -> Segments | None:
    """The documents that collate put into the rows; None where a row is a document."""
    lengths = layout.get("document_lengths")
    if lengths is None:
        return None
    lengths = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    if sum(lengths) != tokens.numel():
        raise ValueError(
            f"layout['document_lengths'] add up to {sum(lengths)}, tokens are {tokens.numel()}: both must "
            "come from the same collate, and a batch with documents has no padding"
        )
    return Segments.of(lengths, tokens.device)


def _vision_input(encoder_input: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """pixel_values and grid_thw, or None where the batch has no images."""
    vision = (encoder_input or {}).get("vision")
    if vision is None or len(vision["pixel_values"]) == 0:
        return None
    return {"pixel_values": vision["pixel_values"], "grid_thw": vision["grid_thw"]}


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
