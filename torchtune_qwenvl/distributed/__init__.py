"""One process or many: this rank, the mesh of all ranks, FSDP2 sharding, and whole tensors from shards.

With one process everything here does nothing, so that a recipe needs no separate path for it.
"""

from torchtune_qwenvl.distributed.sharding import kept_whole, reshard, shard
from torchtune_qwenvl.distributed.shards import GatheredState, cut, like, local, rows_of, shard_of, whole
from torchtune_qwenvl.distributed.world import World, join_world, leave_world, set_allocator

__all__ = [
    "GatheredState",
    "World",
    "cut",
    "join_world",
    "kept_whole",
    "leave_world",
    "like",
    "local",
    "reshard",
    "rows_of",
    "set_allocator",
    "shard",
    "shard_of",
    "whole",
]
