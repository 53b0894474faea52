"""Running sequences and the KV room they share with kept ones: admission, growth, preemption, prefix reuse.

Every block is free, owned by a running sequence, or owned by a kept one, which goes as soon as a running one needs
the room. What the stages must hear of (releases, adoptions) is collected here and taken along by the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec.structs import replace

from butterfly.scheduling import policy
from butterfly.scheduling.config import SchedulerConfig
from butterfly.scheduling.kv_blocks import BlockPool, require
from butterfly.scheduling.prefix_cache import PrefixCache, PrefixMatch
from butterfly.scheduling.request_state import RequestState, Sequence
from butterfly.specs import Adoption

_FIRST_EXPECTATION = 128.0  # output tokens, until requests have ended
_MEMORY = 0.9  # share of the old expectation that each ended request leaves


class RunningSequences:
    """Who holds which part of the KV cache. `requeue` is told of every request that is preempted."""

    def __init__(self, config: SchedulerConfig, requeue: Callable[[RequestState], None]) -> None:
        self._config = config
        self._requeue = requeue
        self._pool = BlockPool(config.num_blocks, config.block_size)
        self._prefixes = PrefixCache(config.block_size)
        self._sequences: dict[int, Sequence] = {}  # in the order of admission
        self._released: list[int] = []
        self._adopted: list[Adoption] = []
        self._next_sequence_id = 1
        self._expected_output = _FIRST_EXPECTATION
        self.num_preemptions = 0
        self.yielding: Sequence | None = None  # is to be preempted as soon as its steps are back: it gets no more

    # ------------------------------------------------------------------------------- questions

    def __len__(self) -> int:
        return len(self._sequences)

    def all(self) -> list[Sequence]:
        """Running sequences in the order of admission."""
        return list(self._sequences.values())

    def of(self, state: RequestState) -> Sequence | None:
        return next((sequence for sequence in self._sequences.values() if sequence.state is state), None)

    def holds(self, sequence: Sequence) -> bool:
        return self._sequences.get(sequence.sequence_id) is sequence

    def to_be_refilled(self) -> list[Sequence]:
        """Those with cached tokens that are still to be sent once more."""
        return [
            sequence
            for sequence in self._sequences.values()
            if sequence.num_unscheduled_refill_tokens > 0
            and sequence.state.finish_reason is None
            and sequence is not self.yielding
        ]

    @property
    def has_news(self) -> bool:
        """Whether the stages have still to hear of something."""
        return bool(self._released or self._adopted)

    @property
    def kept_tokens(self) -> int:
        return self._kept_blocks() * self._config.block_size

    @property
    def free_tokens(self) -> int:
        return self._pool.num_free * self._config.block_size

    # ------------------------------------------------------------------------------- admission

    def admit(self, state: RequestState) -> bool:
        """Start a sequence for a request if what it is expected to need fits; say whether it did.

        Running requests of lower priority make room, if that is enough. What is promised to others by
        expectation stays promised; a request that is alone always fits, as whoever queued it has checked.
        """
        entitled = [
            sequence
            for sequence in self._sequences.values()
            if sequence.state.request.priority <= state.request.priority
        ]
        if not self._fits(state, entitled):
            return False
        while not self._fits(state, self._sequences.values()):
            victim = policy.first_to_preempt(self._sequences.values())
            assert victim is not None, "an empty cluster takes any request"
            if victim.is_in_flight:
                self.yielding = victim
                return False
            self.preempt(victim)
        self._start(state)
        return True

    def _fits(self, state: RequestState, others: Collection[Sequence]) -> bool:
        """Whether a request fits beside `others`, if they were the only ones that run."""
        if len(others) >= self._config.max_num_sequences:
            return False
        if not others:
            return True
        reserved = sum(self._reserved_blocks(sequence) for sequence in others)
        return self._pool.blocks_for(self._expected_tokens(state)) <= self._config.num_blocks - reserved

    def _reserved_blocks(self, sequence: Sequence) -> int:
        """What a sequence has or is expected to need."""
        expected = self._pool.blocks_for(self._expected_tokens(sequence.state))
        return max(expected, self._pool.num_owned(sequence.sequence_id))

    def _expected_tokens(self, state: RequestState) -> int:
        """Tokens that a request will have in the KV cache when it ends, as far as one can know."""
        expected = max(int(self._expected_output), state.num_output_tokens + self._config.block_size)
        return state.num_prompt_tokens + min(state.max_tokens, expected)

    def _start(self, state: RequestState) -> None:
        sequence = Sequence(self._next_sequence_id, state)
        self._next_sequence_id += 1
        match = self._find_prefix(state)
        if match is not None:
            self._reuse(match, sequence)
            sequence.num_computed_tokens = match.num_tokens
            sequence.known_to_stages = True
        if not state.was_admitted:
            state.was_admitted = True
            state.num_cached_tokens = min(sequence.num_computed_tokens, state.num_prompt_tokens)
            state.num_charged_tokens = sequence.num_computed_tokens
        self._sequences[sequence.sequence_id] = sequence
        self._register(sequence)

    # ---------------------------------------------------------------------------- prefix reuse

    def _find_prefix(self, state: RequestState) -> PrefixMatch | None:
        if self._config.prefix_reuse == "off" or state.request.num_prompt_logprobs is not None:
            return None
        limit = state.num_tokens - 1  # the last token must be computed: its logits are what we want
        if self._config.prefix_reuse == "prompt":
            limit = min(limit, state.num_prompt_tokens)
        match = self._prefixes.find(state.tokens, limit)
        if match is None or match.is_kept or self._pool.blocks_for(match.num_tokens) <= self._pool.num_free:
            return match
        return None  # a running sequence can only be copied, and there is no room for that

    def _reuse(self, match: PrefixMatch, sequence: Sequence) -> None:
        needed = self._pool.blocks_for(sequence.state.num_tokens)
        size = self._config.block_size
        takes_over = match.is_kept and policy.takes_over(
            match.num_tokens, match.source_tokens, self._pool.num_free, needed, size
        )
        if takes_over:
            self._prefixes.forget(match.source_id)
            self._pool.hand_over(match.source_id, sequence.sequence_id, match.num_tokens)
        else:
            self._prefixes.use(match.source_id)
            self._pool.grow(sequence.sequence_id, match.num_tokens)
        self._adopted.append(
            Adoption(
                sequence_id=sequence.sequence_id,
                source_id=match.source_id,
                num_tokens=match.num_tokens,
                keeps_source=not takes_over,
            )
        )

    def _register(self, sequence: Sequence) -> None:
        """Let others find what this sequence has computed."""
        if self._config.prefix_reuse != "off" and not sequence.is_refilling:
            self._prefixes.extend(sequence.sequence_id, sequence.state.tokens, self._num_reusable(sequence))

    def _num_reusable(self, sequence: Sequence) -> int:
        """Return how many of its cached tokens others may start from."""
        if self._config.prefix_reuse == "prompt":
            return min(sequence.num_computed_tokens, sequence.state.num_prompt_tokens)
        return sequence.num_computed_tokens

    # ---------------------------------------------------------------------------------- growth

    def make_room(self, sequence: Sequence, num_tokens: int, untouchable: set[int]) -> bool:
        """Give a sequence room for `num_tokens` tokens in all; False when it must wait or was preempted itself.

        Kept sequences go first, then the newest of the lowest priority. One that is in flight, or in the batch
        that is being made (`untouchable`), is waited for.
        """
        while not self._pool.can_grow(sequence.sequence_id, num_tokens):
            kept = self._prefixes.oldest_kept()
            if kept is not None:
                self._release(kept)
                continue
            victim = policy.first_to_preempt(self._sequences.values())
            assert victim is not None, "the sequence itself runs"
            if victim.is_in_flight or victim.sequence_id in untouchable:
                return False
            self.preempt(victim)
            if victim is sequence:
                return False
        self._pool.grow(sequence.sequence_id, num_tokens)
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's KV cache; its request waits again, with the tokens it has."""
        self.num_preemptions += 1
        self.drop(sequence, keep=False)
        self._requeue(sequence.state)

    # ------------------------------------------------------------------------------------ ends

    def finish_step(self, sequence: Sequence, num_tokens: int, ready_order: int) -> None:
        """A step of this sequence came back."""
        sequence.finish_step(num_tokens)
        sequence.ready_order = ready_order
        self._register(sequence)

    def finish(self, sequence: Sequence) -> None:
        """The request has ended: keep its KV cache for the next one with the same beginning."""
        if sequence.state.finish_reason in ("stop", "length"):
            num_output = sequence.state.num_output_tokens
            self._expected_output = _MEMORY * self._expected_output + (1 - _MEMORY) * num_output
        self.drop(sequence, keep=self._config.prefix_reuse != "off")

    def drop(self, sequence: Sequence, *, keep: bool) -> None:
        """Take back what an admission holds; the stages hear of it with the next step."""
        sequence_id = sequence.sequence_id
        del self._sequences[sequence_id]
        is_of_use = self._num_reusable(sequence) >= self._config.block_size and not sequence.is_refilling
        if not keep or not is_of_use or not self._config.max_kept_sequences:
            self._release(sequence_id, known=sequence.known_to_stages)
            return
        for superfluous in self._prefixes.keep(sequence_id):
            self._release(superfluous)
        while self._prefixes.num_kept > self._config.max_kept_sequences:
            self._release(next(iter(self._prefixes.kept_ids())))

    def finish_refill(self, sequence: Sequence, num_tokens: int) -> None:
        """A step that computed cached tokens once more came back."""
        sequence.finish_refill(num_tokens)
        self._register(sequence)

    def hold(self) -> list[RequestState]:
        """Steps and some layers are lost. Sequences stay with what the other layers have, or begin anew.

        Returns the requests that do.
        """
        anew = []
        for sequence in self.all():
            has_ended = sequence.state.finish_reason is not None
            # Only a step of its own that came back proves that every stage has what it adopted.
            if has_ended or sequence.is_refilling or not sequence.ready_order:
                self.drop(sequence, keep=False)
                anew += [] if has_ended else [sequence.state]
            else:
                sequence.hold()
                self._prefixes.forget(sequence.sequence_id)
        for sequence_id in list(self._prefixes.kept_ids()):
            self._release(sequence_id)
        self.yielding = None
        self._forget_news()  # stages are told whom to keep instead
        return anew

    def fits(self, config: SchedulerConfig) -> bool:
        """Whether what sequences have in the KV cache has room under another plan."""
        num_blocks = sum(-(-sequence.num_computed_tokens // config.block_size) for sequence in self.all())
        return num_blocks <= config.num_blocks and len(self) <= config.max_num_sequences

    def move(self, config: SchedulerConfig) -> None:
        """Go on with other stages, which have heard of those who ran at `hold` and of no others."""
        require(not self._prefixes.num_kept, "kept sequences outlive their stages")
        self._config = config
        self._pool = BlockPool(config.num_blocks, config.block_size)
        for sequence in self.all():
            self._pool.grow(sequence.sequence_id, sequence.num_computed_tokens)

    def forget_all(self) -> None:
        """Drop every running and kept sequence: the stages start afresh, and so do the requests."""
        for sequence in self.all():
            self.drop(sequence, keep=False)
        for sequence_id in list(self._prefixes.kept_ids()):
            self._release(sequence_id)

    def start_afresh(self, config: SchedulerConfig) -> None:
        """Go on with other stages, which hold nothing and need hear of nothing. Nothing may run or be kept."""
        require(not self._sequences, "sequences outlive their stages")
        self.move(config)
        self._forget_news()

    def _forget_news(self) -> None:
        self._released.clear()
        self._adopted.clear()

    def _release(self, sequence_id: int, *, known: bool = True) -> None:
        self._prefixes.forget(sequence_id)
        self._pool.release(sequence_id)
        if known:
            self._tell_of_end(sequence_id)

    # ------------------------------------------------------------------------- for the stages

    def _tell_of_end(self, sequence_id: int) -> None:
        """Let the stages hear that a sequence is gone.

        Its room is free from now on, so no adoption that they have not heard of may hold on to it: the last one
        that copies from it takes it over, and one that would have made it does not happen.
        """
        heirs = [index for index, adoption in enumerate(self._adopted) if adoption.source_id == sequence_id]
        own = next((adoption for adoption in self._adopted if adoption.sequence_id == sequence_id), None)
        if heirs:
            self._adopted[heirs[-1]] = replace(self._adopted[heirs[-1]], keeps_source=False)
        elif own is None:
            self._released.append(sequence_id)
        else:
            self._adopted.remove(own)
            if not own.keeps_source:
                self._tell_of_end(own.source_id)

    def take_news(self) -> tuple[tuple[int, ...], tuple[Adoption, ...]]:
        """Return what the next step must tell: (released, adopted)."""
        released, adopted = tuple(self._released), tuple(self._adopted)
        self._released.clear()
        self._adopted.clear()
        return released, adopted

    def check(self) -> None:
        """Raise InvariantError unless the blocks balance and everything is registered where it should be."""
        kept = set(self._prefixes.kept_ids())
        require(not kept & set(self._sequences), "a sequence is kept while it runs")
        self._pool.check([*self._sequences, *kept])
        require(len(set(self._released)) == len(self._released), "a sequence is released twice")
        for sequence in self._sequences.values():
            room = self._pool.num_owned(sequence.sequence_id) * self._config.block_size
            name = f"sequence {sequence.sequence_id}"
            require(sequence.num_scheduled_tokens <= room, f"{name} has more tokens than room")

    def _kept_blocks(self) -> int:
        return sum(self._pool.num_owned(sequence_id) for sequence_id in self._prefixes.kept_ids())
