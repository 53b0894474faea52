"""Some layers are lost: sequences go on as who they were, and only those layers compute them again."""

from __future__ import annotations

from tests.unit.scheduling.rig import LOST, Rig, make_config, make_request, output_of

CHUNK = 8


def reading(*prompts: int, **options: object) -> Rig:
    """Requests with prompts of so many tokens have some tokens each."""
    rig = Rig(make_config(**{"first_chunk_tokens": CHUNK, "prefix_reuse": "off", **options}))
    for number, length in enumerate(prompts):
        rig.add(make_request(f"r{number}", length, 30))
    rig.rounds(lambda: all(len(rig.tokens(f"r{number}")) > 2 for number in range(len(prompts))))
    return rig


def test_cached_tokens_are_sent_once_more_and_then_it_goes_on() -> None:
    rig = reading(10)
    cached = len(rig.engine.caches[1]) - 1  # without the step under way
    rig.replace_a_stage()
    assert rig.scheduler.counts.num_running == 1
    sent = 0
    while sent < cached:
        plan = rig.step()
        assert plan.refill == LOST
        assert [(part.sequence_id, part.start) for part in plan.sequences] == [(1, sent)]
        sent += plan.num_tokens
        assert rig.answer() == []
    plan = rig.step()
    assert plan.refill is None
    assert rig.shapes(plan) == [(1, cached, 1)]
    rig.run_until_idle()
    assert rig.tokens("r0") == output_of(rig.requests["r0"])


def test_what_had_nothing_cached_begins_anew() -> None:
    rig = Rig(make_config(first_chunk_tokens=CHUNK, prefix_reuse="off"))
    rig.add(make_request("a", 4, 5))
    rig.step()
    rig.scheduler.hold()
    assert rig.scheduler.kept_for(rig.config) == ()
    rig.engine.restart()
    rig.scheduler.resume(rig.config, None)
    assert rig.step().sequences[0].sequence_id == 2
    rig.run_until_idle()


def test_what_has_no_room_under_the_new_plan_is_not_kept() -> None:
    rig = reading(40, 40, max_context=256)
    rig.scheduler.hold()
    assert [kept.sequence_id for kept in rig.scheduler.kept_for(rig.config)] == [1, 2]
    assert rig.scheduler.kept_for(make_config(kv_capacity_tokens=64)) == ()
    assert rig.scheduler.kept_for(make_config(max_num_sequences=1)) == ()


def test_a_prompt_that_was_half_done_goes_on_behind_its_half() -> None:
    rig = reading(4)
    rig.add(make_request("long", 60, 3))
    rig.rounds(lambda: len(rig.engine.caches.get(2, ())) > 20)
    rig.replace_a_stage()
    kept = len(rig.engine.caches[2])
    assert 0 < kept < 60
    rig.run_until_idle()
    assert rig.tokens("long") == output_of(rig.requests["long"])


def test_readers_who_are_back_read_on_between_the_refills() -> None:
    rig = reading(4, 100)
    rig.replace_a_stage()
    kinds = []
    had = len(rig.tokens("r1"))
    while len(rig.tokens("r1")) == had:
        kinds.append(rig.round().refill is not None)
    assert kinds[0]
    back = kinds.index(False)
    assert not any(first and second for first, second in zip(kinds[back:], kinds[back + 1 :], strict=False))


def test_another_loss_before_all_is_back_keeps_who_is() -> None:
    rig = reading(4, 100)
    rig.replace_a_stage()
    had = len(rig.tokens("r0"))
    while len(rig.tokens("r0")) == had:
        rig.round()
    rig.scheduler.hold()
    kept = rig.scheduler.kept_for(rig.config)
    assert [sequence.sequence_id for sequence in kept] == [1], "the other one was half refilled"
    rig.engine.move(kept, LOST)
    rig.scheduler.resume(rig.config, LOST)
    rig.run_until_idle()
    assert rig.ends() == ["r0", "r1"]


def test_who_leaves_while_being_refilled_is_released_and_of_no_use_to_others() -> None:
    rig = reading(64, prefix_reuse="all")
    rig.replace_a_stage()
    rig.step()
    rig.scheduler.abort("r0")
    rig.answer()
    rig.add(make_request("next", prompt=[*rig.requests["r0"].prompt_token_ids, 5], max_tokens=2))
    rig.run_until_idle()
    assert not rig.engine.adoptions
    assert rig.scheduler.counts.kept_tokens > 0


def test_who_leaves_while_the_cluster_moves_is_released() -> None:
    rig = reading(64, 30)
    rig.scheduler.hold()
    kept = rig.scheduler.kept_for(rig.config)
    assert [sequence.sequence_id for sequence in kept] == [1, 2]
    rig.engine.move(kept, LOST)
    rig.scheduler.abort("r0")
    rig.scheduler.resume(rig.config, LOST)
    rig.run_until_idle()
    assert rig.end("r0").finish_reason == "abort"
    assert rig.tokens("r1") == output_of(rig.requests["r1"])


def test_what_is_adopted_but_not_proven_to_be_everywhere_begins_anew() -> None:
    """An adoption that no step carried yet, and one in a step that is lost."""
    rig = reading(64, prefix_reuse="all", max_num_batched_tokens=20)
    prompt = rig.requests["r0"].prompt_token_ids
    rig.add(make_request("sent", prompt=[*prompt, 3], max_tokens=4))
    rig.add(make_request("unsent", prompt=[*prompt, 4], max_tokens=4))
    rig.rounds(lambda: any(adoption.sequence_id == 2 for adoption in rig.engine.adoptions))
    assert rig.scheduler.counts.num_running == 3
    rig.scheduler.hold()
    assert [kept.sequence_id for kept in rig.scheduler.kept_for(rig.config)] == [1]
    rig.engine.move(rig.scheduler.kept_for(rig.config), LOST)
    rig.scheduler.resume(rig.config, LOST)
    rig.run_until_idle()
    assert rig.tokens("sent") == output_of(rig.requests["sent"])
    assert rig.tokens("unsent") == output_of(rig.requests["unsent"])
