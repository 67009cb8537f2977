"""Templates of downloaded files are rendered under limits; whatever they do is an error with its reason."""

import time

import pytest
from faults.campaign import campaign_size

from torchtune_qwenvl.transforms.chat import rendering
from torchtune_qwenvl.transforms.chat.rendering import Rendering, render_all

VARIABLES = {"messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": False}

HUGE = ("MemoryError", "memory", "OverflowError", "characters", "code")  # which one depends on the system
HOSTILE = {
    "{{ 1 // 0 }}": ("ZeroDivisionError",),
    "{{ messages[7].content.x }}": ("UndefinedError",),
    "{{ messages[0].content + 1 }}": ("TypeError",),
    "{{ 'x' * 10**10 }}": HUGE,
    "{{ 'x'.ljust(10**10) }}": HUGE,
    "{{ 'x' | center(10**10) }}": HUGE,
    "{{ '%09999999999d' % 1 }}": HUGE,
    "{{ '{:>9999999999}'.format(1) }}": HUGE,
    "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}": HUGE,
    "{{ range(10**9) | list }}": ("OverflowError", "Range too big"),
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": ("RecursionError",),
    "{{ 'x' * 2000000 }}": ("2000000 characters",),
    "{% include '/etc/passwd' %}": ("TypeError", "no loader"),
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": ("SecurityError",),
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": ("SecurityError",),
    "{{ messages.append(1) }}": ("SecurityError",),
    "{% for x in": ("TemplateSyntaxError",),
    "{{ raise_exception('no system turn') }}": ("no system turn",),
}
LOOPS = [
    "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "{{ 9**(9**9) }}",
]
# Each filter and method that can grow a text, with a number far too large for it.
GROWING = [
    *(f"{{{{ 'x' | {name}(10**{n}) }}}}" for name in ("center", "indent", "wordwrap") for n in (9, 10, 12)),
    *(f"{{{{ 'x'.{name}(10**{n}) }}}}" for name in ("zfill", "ljust", "center") for n in (9, 10, 12)),
    *(f"{{{{ {value} * 10**{n} }}}}" for value in ("'xy'", "[1]", "(1, 2)") for n in (9, 10, 12)),
    *(f"{{{{ lipsum(n=10**{n}) }}}}" for n in (6, 7)),
    *(
        f"{{{{ ('x' * 10**{n}) | {name} | length }}}}"
        for n in (7, 8)
        for name in ("urlize", "escape", "title")
    ),
    *(f"{{{{ ('x' * 10**{n}).replace('', 'y' * 10**{n}) }}}}" for n in (5, 6)),
    *(f"{{{{ ('x' * 10**{n}) | list | batch(1) | list | string | length }}}}" for n in (7, 8)),
]


def test_the_renderings_of_a_harmless_template():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}{% endfor %}{{ add_generation_prompt }}"
    )
    assert render_all(template, [VARIABLES, {**VARIABLES, "add_generation_prompt": True}]) == [
        Rendering('user: "Hello"False'),
        Rendering('user: "Hello"True'),
    ]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_is_an_error_with_its_reason(template):
    (answer,) = render_all(template, [VARIABLES])
    assert answer.error and any(reason in answer.error for reason in HOSTILE[template]), answer


@pytest.mark.parametrize("template", LOOPS)
def test_an_endless_template_is_stopped(template, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 2.0)
    began = time.monotonic()
    (answer,) = render_all(template, [VARIABLES])
    assert answer.error == "it takes longer than 2 seconds"
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("template", GROWING[:: campaign_size(12, 1)])
def test_what_grows_is_rendered_or_an_error(template):
    (answer,) = render_all(template, [VARIABLES])
    assert answer.error or len(answer.text) <= 1 << 20
