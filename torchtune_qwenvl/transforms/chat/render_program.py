"""The program that `rendering.py` starts: a template and variables in, renderings out, both as JSON.

It runs alone: it imports neither torch nor this package, so that it starts quickly.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, whose names are not meant for other programs

import json
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 29
OUTPUT = 1 << 20


def limit_memory() -> None:
    """At most MEMORY bytes from here on, where the system can do that."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    except (ImportError, OSError, ValueError):
        pass


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja with the settings, filters and functions of transformers."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    made.globals["raise_exception"] = _raise
    return made


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    return environment().from_string(template)


def render(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """The text of a rendering, or the error."""
    try:
        text = _compiled(template).render(**variables)
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MB of memory"}
    except Exception as error:  # whatever a template does wrong
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    if len(text) > OUTPUT:
        return {"error": f"it writes {len(text)} characters, expected at most {OUTPUT}"}
    return {"text": text}


def _raise(message: str) -> None:
    raise TemplateError(message)


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    limit_memory()
    answers = []
    for variables in request["variables"]:
        answers.append(render(request["template"], variables))
        if "error" in answers[-1]:  # the others would fail alike, perhaps as slowly
            answers += [answers[-1]] * (len(request["variables"]) - len(answers))
            break
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
