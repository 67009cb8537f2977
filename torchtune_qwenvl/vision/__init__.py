"""Images to visual tokens, without a language model.

    pipeline = VisionPipeline.from_checkpoint(folder)      or .from_builder("vit_base", img_size=224)
    features = pipeline(["cat.jpg", "dog.png"])            .tokens, .map(i), .pooled, .stacked(), .numpy()
    for features in pipeline.stream(paths): ...            many images, in constant memory
    ImageIndex.build("photos", pipeline, "photos.index")   search; probe(pipeline, "classes"): which layer

pipeline.py, encoding.py, features.py    the encoder, and what comes out of it
inputs.py, media.py, channels.py         images to patches
stream.py, batches.py                    many images
looking.py                               tokens as pictures
probing.py, classifiers.py               which layer and pooling suit your classes
index/                                   search
guides/                                  two guides' names for the same
"""

from torchtune_qwenvl.checkpoints.vision_encoder import (
    load_vision_encoder,
    merge_vision_encoder,
    save_vision_encoder,
)
from torchtune_qwenvl.vision.features import Features
from torchtune_qwenvl.vision.guides import (
    ImagePreprocessor,
    Qwen3VisionTransformer,
    Qwen3VLPipeline,
    TokenPostprocessor,
    VisionConfig,
    VisionModel,
    VisionProcessor,
    create_glm4v_vision_encoder,
    create_qwen3_vl_vit,
    encode_image,
    encode_images,
)
from torchtune_qwenvl.vision.index import ImageIndex, late_interaction, pool_by_factor
from torchtune_qwenvl.vision.inputs import VisionInputs
from torchtune_qwenvl.vision.looking import TokenColours, similarity_map, visualize_tokens
from torchtune_qwenvl.vision.pipeline import VisionPipeline
from torchtune_qwenvl.vision.probing import ProbeResult, probe

__all__ = [
    "Features",
    "ImageIndex",
    "ImagePreprocessor",
    "ProbeResult",
    "Qwen3VLPipeline",
    "Qwen3VisionTransformer",
    "TokenColours",
    "TokenPostprocessor",
    "VisionConfig",
    "VisionInputs",
    "VisionModel",
    "VisionPipeline",
    "VisionProcessor",
    "create_glm4v_vision_encoder",
    "create_qwen3_vl_vit",
    "encode_image",
    "encode_images",
    "late_interaction",
    "load_vision_encoder",
    "merge_vision_encoder",
    "pool_by_factor",
    "probe",
    "save_vision_encoder",
    "similarity_map",
    "visualize_tokens",
]
