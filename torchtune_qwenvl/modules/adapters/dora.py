"""DoRA for a linear with bias: only the weight is decomposed, the bias stays as it is.

torchtune's DoRALinear scales its whole output, bias included. Its own merge and PEFT scale only the weight.
With Qwen's biased projections, a merged checkpoint or an exported adapter would then differ from the trained
model. Apart from that this is torchtune's module, without the identity matrix that it sends through lora_a
and lora_b, and with the update added as in `lora_linear`.
"""

import torch
from torch import Tensor
from torchtune.modules.peft import DoRALinear as _DoRALinear

from torchtune_qwenvl.modules.adapters.lora_linear import Product, base_linear, lora_linear
from torchtune_qwenvl.modules.adapters.nf4 import dequantised


class DoRALinear(_DoRALinear):
    """`x -> m / |W + s B A| * (W + s B A) x + bias`, arXiv:2402.09353; the norm has no gradient.

    Attributes:
        product: computes the frozen part; None for the usual product.
    """

    product: Product | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]."""
        if self.disabled:
            return (self.product or base_linear)(x, self.weight, self.bias)
        a, b = self.lora_a.weight, self.lora_b.weight
        out = lora_linear(x, self.dropout(x), self.weight, None, a, b, self.scaling, self.product)
        with torch.no_grad():
            norm = self._get_weight_norm(dequantised(self.weight), b @ a)
        out = (self.magnitude / norm * out).to(out.dtype)
        return out if self.bias is None else out + self.bias.to(out.dtype)
