"""Chat templates: the environment that published templates expect, and its limits."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from butterfly.errors import InvalidRequestError, ModelFormatError
from butterfly.models import ChatTemplate

HI: list[dict[str, Any]] = [{"role": "user", "content": "hi <b>é</b>"}]


def test_tokens_flags_and_extra_variables() -> None:
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ mood }}", bos_token="<s>")
    assert template.render(HI, mood="good") == "<s>Truegood"
    assert template.render(HI, add_generation_prompt=False, eos_token="</s>") == "<s></s>False"


def test_blocks_leave_no_white_space() -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}"
    assert ChatTemplate(source).render(HI) == "user\n"


def test_tojson_is_plain_json() -> None:
    assert ChatTemplate("{{ messages[0] | tojson }}").render(HI) == '{"role": "user", "content": "hi <b>é</b>"}'
    assert ChatTemplate("{{ [1] | tojson(indent=1) }}").render(HI) == "[\n 1\n]"


def test_loop_controls_generation_blocks_dates_and_absent_tools() -> None:
    assert (
        ChatTemplate("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}").render(HI)
        == "1"
    )
    assert ChatTemplate("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c").render(HI) == "abuserc"
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(HI) == str(datetime.datetime.now().year)
    assert ChatTemplate("{% if tools is none and not documents %}none{% endif %}").render(HI) == "none"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must\n alternate') }}", "roles must alternate"),
        ("{{ messages[5].content.x }}", "no element 5"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[0]['content'] | int / 0 }}", "zero"),
        ("{{ messages[0].nothing.more }}", "nothing"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_a_template_raises_is_the_clients_fault(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template refuses the messages") as caught:
        ChatTemplate(source).render(HI)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages.__init__.__globals__ }}"]
)
def test_the_sandbox_holds(source: str) -> None:
    messages = [*HI]
    with pytest.raises(InvalidRequestError):
        ChatTemplate(source).render(messages)
    assert messages == HI


@pytest.mark.parametrize("source", ["{% if %}", "{{ unclosed", "{% nonsense %}"])
def test_a_template_that_is_not_jinja(source: str) -> None:
    with pytest.raises(ModelFormatError, match="not valid"):
        ChatTemplate(source)
