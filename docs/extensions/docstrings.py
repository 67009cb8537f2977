"""A griffe extension: the reference pages show what griffe alone cannot read in the source code.

- `takes_arguments_of` gives a builder the arguments of the functions that it calls, and the builders of the
  published sizes are made by a function. Their signatures and docstrings exist only once Python has run.
- Docstrings describe arguments that belong together in one entry: `height, width: in pixels.`
- Docstrings name other objects by Sphinx's roles and mark code by its directive. Markdown knows neither.
"""

import inspect
import re
from importlib import import_module
from typing import Any

import griffe

DECORATOR = "takes_arguments_of"
# `  a, *b: text` and the lines of its text, which are indented further.
JOINT_ENTRY = re.compile(r"^( +)(\*{0,2}\w+(?:,\s+\*{0,2}\w+)+):((?:.*)(?:\n\1 +.*)*)", re.MULTILINE)
NO_ENTRIES = re.compile(r"^Args:\s*(?=\n\n|\Z)", re.MULTILINE)
# `:class:`~path.of.Name``.
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([\w.]+)`")
# `  **rest: text`, which is without meaning where the signature lists every argument.
REST_ENTRY = re.compile(r"^( +)\*\*\w+:.*(?:\n\1 +.*)*\n?", re.MULTILINE)
CODE_BLOCK = re.compile(r"^ *\.\. code-block:: \w+\n\n", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)Example:$(?=\n +>>>)", re.MULTILINE)
KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: griffe.ParameterKind.positional_only,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
}


class RuntimeSignatures(griffe.Extension):
    """Completes what griffe has read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Every docstring, as griffe and Markdown read it."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """A decorated function gets all of its parameters."""
        if any(DECORATOR in str(decorator.value) for decorator in func.decorators):
            show(func, runtime(func))

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """What the source assigns to a name becomes a function where it is one."""
        for name, member in list(mod.members.items()):
            if is_assigned(member) and inspect.isroutine(found := runtime(member)):
                function = griffe.Function(name, lineno=member.lineno, endlineno=member.endlineno)
                mod.set_member(name, function)
                show(function, found)


def readable(docstring: str) -> str:
    """An entry for each argument, links instead of roles, and examples as griffe finds them."""
    for found, replacement in (
        (JOINT_ENTRY, separate),
        (ROLE, link),
        (CODE_BLOCK, ""),
        (EXAMPLE, r"\1Examples:"),
    ):
        docstring = found.sub(replacement, docstring)
    return docstring


def link(role: re.Match[str]) -> str:
    """A role with a full path is a link to the object; a bare name is only set as code."""
    path = role[1]
    name = path.rpartition(".")[2]
    return f"[`{name}`][{path}]" if path.startswith("torchtune_qwenvl.") else f"`{name}`"


def separate(entry: re.Match[str]) -> str:
    """`a, b: text` -> `a: text` and `b: text`."""
    indent, names, description = entry.groups()
    return "\n".join(f"{indent}{name}:{description}" for name in re.split(r",\s+", names))


def is_assigned(member: griffe.Object | griffe.Alias) -> bool:
    """Whether the package says `name = function(...)` or `name = Class.method`, with a public name."""
    if member.is_alias or not member.path.startswith("torchtune_qwenvl.") or member.name.startswith("_"):
        return False
    return member.is_attribute and isinstance(member.value, (griffe.ExprCall, griffe.ExprAttribute))


def runtime(obj: griffe.Object) -> Any:
    """The Python object that `obj` describes."""
    found = import_module(obj.module.path)
    for name in obj.path.removeprefix(f"{obj.module.path}.").split("."):
        found = getattr(found, name)
    return found


def show(shown: griffe.Function, found: Any) -> None:
    """Give `shown` the docstring and the parameters of `found`."""
    signature = inspect.signature(found)
    shown.parameters = griffe.Parameters(*(parameter(p) for p in signature.parameters.values()))
    shown.returns = text(signature.return_annotation)
    if doc := readable(inspect.getdoc(found) or ""):
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            doc = NO_ENTRIES.sub("", REST_ENTRY.sub("", doc))
        shown.docstring = griffe.Docstring(doc, parent=shown, parser="google")


def parameter(p: inspect.Parameter) -> griffe.Parameter:
    """griffe's form of a parameter."""
    default = None if p.default is p.empty else repr(p.default)
    return griffe.Parameter(p.name, annotation=text(p.annotation), kind=KINDS[p.kind], default=default)


def text(annotation: Any) -> str | None:
    """An annotation as it is written."""
    if annotation is inspect.Parameter.empty:
        return None
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
