"""Records that come one after the other: not counted, not numbered, resumable all the same.

Files:

    stream    what a stream and its cursor are
    kinds     streams of lines, tables, iterables and numbered records
    sources   `open_stream`: the stream of a source
    dataset   streams as datasets, and the wrapper of foreign iterables
    mixed     several streams, mixed by weights
    sampler   batches of a stream: shuffled, packed, resumable
"""
