"""The parts of `benchmarks/gpu.py`: what is measured on a GPU, and rehearsed on a CPU.

setting.py   the device, sizes, clocks, and how long each part may take
rows.py      results, as JSON and as a Markdown table
kernels.py   kernels against fp64, forward and backward
models.py    the models: real sizes with random weights, or tiny ones
data.py      JPEG files and conversations about them
recipe.py    the recipe with such a model
steps.py     training steps: speed, waits for the device, compiling, savers, fully_shard
reference.py the same samples through transformers
resuming.py  save, kill, resume
wheels.py    a folder of what a GPU machine lacks
"""
