"""YAML and a command line -> one checked config.

config.py      from a name and overrides to a config    files.py      finds and merges files
checks.py      keys, components, arguments               overrides.py  `key=value`
exclusions.py  settings that exclude each other          datasets.py   what `dataset:` may contain
recipes.py     which recipe has which keys               stock.py      configs for torchtune's own recipes
"""
