"""Saves a run to folders `step_N/`, and resumes it from there as if it had never stopped, to the last bit.

Each rank writes its own part: its shards of the trainable parameters (the fp32 masters) and of the
optimizer's state, its random number state, and its place in the data. Frozen weights come from the checkpoint
folder. Another number of ranks cuts the shards anew and shares out what is left of the data.

    step_40.tmp/rank_0.pt rank_1.pt      all ranks write, flush to disk, and wait for each other
    step_40.tmp/run.json                 rank 0 writes last what belongs to the folder: see meta.py
    step_40/                             rank 0 renames: a folder with this name is always complete
"""

from torchtune_qwenvl.training.resume.begin import begin
from torchtune_qwenvl.training.resume.folders import find
from torchtune_qwenvl.training.resume.identity import Identity
from torchtune_qwenvl.training.resume.lock import own
from torchtune_qwenvl.training.resume.meta import META
from torchtune_qwenvl.training.resume.progress import Progress
from torchtune_qwenvl.training.resume.reading import Saved, read
from torchtune_qwenvl.training.resume.writing import save

__all__ = ["META", "Identity", "Progress", "Saved", "begin", "find", "own", "read", "save"]
