"""How long commands take to answer, next to torchtune's own import: CPU seconds of whole processes.

    python benchmarks/processes/start_up.py --repeats 5

Every command is run once to warm the disk cache, then in turn with `import torchtune`, so that a change in
the machine's speed meets both. The ratio is that of the medians.
"""

import argparse
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "tune-qwenvl --help": ["--help"],
    "tune-qwenvl ls": ["ls"],
    "tune-qwenvl cp --help": ["cp", "--help"],
    "tune-qwenvl show qwen2_5_vl/3B_lora": ["show", "qwen2_5_vl/3B_lora"],
    "tune-qwenvl validate qwen2_5_vl/3B_lora": ["validate", "qwen2_5_vl/3B_lora", "dataset.source=data.json"],
    "tune-qwenvl check --help": ["check", "--help"],
    "tune-qwenvl run --help": ["run", "--help"],
    "tune-qwenvl export --help": ["export", "--help"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torchtune = ["-c", "import torchtune"]
    print(f"{'command':42} {'CPU s':>6} {'import torchtune':>17} {'ratio':>6}")
    for name, words in COMMANDS.items():
        ours = ["-m", "torchtune_qwenvl.cli.main", *words]
        cpu_seconds(ours), cpu_seconds(torchtune)
        pairs = [(cpu_seconds(ours), cpu_seconds(torchtune)) for _ in range(repeats)]
        one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:42} {one:6.2f} {other:17.2f} {one / other:6.2f}")


if __name__ == "__main__":
    main()
