"""Floating-point operations of a training step, from the parameters and what trains: the numerator of MFU.

Every weight counts 2 operations per token or patch that it processes, in each pass that is computed:
forward always; the weight gradient where the weight trains; the gradient of its input where something
before it trains. Attention counts 4·d per pair of tokens that meet (causal: about half of them) and layer,
and twice that again backward. The head sees labelled positions only. Recomputation under activation
checkpointing is not counted: MFU rates useful work.

p patches, v visual tokens, t text and visual tokens in the decoder, k labelled positions, d width of all
heads.
"""

from collections.abc import Iterable, Sequence

from torch import nn
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.modules.experts.moe import SparseMoE
from torchtune_qwenvl.modules.vision.layers import PatchEmbed
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


class FlopCounter:
    """Operations of forward and backward for batches of a model, as it is set to train now."""

    def __init__(self, model: VisionLanguageModel) -> None:
        encoder, decoder = model.vision_encoder, model.decoder
        self.merge, self.window = encoder.merge, encoder.window
        assert isinstance(encoder.patch_embed, PatchEmbed)
        self.frames, self.still_width = encoder.patch_embed.frames, encoder.patch_embed.still_width
        self._embed = _Path(learns=False)
        self._embed.through(encoder.patch_embed)
        path = _Path(learns=self._embed.learns)
        # Attention operations per pair, over the layers that see whole frames and those that see windows.
        self.per_frame_pair = self.per_window_pair = 0.0
        for i, layer in enumerate(encoder.layers):
            per_pair = path.through_layer(layer)
            if self.window is None or i in encoder.full_attention:
                self.per_frame_pair += per_pair
            else:
                self.per_window_pair += per_pair
        self.per_patch = path.flops
        path = _Path(learns=path.learns)
        path.through(encoder.merger, *encoder.deepstack_mergers)
        self.per_visual_token = path.flops
        path = _Path(learns=path.learns or _trains(decoder.tok_embeddings))
        self.per_pair = sum(path.through_layer(layer) for layer in decoder.layers)
        self.per_token = path.flops
        path = _Path(learns=path.learns or _trains(decoder.norm))
        path.through(
            decoder.output if any(True for _ in decoder.output.parameters()) else decoder.tok_embeddings
        )
        self.per_label = path.flops

    def __call__(
        self, lengths: Iterable[int], labelled: int, grids: Sequence[Sequence[int]] = (), patch_width: int = 0
    ) -> float:
        """Operations of one batch.

        Args:
            lengths: tokens of each row, padding left out.
            labelled: positions whose next token is labelled.
            grids: (t, h, w) in patches of every image or clip.
            patch_width: values per patch as shipped; stills at one frame cost less to embed.
        """
        total = self.per_label * labelled
        for s in lengths:
            total += self.per_token * s + self.per_pair * s * (s + 1) / 2
        frames = self.frames if patch_width == self.still_width else 1
        for t, h, w in grids:
            patches = t * h * w
            total += (self._embed.flops / frames + self.per_patch) * patches
            total += self.per_visual_token * patches / self.merge**2
            total += self.per_frame_pair * t * (h * w) ** 2 + self.per_window_pair * t * self._window_pairs(
                h, w
            )
        return total

    def of_sample(self, tokens: int, patches: int) -> float:
        """Operations of one sample of which no more is known: without head and the encoder's attention.

        For packing, which compares rows.
        """
        encoder = (self._embed.flops / self.frames + self.per_patch) * patches
        merger = self.per_visual_token * patches / self.merge**2
        return encoder + merger + self.per_token * tokens + self.per_pair * tokens * (tokens + 1) / 2

    def _window_pairs(self, h: int, w: int) -> int:
        """Pairs of patches in one window; 6 x 5 visual tokens split into (4, 2) x (4, 1)."""
        if self.window is None:
            return 0
        rows, columns = (_squares(side // self.merge, self.window) for side in (h, w))
        return rows * columns * self.merge**4


class _Path:
    """Adds up 2 · weights · passes along the way of a token; `learns`: something behind us trains."""

    def __init__(self, learns: bool) -> None:
        self.learns, self.flops = learns, 0.0

    def through(self, *modules: nn.Module | None, share: float = 1.0) -> None:
        """Modules that read the same input, side by side; within a module, weights follow one another.

        Args:
            modules: None stands for nothing.
            share: part of the weights that a token meets.
        """
        before = self.learns
        for module in modules:
            learns = before
            for name, weight in module.named_parameters() if module is not None else ():
                if weight.dim() >= 2:
                    # A linear with LoRA: lora_a reads the same input as the weight, lora_b what lora_a gives.
                    behind = learns or name.endswith("lora_b.weight")
                    self.flops += share * 2 * weight.numel() * (1 + weight.requires_grad + behind)
                if "lora" not in name and not name.endswith("bias"):
                    learns = learns or weight.requires_grad
            self.learns = self.learns or (module is not None and _trains(module))

    def through_layer(self, layer: TransformerSelfAttentionLayer) -> float:
        """One transformer layer; returns its attention's operations per pair of tokens."""
        attention, mlp = layer.attn, layer.mlp
        self.through(layer.sa_norm)
        self.through(attention.q_proj, attention.k_proj, attention.v_proj)
        self.through(attention.q_norm, attention.k_norm)
        width = attention.q_proj.weight.shape[0]
        per_pair = 4.0 * width * (3 if self.learns else 1)
        self.through(attention.output_proj)
        self.through(layer.mlp_norm)
        if isinstance(mlp, SparseMoE):
            self.through(mlp.router)
            self.through(mlp.experts, share=mlp.active_share)
            if mlp.shared is not None:
                self.through(mlp.shared.w1, mlp.shared.w3)
                self.through(mlp.shared.w2)
        else:
            self.through(mlp.w1, mlp.w3)
            self.through(mlp.w2)
        return per_pair


def _squares(side: int, window: int) -> int:
    whole, rest = divmod(side, window)
    return whole * window**2 + rest**2


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
