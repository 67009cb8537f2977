"""Columns of a record that hold what no sample can show."""

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.transforms.errors import BadSample

_SOUND = ("sound, which these models do not hear", "leave out what is asked about it")
# Column -> what it holds, and what to do.
_REFUSED = {
    "tools": (
        "a list of tools, which is not written into the conversation",
        "write it into a system message as the model's chat template does",
    ),
    "audio": _SOUND,
    "audios": _SOUND,
}


def refuse_columns(record: Mapping[str, Any]) -> None:
    """Raise a BadSample where one of these columns is filled.

    Left out in silence, the model would learn to answer from what it was never shown.
    """
    for column, (what, fix) in _REFUSED.items():
        if record.get(column) not in (None, [], "", "[]"):
            raise BadSample(what, where=column, fix=f"{fix}, and remove the column")
