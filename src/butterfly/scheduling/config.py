"""What a scheduler may use. Made once, from the plan and the options, and never changed."""

from __future__ import annotations

from butterfly.errors import ConfigError
from butterfly.specs import Spec


class SchedulerConfig(Spec, frozen=True):
    """The budget of one scheduler. Raises ConfigError for a figure below 1."""

    num_slots: int  # steps that may be in flight: the number of stages; 1 is the plain loop
    max_num_sequences: int  # sequences that hold KV cache at once, over all slots
    kv_capacity_tokens: int  # what every stage can hold; rounded down to whole blocks
    max_context: int  # tokens of one request, prompt and output together
    max_waiting_tokens: int  # prompt tokens that may queue before requests are refused
    max_num_batched_tokens: int = 512  # tokens of one step, over all its sequences
    block_size: int = 16  # tokens: the unit of KV accounting
    retry_after_s: float = 1.0  # what a refused client is told; the scheduler has no clock to know better

    @property
    def num_blocks(self) -> int:
        return self.kv_capacity_tokens // self.block_size

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ConfigError(f"scheduler option {name} must be positive, not {getattr(self, name)}")
        if self.num_blocks == 0:
            raise ConfigError(
                f"KV cache of {self.kv_capacity_tokens} tokens is smaller than one block of {self.block_size}"
            )
