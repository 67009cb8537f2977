"""Which sample comes when.

Files:

    sampler          a permutation per epoch, shared out among ranks, resumable
    mixture          the turns of several datasets, by weights
    packing          which samples share a row
    packed_sampler   which packed rows come when
"""
