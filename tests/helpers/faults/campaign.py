"""How large a campaign is: a small share of it by default, the whole of it where it is asked for.

CAMPAIGN=1 pytest tests/campaigns          # at full size
CAMPAIGN_SEED=7 pytest tests/campaigns     # other random cases
"""

import os


def campaign_size(small: int, full: int) -> int:
    """The number of cases: `small` by default, so that the suite stays quick; `full` under CAMPAIGN=1."""
    return full if os.environ.get("CAMPAIGN") == "1" else small


def campaign_seed() -> int:
    """The seed that all random cases of a campaign come from."""
    return int(os.environ.get("CAMPAIGN_SEED", "0"))
