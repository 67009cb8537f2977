"""YAML and a command line -> one checked config.

config.py      the way from a name and overrides to a config          files.py      finds files, merges them
checks.py      known keys, components and their arguments             overrides.py  `key=value`
exclusions.py  settings that exclude each other                       datasets.py   what `dataset:` may hold
stock.py       the same config for torchtune's own recipes
"""
