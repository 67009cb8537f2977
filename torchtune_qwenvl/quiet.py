"""One message of torchao's is not shown; everything else it says is.

torchtune 0.6.1 needs torchao < 0.16, whose compiled kernels torch of today cannot load. torchao says so at
every import, in every process, and nothing in this package uses these kernels.
"""

import logging

_MESSAGE = "Skipping import of cpp extensions due to incompatible torch version"


def hide_torchao_kernels_message() -> None:
    """Filter that message. It has to happen before torchao is imported."""
    logging.getLogger("torchao").addFilter(_is_other_message)


def _is_other_message(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MESSAGE)
