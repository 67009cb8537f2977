"""Columns of a record that hold what no sample can show."""

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.transforms.errors import BadSample

_SOUND = ("audio", "audios")


def refuse_columns(record: Mapping[str, Any]) -> None:
    """Raise a BadSample where a column of sound is filled.

    Left out in silence, the model would learn to answer from what it was never shown.
    """
    for column in _SOUND:
        if record.get(column) not in (None, [], "", "[]"):
            raise BadSample(
                "sound, which these models do not hear",
                where=column,
                fix="leave out what is asked about it, and remove the column",
            )
