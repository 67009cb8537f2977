"""How Qwen3-VL writes boxes: Qwen2.5-VL's JSON with coordinates from 0 to 1000.

Sources: the Qwen team's cookbooks of QwenLM/Qwen3-VL at 9658872: omni_recognition.ipynb ("relative
coordinates … scaled from 0 to 1000", and the list that it prints), spatial_understanding.ipynb (`point_2d`,
divided by 1000 and multiplied by the image's size); the conversion is that of Qwen2-VL, says the team
(QwenLM/Qwen3-VL#1486, #1937).
"""

from torchtune_qwenvl.models.qwen2_5_vl._boxes import JSON_PER_MILLE

__all__ = ["JSON_PER_MILLE"]
