"""Images to visual tokens, without a language model.

pipeline = VisionPipeline.from_checkpoint(folder)      or .from_builder("vit_base", img_size=224)
features = pipeline(["cat.jpg", "dog.png"])            .tokens, .map(i), .pooled, .stacked(), .numpy()
for features in pipeline.stream(paths): ...            many images, in constant memory
"""

from torchtune_qwenvl.vision.features import Features
from torchtune_qwenvl.vision.inputs import VisionInputs
from torchtune_qwenvl.vision.pipeline import VisionPipeline

__all__ = ["Features", "VisionInputs", "VisionPipeline"]
