"""A demo for the CPU: a tiny Qwen2.5-VL learns to read digits (configs/demo/digits.yaml).

answers: asks the model about images and measures its accuracy.
checkpoint: writes a tiny checkpoint folder with random weights.
digits: writes the images and conversations.
pictures: draws a page of answers.
report: the output at the end of the demo.
threads: limits the number of threads.
"""

from torchtune_qwenvl.demo.answers import answer_accuracy
from torchtune_qwenvl.demo.checkpoint import write_tiny_checkpoint
from torchtune_qwenvl.demo.digits import write_digits
from torchtune_qwenvl.demo.report import report_digits
from torchtune_qwenvl.demo.threads import one_thread

__all__ = ["answer_accuracy", "one_thread", "report_digits", "write_digits", "write_tiny_checkpoint"]
