"""CUDA without a GPU: real code on fake tensors of real shapes, which counts what a GPU would be asked to do.

    shim.py       what torch needs to run a backward pass without a driver
    machine.py    the fake GPU: tensors have shapes, dtypes and a device, but no values
    meter.py      kernels, bytes, operations, peak memory and copies of everything that runs on it
    cost.py       the operations and the memory traffic of one kernel
    work.py       models of real widths, and batches as collate makes them
    step.py       a step of the recipe on the fake GPU
    graphs.py     what torch.compile makes of a layer

A fake tensor cannot be read, so every wait for the device raises an error. Run it as a program:
`python tests/helpers/rehearsal/run.py CASE ...`, see there.
"""
