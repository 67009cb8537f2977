"""Count the floating-point operations of a training step, the numerator of MFU (model FLOPs utilization).

Each weight counts 2 operations per token or patch and pass. The passes are forward, the gradient of the
weight if it trains, and the gradient of its input if anything before it trains. Attention counts 4·d
operations per layer and pair of tokens that attend to each other (about half of all pairs if causal), and
twice that for backward; d is the width of all heads together. A delta net counts 6 operations per value of
its state and token, as its recurrence takes, and twice that for backward. The head processes labelled
positions only. Recomputation for activation checkpointing is not counted, because MFU measures useful work.
"""

import math
from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.modules.delta_net.mixer import GatedDeltaNet
from torchtune_qwenvl.modules.experts.moe import SparseMoE
from torchtune_qwenvl.modules.layers import Attention
from torchtune_qwenvl.modules.prediction import MultiTokenPrediction
from torchtune_qwenvl.modules.vision.layers import PatchEmbed
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


class EncoderFlops:
    """Operations of forward and backward of a vision encoder with its current trainable parameters.

    Attributes:
        learns: something in it trains, the head left out.
        per_deepstack: of the deepstack mergers, per visual token; not part of the sums.
        per_image: of the head, per image; not part of the sums.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        assert isinstance(encoder.patch_embed, PatchEmbed)
        self.merge, self.window = encoder.merge, encoder.window
        self.extra = 0 if encoder.cls_token is None else 1
        self.frames, self.still_width = encoder.patch_embed.frames, encoder.patch_embed.still_width
        self.embed = _Path(learns=False)
        self.embed.through(encoder.patch_embed.pixel_norm)  # its parameters come last, it acts first
        self.embed.through(encoder.patch_embed)
        begin = (encoder.patch_norm, encoder.position_embed, encoder.cls_token)
        path = _Path(learns=self.embed.learns or any(_trains(part) for part in begin if part is not None))
        # Attention operations per pair: layers that attend to whole frames, and layers that attend to
        # windows.
        self.per_frame_pair = self.per_window_pair = 0.0
        for i, layer in enumerate(encoder.layers):
            per_pair = path.through_layer(layer)
            if self.window is None or i in encoder.full_attention:
                self.per_frame_pair += per_pair
            else:
                self.per_window_pair += per_pair
        self.per_patch = path.flops
        merger, deepstack = _Path(learns=path.learns), _Path(learns=path.learns)
        merger.through(encoder.merger)
        deepstack.through(*encoder.deepstack_mergers)
        self.per_visual_token, self.per_deepstack = merger.flops, deepstack.flops
        self.learns = merger.learns or deepstack.learns
        head = _Path(learns=merger.learns)
        head.through(encoder.head)
        self.per_image = head.flops

    def __call__(self, grids: Sequence[Sequence[int]], patch_width: int = 0) -> float:
        """Operations of the layers and the merger on a batch; the arguments are those of `FlopCounter`."""
        frames = self.frames if patch_width == self.still_width else 1
        total = 0.0
        for t, h, w in grids:
            patches, tokens = t * h * w, t * (h * w + self.extra)
            total += self.embed.flops / frames * patches + self.per_patch * tokens
            total += self.per_visual_token * tokens / self.merge**2
            total += self.per_frame_pair * t * (h * w + self.extra) ** 2
            total += self.per_window_pair * t * self._window_pairs(h, w)
        return total

    def of_patches(self, patches: int) -> float:
        """Operations on stills with so many patches, without attention."""
        return (self.embed.flops / self.frames + self.per_patch) * patches

    def _window_pairs(self, h: int, w: int) -> int:
        """Pairs of patches within windows, per frame; 6 x 5 visual tokens are split into (4, 2) x (4, 1)."""
        if self.window is None:
            return 0
        rows, columns = (_squares(side // self.merge, self.window) for side in (h, w))
        return rows * columns * self.merge**4


class FlopCounter:
    """Operations of forward and backward for batches of a model with its current trainable parameters."""

    def __init__(self, model: VisionLanguageModel) -> None:
        decoder = model.decoder
        self.encoder = EncoderFlops(model.vision_encoder)
        self.merge = model.vision_encoder.merge
        path = _Path(learns=self.encoder.learns or _trains(decoder.tok_embeddings))
        self.per_pair = sum(path.through_layer(layer) for layer in decoder.layers)
        self.per_token = path.flops
        path = _Path(learns=path.learns or _trains(decoder.norm))
        path.through(
            decoder.output if any(True for _ in decoder.output.parameters()) else decoder.tok_embeddings
        )
        self.per_label = path.flops
        if model.mtp is not None:
            self._predict(model.mtp)

    def _predict(self, mtp: MultiTokenPrediction) -> None:
        """Prediction layers process every token; the head has about as many positions again."""
        path = _Path(learns=True)
        path.through(mtp.fc)
        self.per_pair += sum(path.through_layer(layer) for layer in mtp.layers)
        self.per_token += path.flops
        self.per_label *= 2

    def __call__(
        self, lengths: Iterable[int], labelled: int, grids: Sequence[Sequence[int]] = (), patch_width: int = 0
    ) -> float:
        """Operations of one batch.

        Args:
            lengths: tokens of each row without padding.
            labelled: number of positions whose next token is labelled.
            grids: (t, h, w) in patches of every image or video.
            patch_width: values per patch in the batch; images with one frame per patch cost less to embed.
        """
        total = self.per_label * labelled
        for s in lengths:
            total += self.per_token * s + self.per_pair * s * (s + 1) / 2
        visual = sum(t * h * w for t, h, w in grids) / self.merge**2
        return total + self.encoder(grids, patch_width) + self.encoder.per_deepstack * visual

    def of_sample(self, tokens: int, patches: int) -> float:
        """Operations of one sample, estimated from its size, without the head and the encoder's attention.

        Packing compares rows by this.
        """
        visual = (self.encoder.per_visual_token + self.encoder.per_deepstack) * patches / self.merge**2
        text = self.per_token * tokens + self.per_pair * tokens * (tokens + 1) / 2
        return self.encoder.of_patches(patches) + visual + text


class _Path:
    """Adds up 2 · weights · passes along the path of a token; `learns`: something earlier on it trains."""

    def __init__(self, learns: bool) -> None:
        self.learns, self.flops = learns, 0.0

    def through(self, *modules: nn.Module | None, share: float = 1.0) -> None:
        """Count modules that all read the current input; the weights within one module run in sequence.

        Args:
            modules: None is skipped.
            share: share of the weights that process a token.
        """
        before = self.learns
        for module in modules:
            learns = before
            for name, weight in module.named_parameters() if module is not None else ():
                if weight.dim() >= 2:
                    # A linear with LoRA: lora_a has the same input as the weight, lora_b the output of
                    # lora_a.
                    input_grad = learns or name.endswith("lora_b.weight")
                    self.flops += share * 2 * weight.numel() * (1 + weight.requires_grad + input_grad)
                if "lora" not in name and not name.endswith("bias"):
                    learns = learns or weight.requires_grad
            self.learns = self.learns or (module is not None and _trains(module))

    def through_layer(self, layer: TransformerSelfAttentionLayer) -> float:
        """Count one transformer layer; returns its attention's operations per pair of tokens."""
        mlp = layer.mlp
        self.through(layer.sa_norm)
        per_pair = (self._delta_net if isinstance(layer.attn, GatedDeltaNet) else self._attention)(layer.attn)
        self.through(layer.mlp_norm)
        if isinstance(mlp, SparseMoE):
            self.through(mlp.router)
            self.through(mlp.experts, share=mlp.active_share)
            if mlp.shared is not None:
                self.through(mlp.shared_gate, mlp.shared.w1, mlp.shared.w3)
                self.through(mlp.shared.w2)
        else:
            self.through(mlp.w1, mlp.w3)
            self.through(mlp.w2)
        return per_pair

    def _attention(self, attention: Attention) -> float:
        self.through(attention.q_proj, attention.k_proj, attention.v_proj)
        self.through(attention.q_norm, attention.k_norm)
        width = cast(Tensor, attention.output_proj.weight).shape[1]  # a gate makes q_proj twice as wide
        per_pair = 4.0 * width * (3 if self.learns else 1)
        self.through(attention.output_proj)
        return per_pair

    def _delta_net(self, net: GatedDeltaNet) -> float:
        conv, gate = net.conv, net.gate
        self.through(conv.q_proj, conv.k_proj, conv.v_proj, gate.q_proj, net.decay_proj, net.beta_proj)
        self.flops += 2 * conv.weight.numel() * (1 + self.learns + conv.weight.requires_grad)
        self.learns = self.learns or conv.weight.requires_grad
        self.flops += 6.0 * math.prod(net.state_shape) * (3 if self.learns else 1)
        self.through(gate.output_proj)
        return 0.0


def _squares(side: int, window: int) -> int:
    whole, rest = divmod(side, window)
    return whole * window**2 + rest**2


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
