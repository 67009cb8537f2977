"""A demo that needs nothing but a CPU: a tiny Qwen2.5-VL learns to read digits (configs/demo/digits.yaml)."""

from torchtune_qwenvl.demo.answers import answer_accuracy
from torchtune_qwenvl.demo.checkpoint import write_tiny_checkpoint
from torchtune_qwenvl.demo.digits import write_digits
from torchtune_qwenvl.demo.report import report_digits
from torchtune_qwenvl.demo.threads import one_thread

__all__ = ["answer_accuracy", "one_thread", "report_digits", "write_digits", "write_tiny_checkpoint"]
