"""Reading a dataset without training: what is in it, what is wrong with it. `tune-qwenvl check` shows it."""

from torchtune_qwenvl.checking.facts import Examiner, Facts
from torchtune_qwenvl.checking.read import read_facts, samples_of
from torchtune_qwenvl.checking.sheet import draw_sheet
from torchtune_qwenvl.checking.summary import summary

__all__ = ["Examiner", "Facts", "draw_sheet", "read_facts", "samples_of", "summary"]
