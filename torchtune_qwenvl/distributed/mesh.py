"""The mesh of all processes: which share one copy of the model, and which hold copies of it.

    data_parallel_replicate_degree: 2, data_parallel_shard_degree: 4, 8 processes on two nodes

                 dp_shard
    dp_replicate 0 1 2 3      node 0: gathers weights and scatters gradients among its own GPUs
                 4 5 6 7      node 1: the same; between nodes only the sums of gradients of 0+4, 1+5, … travel

Processes that follow each other, so those of a node, lie along the last axis. The names of axes and degrees
are torchtitan's. Another kind of parallelism is one more row of AXES: inside of a node, and after dp_shard.
FSDP gets the axes of data parallelism, whatever else is there.
"""

import math
from collections.abc import Mapping

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

REPLICATE, SHARD = "dp_replicate", "dp_shard"
# Config key -> axis of the mesh, outermost first.
AXES = {"data_parallel_replicate_degree": REPLICATE, "data_parallel_shard_degree": SHARD}
# What a key that is not given has: one copy, shared by all processes.
DEFAULTS = {"data_parallel_replicate_degree": 1, "data_parallel_shard_degree": -1}


def degrees_of(processes: int, wanted: Mapping[str, int | None]) -> dict[str, int]:
    """{axis: its length}, outermost first.

    Args:
        processes: number of processes.
        wanted: config key of AXES -> degree; -1 or None: as many as are left. At most one of the keys.

    Raises:
        ValueError: the degrees do not multiply to the number of processes.
    """
    given = {key: DEFAULTS[key] if key not in wanted else wanted[key] or -1 for key in AXES}
    fixed = {key: degree for key, degree in given.items() if degree != -1}
    to_fill = [key for key in AXES if key not in fixed]
    product = math.prod(fixed.values())
    said = ", ".join(f"{key}={degree}" for key, degree in given.items())
    if len(to_fill) > 1:
        raise ValueError(f"{said}: at most one of these can be -1, which takes the processes that are left")
    if min(fixed.values(), default=1) < 1 or processes % product or not (to_fill or product == processes):
        expected = "divides" if to_fill else "is"
        raise ValueError(
            f"{said}: expected degrees whose product {expected} the number of processes, {processes} "
            f"(--nproc_per_node times --nnodes), got {product}. Change one of them, or set one to -1, which "
            "takes the processes that are left."
        )
    return {axis: fixed.get(key, processes // product) for key, axis in AXES.items()}


def build_mesh(device: str, degrees: Mapping[str, int]) -> DeviceMesh:
    """The mesh of all processes, without axes of length 1 except for dp_shard: each axis costs groups.

    Args:
        device: "cuda" or "cpu".
        degrees: {axis: its length}, outermost first.
    """
    axes = {axis: length for axis, length in degrees.items() if length > 1 or axis == SHARD}
    return init_device_mesh(device, tuple(axes.values()), mesh_dim_names=tuple(axes))


def sharding_mesh(device: str, processes: int, mesh: DeviceMesh | None) -> DeviceMesh:
    """What FSDP shards over: (dp_replicate, dp_shard), or dp_shard alone if there is one copy.

    Args:
        device: "cuda" or "cpu".
        processes: number of processes.
        mesh: of all processes; None has one copy.
    """
    mesh = mesh or build_mesh(device, degrees_of(processes, {}))
    return mesh[REPLICATE, SHARD] if REPLICATE in (mesh.mesh_dim_names or ()) else mesh[SHARD]
