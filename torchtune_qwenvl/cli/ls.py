"""`tune-qwenvl ls`: torchtune's list, with our recipes and configs."""

from torchtune._cli.ls import List as TorchtuneList

from torchtune_qwenvl.cli.registry import register


class List(TorchtuneList):
    """torchtune's command."""

    def __init__(self, subparsers) -> None:
        register()
        super().__init__(subparsers)
