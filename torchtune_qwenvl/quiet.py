"""Hide one message of torchao's, and nothing else.

torchtune 0.6.1 needs torchao < 0.16, whose compiled kernels do not load in torch 2.11 and later. torchao
says so in every process that imports it, and nothing in this package uses these kernels.

The filter works only if this package is imported before torchao. torchtune's own `tune` imports torchao
first, so `tune run` still prints the message once; `tune-qwenvl` and the ranks of a run do not.
"""

import logging

_MESSAGE = "Skipping import of cpp extensions due to incompatible torch version"


def hide_torchao_kernels_message() -> None:
    """Filter that message. It has to happen before torchao is imported."""
    logging.getLogger("torchao").addFilter(_is_other_message)


def _is_other_message(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MESSAGE)
