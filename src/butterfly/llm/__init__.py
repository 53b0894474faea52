"""The Python face: a model over local workers as an object that answers.

Promises
    Wrong options, prompts and parameters are refused before anything runs, by name. Results come in the order of
    the prompts. The same seed gives the same tokens as the HTTP API. A request that nobody waits for any more is
    aborted. However the program ends, no process stays behind.
Must not know
    HTTP, the command line. `embedded` gives it a cluster, `api` turns tokens into text.
The life of a call
    `prompts` (text, token ids, conversations) and `params` become a `requests.Job`: one engine request for each
    answer. `answers.Answer` turns outputs into pieces and a completion. `batch` runs many on the loop of an
    `engine.EngineThread` for `sync.LLM`; `aio.AsyncLLM` runs them on the caller's own loop.
A one-hour change, a new sampling parameter
    A field of `params.SamplingParams`, its line in `sampling_spec` or `requests.make_job`, a row in
    tests/unit/llm/test_params.py.
"""

from butterfly.llm.aio import AsyncLLM
from butterfly.llm.params import SamplingParams
from butterfly.llm.results import BatchError, Completion, Generation, Logprob, Piece
from butterfly.llm.sync import LLM

__all__ = ["AsyncLLM", "BatchError", "Completion", "Generation", "LLM", "Logprob", "Piece", "SamplingParams"]
