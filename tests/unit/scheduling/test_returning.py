"""After the stages were lost: who was interrupted comes back first, the shortest of them before the others."""

from __future__ import annotations

from tests.unit.scheduling.rig import Rig, make_config, make_request, output_of

READER_STEP = 8  # tokens: the chunk that is taken while nothing has been measured


def interrupted(*prompts: int) -> Rig:
    """Requests with prompts of so many tokens have run, and then their stages were lost."""
    rig = Rig(make_config(first_chunk_tokens=READER_STEP, prefix_reuse="off"))
    for number, length in enumerate(prompts):
        rig.add(make_request(f"r{number}", length, 60))
    rig.rounds(lambda: all(rig.tokens(f"r{number}") for number in range(len(prompts))))
    rig.replace_stages()
    return rig


def order_of_tokens(rig: Rig) -> list[str]:
    """The requests in the order in which they got their next token."""
    rig.outputs.clear()
    while len({output.request_id for output in rig.outputs}) < len(rig.requests):
        rig.fill()
        rig.answer()
    return list(dict.fromkeys(output.request_id for output in rig.outputs))


def test_the_shortest_comes_back_first() -> None:
    assert order_of_tokens(interrupted(40, 10, 25)) == ["r1", "r2", "r0"]


def test_readers_come_before_those_who_had_no_token_yet() -> None:
    rig = Rig(make_config(first_chunk_tokens=READER_STEP, prefix_reuse="off"))
    rig.add(make_request("long", 60, 60))
    rig.rounds(lambda: bool(rig.tokens("long")))
    rig.add(make_request("short", 20, 60))
    rig.answer()
    rig.fill()
    assert rig.scheduler.counts.num_running == 2
    assert not rig.tokens("short")
    rig.replace_stages()
    assert order_of_tokens(rig) == ["long", "short"]


def test_an_urgent_newcomer_comes_before_them_and_another_after() -> None:
    rig = interrupted(40, 30)
    rig.add(make_request("urgent", 16, 60, priority=-1))
    rig.add(make_request("late", 4, 60))
    assert order_of_tokens(rig) == ["urgent", "r1", "r0", "late"]


def test_who_has_a_token_again_is_like_any_other() -> None:
    rig = interrupted(10, 12)
    rig.rounds(lambda: len(rig.tokens("r1")) > 2)
    rig.add(make_request("a", 40, 60))
    rig.add(make_request("b", 8, 60))
    rig.run_until_idle()
    assert rig.ends().index("a") < rig.ends().index("b")
    assert rig.tokens("r0") == output_of(rig.requests["r0"])


def test_readers_do_not_shorten_the_chunks_of_those_who_are_not_back() -> None:
    """A chunk beside readers is small; it is not, as long as somebody who read before waits."""
    rig = Rig(make_config(first_chunk_tokens=64, prefix_reuse="off", num_slots=2), [(0.008, 0.001)] * 2)
    for name, length in (("a", 10), ("b", 200)):
        rig.add(make_request(name, length, 40))
    rig.rounds(lambda: len(rig.tokens("b")) > 8)
    rig.replace_stages()
    sizes = []
    had = len(rig.tokens("b"))
    while len(rig.tokens("b")) == had:
        if (plan := rig.try_step()) is not None:
            sizes.append(plan.num_tokens)
        else:
            rig.answer()
    assert len(sizes) < 12, sizes
    assert len(rig.tokens("a")) > 10 - 2, "the reader that is back reads on meanwhile"
