"""Text embeddings with visual tokens in their places, through the decoder, to logits or a loss.

    tokens ──> tok_embeddings ──┐
    pixels ──> vision_encoder ──┴─> decoder ──> head ──> logits          (no labels)
                                                  └────> (loss sum, n)   (labels; labelled positions only)

b rows, s tokens per row, n patches, k labelled positions, w decoder width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.batch import BatchLayout, labelled_positions, placeholder_positions
from torchtune_qwenvl.modules.decoder import Deepstack, VisionLanguageDecoder
from torchtune_qwenvl.modules.experts.routers import RouterStatistics
from torchtune_qwenvl.modules.kv_cache import CachingMixer, KVCache
from torchtune_qwenvl.modules.loss import Losses, TokenLoss, chunked_loss, detached, only_gradient
from torchtune_qwenvl.modules.prediction import MultiTokenPrediction, predicted_positions
from torchtune_qwenvl.modules.trainable import Training
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer, VisualFeatures


class VisionLanguageModel(nn.Module):
    """A vision encoder and a decoder, joined at the decoder's embeddings.

    Args:
        vision_encoder: pixels and grids -> visual tokens [.., w].
        decoder: embeddings -> states.
        image_token_id: placeholder in `tokens` of one visual token of an image.
        video_token_id: the same for a video.
        training_plan: what trains; sets `requires_grad`.
        config: what the model was built from, a plain dict with the names of config.json.
        loss_chunk_tokens: how many positions have logits at the same time in training, at most.
        router_aux_loss_coef: weight of the routers' load-balance loss, added to the mean loss of a token.

    Raises:
        ValueError: router_aux_loss_coef for a decoder without routers.
    """

    loss: TokenLoss | None

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
        if router_aux_loss_coef and not decoder.has_routers:
            raise ValueError(
                f"router_aux_loss_coef is {router_aux_loss_coef}, but the decoder has no routers: set it to 0"
            )
        self.vision_encoder = vision_encoder
        self.decoder = decoder
        self.image_token_id, self.video_token_id = image_token_id, video_token_id
        self.training_plan = training_plan
        self.config = dict(config)
        self.loss_chunk_tokens = loss_chunk_tokens
        self.router_aux_loss_coef = router_aux_loss_coef
        self.mtp: MultiTokenPrediction | None = None
        self.mtp_loss_weight = 0.0
        self.num_output_chunks = 0
        self.set_loss(None)
        training_plan.apply(self)

    @property
    def output(self) -> nn.Module:
        """The head, where torchtune's recipes look for it."""
        return self.decoder.output

    @property
    def placeholders(self) -> tuple[int, int]:
        """Token ids of visual tokens, before the encoder's output replaces their embeddings."""
        return self.image_token_id, self.video_token_id

    def set_num_output_chunks(self, num_output_chunks: int) -> None:
        """Return logits as a list of chunks along s, for torchtune's CEWithChunkedOutputLoss."""
        self.num_output_chunks = num_output_chunks

    def set_predictor(self, mtp: MultiTokenPrediction, loss_weight: float) -> None:
        """Train layers that predict the token after the next one, fully, next to everything else.

        Args:
            mtp: the layers.
            loss_weight: weight of their loss relative to the mean loss of a token.
        """
        self.mtp, self.mtp_loss_weight = mtp, loss_weight
        plan = self.training_plan
        self.training_plan = replace(plan, exceptions={**plan.exceptions, "mtp": "full"})
        self.training_plan.apply(mtp, within="mtp.")

    def set_loss(self, loss: TokenLoss | None) -> None:
        """Replace the loss of a labelled position.

        Args:
            loss: (logits [k, v], targets [k]) -> [k]; None is the cross-entropy. It is called for at most
                `loss_chunk_tokens` positions at once, also for none.

        Raises:
            ValueError: a loss with weights of its own, which no optimizer would train.
        """
        if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
            raise ValueError(f"loss: expected a function without weights, got {loss}, which has some")
        # As a plain attribute: a module of the model would be sharded and saved with it.
        object.__setattr__(self, "loss", loss)

    def adapter_params(self) -> list[str]:
        """Parameters that train fully next to a "lora" part; torchtune's LoRA recipes freeze all others."""
        plan = self.training_plan
        if "lora" not in plan.modes.values():
            return []
        return [name for name, _ in self.named_parameters() if plan.mode_of(name) == "full"]

    def make_cache(self, prompt_lengths: Sequence[int], capacity: int) -> KVCache:
        """A cache for prompts of these lengths and at most `capacity` tokens per row, padding included."""
        weight = self.decoder.tok_embeddings.weight
        return KVCache(
            prompt_lengths,
            capacity,
            mixers=[cast(CachingMixer, layer.attn) for layer in self.decoder.layers],
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
        return_router_loss: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor, Tensor] | Losses:
        """Logits, or with `labels` the loss.

        Args:
            tokens: int64 [b, s], right-padded.
            labels: int64 [b, s], unshifted, -100 ignored.
            input_pos: int64 [b, s, 3] on the axes t, h, w; None for plain text.
            encoder_input: {"vision": {"pixel_values": [n, values per patch], "grid_thw": [m, 3]}}; with
                "plan", if collate has planned for the encoder. Or {"vision": {"features": [n / m^2, 1 + d,
                w]}}: visual tokens and d deepstack features that the encoder has computed before.
            layout: entries of `BatchLayout`, computed by collate; what is missing is computed here.
            mask: must be None; attention stays within rows or documents by itself.
            cache: for generation, see `make_cache`.
            return_router_loss: return all of `Losses`, not only its first two; needs `labels`.

        Returns:
            Without labels, logits [b, s, v] (a list of chunks after `set_num_output_chunks`); with a cache,
            those of the last token of each row, [b, 1, v]. With labels, `loss_sum` and `labelled` of
            `Losses`.

        Raises:
            ValueError: the numbers of visual tokens and placeholders differ, positions are missing, or
                documents do not add up to the tokens, or there are weights, or prediction layers that
                train, without labels.
        """
        if mask is not None:
            raise ValueError(
                "mask: expected None, since attention stays within rows; leave it out of the batch"
            )
        known = BatchLayout.from_dict(layout)
        b, s = tokens.shape
        x, deepstack = self._embed(tokens, encoder_input, known, cache)
        segments = known.segments(tokens)
        positions = self._positions(segments, input_pos, encoder_input)
        decode = partial(self.decoder, x, positions=positions, segments=segments, deepstack=deepstack)
        if cache is not None:
            return self._next_logits(decode, cache, b, s)
        if labels is not None:
            losses = self._losses(decode, labels, known, return_router_loss, (x, positions, segments))
            return losses if return_router_loss else (losses.loss_sum, losses.labelled)
        if known.weights is not None:
            raise ValueError(
                "answers with weights of their own need the loss of this model: pass the labels to it, as "
                "torchtune_qwenvl/recipes/finetune.py does. torchtune's stock recipes know no weights: leave "
                "them out of the data, or write 0 or 1"
            )
        if self.mtp is not None and self.training and torch.is_grad_enabled():
            raise ValueError(
                "mtp_trainable needs the loss of this model: pass the labels to it, as "
                "torchtune_qwenvl/recipes/finetune.py does. For torchtune's stock recipes set it to false"
            )
        states = decode().view(b, s, -1)
        if self.num_output_chunks:
            return [self.output(chunk) for chunk in states.chunk(self.num_output_chunks, dim=1)]
        return self.output(states)

    def _losses(
        self,
        decode: Callable[..., Tensor],
        labels: Tensor,
        layout: BatchLayout,
        return_router_loss: bool,
        given: tuple[Tensor, Tensor, Segments],
    ) -> Losses:
        """`given`: embeddings, positions and segments, for the prediction layers."""
        labelled = labelled_positions(labels) if layout.labelled is None else layout.labelled
        wanted = torch.is_grad_enabled() or return_router_loss
        watched = self.router_aux_loss_coef and wanted
        routers = RouterStatistics(layout.real_tokens(labels.shape[1])) if watched else None
        weights = layout.weights_of(labelled)
        router_loss_sum = mtp_loss_sum = None
        if self.mtp is not None and wanted:
            states = decode(routers=routers)
            loss_sum = self._loss_of(states.index_select(0, labelled), labels, labelled + 1, weights)
            keep, predicted = self._predict(self.mtp, states, labelled, given, routers)
            mtp_loss_sum = self._loss_of(predicted, labels, keep + 2, layout.weights_of(keep + 1))
            loss_sum = loss_sum + only_gradient(self.mtp_loss_weight * mtp_loss_sum)
        else:
            states = decode(keep=labelled, routers=routers)
            loss_sum = self._loss_of(states, labels, labelled + 1, weights)
        if weights is None:
            number = torch.full((), len(labelled), dtype=torch.int64, device=loss_sum.device)
        else:
            number = weights.sum(dtype=torch.float64)
        if routers is not None:
            router_loss_sum = number * routers.load_balance_loss()
            loss_sum = loss_sum + only_gradient(self.router_aux_loss_coef * router_loss_sum)
        return Losses(loss_sum, number, detached(router_loss_sum), detached(mtp_loss_sum))

    def _loss_of(self, states: Tensor, labels: Tensor, places: Tensor, weights: Tensor | None) -> Tensor:
        """Sum of the losses of states [k, w] whose targets are at the flat `places` [k] of the labels."""
        targets = labels.flatten().index_select(0, places)
        return chunked_loss(states, targets, self.output, self.loss_chunk_tokens, self.loss, weights)

    def _predict(
        self,
        mtp: MultiTokenPrediction,
        states: Tensor,
        labelled: Tensor,
        given: tuple[Tensor, Tensor, Segments],
        routers: RouterStatistics | None,
    ) -> tuple[Tensor, Tensor]:
        """Positions [k] whose token after the next one is labelled, and their states [k, w]."""
        x, positions, segments = given
        keep = predicted_positions(labelled, segments)
        rotation = self.decoder.rotary(positions, x.dtype)
        return keep, mtp(x, states, rotation=rotation, segments=segments, keep=keep, routers=routers)

    def _next_logits(self, decode: Callable[..., Tensor], cache: KVCache, b: int, s: int) -> Tensor:
        cache.reserve(s)
        starts = torch.arange(0, b * s, s, device=cache.lengths.device)
        last = starts + cache.lengths - 1 if cache.prefilling else starts
        states = decode(keep=last, cache=cache)
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
        layout: BatchLayout,
        cache: KVCache | None,
    ) -> tuple[Tensor, Deepstack | None]:
        """Embeddings [b * s, w] with visual tokens in place of their placeholders, and deepstack features."""
        x = self.decoder.tok_embeddings(tokens.flatten())
        x = x.to(_compute_dtype(x))  # under autocast the residual stream is in the compute dtype
        if cache is not None and not cache.empty:  # generated tokens are text
            return x, None
        places = placeholder_positions(tokens, self.placeholders) if layout.visual is None else layout.visual
        vision = _vision_input(encoder_input)
        if isinstance(vision, VisualFeatures):
            features = vision
        elif vision is not None:
            features = self.vision_encoder(**vision, return_deepstack=True)
        else:
            if len(places):
                raise ValueError(
                    f"the tokens have {len(places)} placeholders of visual tokens, but no images were given"
                )
            return self._with_idle_encoder(x, (encoder_input or {}).get("vision") or {}), None
        if len(places) != len(features.tokens):
            raise ValueError(
                f"the images give {len(features.tokens)} visual tokens, the tokens have {len(places)} "
                f"placeholders (ids {self.image_token_id}, {self.video_token_id}): both must come from the "
                "same samples"
            )
        x = x.index_copy(0, places, features.tokens.to(x.dtype))
        return x, Deepstack(places, features.deepstack) if features.deepstack else None

    def _with_idle_encoder(self, x: Tensor, vision: Mapping[str, Any]) -> Tensor:
        """For batches of text: run the encoder on one black visual token and add its output times zero.

        Every rank then runs the encoder's collectives, and its weights get gradients of zero instead of none.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        trains = self.training and any(p.requires_grad for p in self.vision_encoder.parameters())
        if not (distributed or trains):
            return x
        encoder = self.vision_encoder
        features = encoder(*encoder.dummy_pixels(), return_deepstack=True, plan=vision.get("plan"))
        return x + 0 * torch.stack([features.tokens, *features.deepstack]).sum().to(x.dtype)


def _vision_input(encoder_input: Mapping[str, Any] | None) -> dict[str, Any] | VisualFeatures | None:
    """pixel_values, grid_thw and the plan, or the features if they are known; None if there are no images."""
    vision = (encoder_input or {}).get("vision")
    if vision is not None and (known := vision.get("features")) is not None:
        return VisualFeatures(known[:, 0], known[:, 1:].unbind(1))
    if vision is None or len(vision["pixel_values"]) == 0:
        return None
    return {
        "pixel_values": vision["pixel_values"],
        "grid_thw": vision["grid_thw"],
        "plan": vision.get("plan"),
    }


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
