"""Group errors into kinds."""

from torchtune_qwenvl.data.reasons import masked
from torchtune_qwenvl.transforms.errors import BadSample


def kind_of(error: BaseException) -> str:
    """The kind of an error that a dataset raised for a sample.

    This is the innermost BadSample's message: the errors around it only add the place and the advice.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    bad = [link.what for link in chain if isinstance(link, BadSample)]
    if bad:
        return masked(bad[-1])
    return masked(f"{type(chain[-1]).__name__}: {chain[-1]}")
