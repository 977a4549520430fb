"""Chat templates: those that checkpoints ship write as in plain Jinja; hostile ones end soon, in one line."""

import jinja2
import jinja2.sandbox
import pytest

from jaxft.data import render_chat

MESSAGES = [{"role": "user", "content": "Hi, {name}: 100% of 12345678901?"}, {"role": "assistant", "content": "a\nb"}]
GROWING = "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}"

HOSTILE = {
    "a width of %": "{{ '%1000000000d' % 1 }}", "a width that is filled in": "{{ '%*d' % (1000000000, 1) }}",
    "a width of format": "{{ '{:1000000000}'.format(1) }}", "one filled in": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a filter's width": "{{ '%1000000000d' | format(1) }}", "text times": "{{ 'a' * 1000000000 }}",
    "a list times": "{{ [1] * 1000000000 }}", "a power": "{{ 2 ** 10000000000 }}",
    "center": "{{ 'a'.center(1000000000) }}", "center, a filter": "{{ 'a' | center(1000000000) }}",
    "indent": r"{{ ('a\n' * 100000) | indent(100000) }}", "zfill": "{{ '1'.zfill(1000000000) }}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
    "empty loops": "{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "text in loops": "{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    "sums": GROWING + "{% set n.x = n.x + n.x %}{% endfor %}",
    "joined": GROWING + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "replaced": GROWING + "{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "join": GROWING + "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "blocks": GROWING + "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "macros": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}"
              + " " * 50_000,
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused(template):
  with pytest.raises(ValueError, match="refuses this conversation: it (makes|writes|loops)"):
    render_chat(MESSAGES, template)


@pytest.mark.parametrize("template, message", [
    ("{{ 1 / 0 }}", "ZeroDivisionError"), ("{{ messages[5].role }}", "no element 5"),
    ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "must be a Jinja chat template"),
    ("{% for m in messages %}", "must be a Jinja chat template"), ("{{ raise_exception('no tools') }}", "no tools"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"), ("{{ messages.append(1) }}", "immutable|not safely callable|unsafe"),
])
def test_what_a_template_does_wrong_is_one_error(template, message):
  with pytest.raises(ValueError, match=message):
    render_chat(MESSAGES, template)


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.revindex }}"
    "{{ m.role ~ ': ' ~ m.content ~ 3 }}{{ loop.previtem.role if loop.previtem is defined else '' }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m['content'].replace('i', 'ii') | trim | upper }}{% else %}none"
    "{% endfor %}",
    "{% for k, v in {'a': 1, 'b': [2, 3]}.items() %}{{ k }}{{ v | join(', ') if v is iterable else v }}{% endfor %}",
    "{{ messages | map(attribute='role') | join(' and ') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 2 ** 3 %}{% if ns.n > 9 %}{% break %}"
    "{% endif %}{% endfor %}{{ ns.n * 2 }}{{ '%s-%03d' % ('x', 7) }}{{ '{:>5}'.format('y') }}"
    "{{ 'ab' | indent(4, true) }}",
    "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "{% for m in messages %}{{ m.content.split('\\n')[-1] }}{{ m.content | length }}{{ m.content[:2] }}{% endfor %}",
])
def test_templates_write_as_in_plain_jinja(template):
  plain = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
  assert render_chat(MESSAGES, template) == plain.from_string(template).render(messages=MESSAGES)


def test_a_long_conversation_is_written():
  messages = [{"role": "user", "content": "x{y}%" * 1000}] * 1000
  template = "{% for m in messages %}<{{ m.role }}>{{ m.content.replace('x', '') | trim }}\n{% endfor %}"
  assert len(render_chat(messages, template)) == 1000 * (7 + 4000)
