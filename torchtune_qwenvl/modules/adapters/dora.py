"""DoRA for a linear with bias: only the weight is decomposed, the bias stays as it is.

torchtune's DoRALinear scales its whole output, bias included. Its own merge and PEFT scale only the weight.
With Qwen's biased projections, a merged checkpoint or an exported adapter would then differ from the trained
model. Apart from that this is torchtune's module, without the identity matrix that it sends through lora_a
and lora_b.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchtune.modules.peft import DoRALinear as _DoRALinear

from torchtune_qwenvl.modules.adapters.nf4 import dequantised


class DoRALinear(_DoRALinear):
    """`x -> m / |W + s B A| * (W + s B A) x + bias`, arXiv:2402.09353; the norm has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]."""
        if self.disabled:
            return F.linear(x, self.weight, self.bias)
        base = F.linear(x, self.weight)
        update = self.scaling * self.lora_b(self.lora_a(self.dropout(x)))
        with torch.no_grad():
            norm = self._get_weight_norm(dequantised(self.weight), self.lora_b.weight @ self.lora_a.weight)
        out = (self.magnitude / norm * (base + update)).to(base.dtype)
        return out if self.bias is None else out + self.bias.to(base.dtype)
