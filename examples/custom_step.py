"""A recipe step of your own: keep an average of the trained weights, and write that at the end.

    cd examples
    tune-qwenvl run custom_step.py --config qwen2_5_vl/3B_lora dataset.source=data.jsonl

`FinetuneRecipe` is a class to subclass: `setup` builds everything, `step` does one optimizer step, `finish`
writes what was trained. Everything else (sharding, resuming, validation, logs) stays as it is. The file is
run like any recipe, on several GPUs too; its path is relative to the folder in which the command runs.
"""

import torch
from torch import Tensor

from torchtune_qwenvl.data import Batch
from torchtune_qwenvl.distributed import local
from torchtune_qwenvl.recipes.finetune import FinetuneRecipe, main
from torchtune_qwenvl.training.watch.metrics import Step

DECAY = 0.99


class AveragingRecipe(FinetuneRecipe):
    """Writes the exponential moving average of the trained weights; a resumed run starts a new average."""

    def setup(self) -> None:
        super().setup()
        self.average = {name: weight.clone() for name, weight in self.trained().items()}

    @torch.no_grad()
    def trained(self) -> dict[str, Tensor]:
        """This process's share of every weight that trains."""
        weights = self.model.named_parameters()
        return {name: local(weight).detach() for name, weight in weights if weight.requires_grad}

    def step(self, batches: list[Batch]) -> Step:
        """The usual step, then one step of the average."""
        result = super().step(batches)
        for name, weight in self.trained().items() if result.taken else ():
            self.average[name].lerp_(weight, 1 - DECAY)
        return result

    def finish(self) -> None:
        """Put the average into the model before it is written."""
        for name, weight in self.trained().items():
            weight.copy_(self.average[name])
        super().finish()


if __name__ == "__main__":
    main(recipe=AveragingRecipe)
