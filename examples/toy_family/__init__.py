"""A model family outside the package: a small vision encoder of our own in front of Qwen2.5's decoder.

    model.py      config.json, encoder, builders, weight names
    transform.py  chat format, image settings

`import toy_family` registers it. From then on `load_model`, `load_transform`, `save_model` and the recipes
find it by the model_type of config.json:

    PYTHONPATH=examples python -c "import toy_family, torchtune_qwenvl as q; q.load_model('/tmp/toy')"

In a YAML config name `toy_family.toy_vl_from_config` and `toy_family.load_toy_vl_transform` as components.
"""

from torchtune_qwenvl.models import Family, register_family
from toy_family.model import SLOTS, WEIGHTS, toy_vl_from_config, toy_vl_tiny
from toy_family.transform import ToyVLTransform, load_toy_vl_transform

TOY_VL = Family("toy_vl", SLOTS, toy_vl_from_config, WEIGHTS, ToyVLTransform)
register_family(TOY_VL)

__all__ = ["TOY_VL", "ToyVLTransform", "load_toy_vl_transform", "toy_vl_from_config", "toy_vl_tiny"]
