"""Read a dataset without training: what it contains and what is wrong with it (`tune-qwenvl check`).

facts: `Facts` about one sample, and `Examiner`, a transform that collects them.
kinds: groups errors into kinds, without paths, quotations and numbers.
read: reads a whole dataset with worker processes.
report: writes report.txt, bad_samples.jsonl and lengths.png.
sheet: draws a contact sheet of samples.
summary: formats the facts as text.
"""

from torchtune_qwenvl.checking.facts import Examiner, Facts
from torchtune_qwenvl.checking.read import read_facts, samples_of
from torchtune_qwenvl.checking.report import write_report
from torchtune_qwenvl.checking.sheet import draw_sheet
from torchtune_qwenvl.checking.summary import summary

__all__ = ["Examiner", "Facts", "draw_sheet", "read_facts", "samples_of", "summary", "write_report"]
