"""What a scheduler may use. Made once, from the plan and the options, and never changed."""

from __future__ import annotations

from butterfly.errors import ConfigError
from butterfly.specs import PrefixReuse, Spec


class SchedulerConfig(Spec, frozen=True):
    """The budget of one scheduler. Raises ConfigError for a figure out of range."""

    num_slots: int  # batches that alternate: the number of stages; 1 is the plain loop
    max_num_sequences: int  # sequences that run at once, over all slots
    kv_capacity_tokens: int  # what every stage can hold; rounded down to whole blocks
    max_context: int  # tokens of one request, prompt and output together
    max_waiting_tokens: int  # prompt tokens that may queue before requests are refused
    num_spare_slots: int = 0  # one more step than slots: it waits in front of the first stage, so none runs dry
    max_num_batched_tokens: int = 512  # tokens of one step, over all its sequences
    first_chunk_tokens: int = 64  # prompt tokens of one step, until stage times are known
    block_size: int = 16  # tokens: the unit of KV accounting
    prefix_reuse: PrefixReuse = "all"
    max_kept_sequences: int = 64  # finished sequences whose KV cache is kept, while there is room
    target_ttft_s: float = 60.0  # requests that would wait longer than this for their prefill are refused
    retry_after_s: float = 1.0  # what a refused client is told while no step has been measured

    @property
    def num_blocks(self) -> int:
        return self.kv_capacity_tokens // self.block_size

    @property
    def max_steps_in_flight(self) -> int:
        return self.num_slots + self.num_spare_slots

    def __post_init__(self) -> None:
        may_be_zero = {"num_spare_slots", "max_kept_sequences"}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str):
                continue
            if value < 0 or (value == 0 and name not in may_be_zero):
                raise ConfigError(f"scheduler option {name} must be positive, not {value}")
        if self.num_blocks == 0:
            raise ConfigError(
                f"KV cache of {self.kv_capacity_tokens} tokens is smaller than one block of {self.block_size}"
            )
