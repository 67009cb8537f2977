"""`FolderCheckpointer` under the name that configs of torchtune's stock recipes use."""

from torchtune_qwenvl.checkpoints.checkpointer import FolderCheckpointer

__all__ = ["FolderCheckpointer"]
