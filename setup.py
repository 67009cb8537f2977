"""Which packages there are; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

# The last two are the top-level folders `configs` and `recipes`, mapped in pyproject.toml.
setup(
    packages=[
        *find_packages(include=["torchtune_qwenvl*"]),
        "torchtune_qwenvl.configs",
        "torchtune_qwenvl.recipes",
    ]
)
