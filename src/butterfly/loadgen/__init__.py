"""The load generator: what an OpenAI-compatible server gives its clients, measured from outside.

Promises
    `run_load(spec, on_progress)` sends the requests of a `LoadSpec` and returns a `LoadReport`: JSON-able, with one
    record per request, so that every figure in it can be computed again. The same seed gives the same prompts and
    the same arrivals; without one a fresh seed is drawn, so that a second run finds nothing in a prefix cache.
    What a server does not take (`ignore_eos`, token ids, usage) is found out before the clock starts, done without,
    and said in the report's notes. A request that fails is counted with its reason. Only what makes the whole run
    senseless is an error (ConfigError): nobody answers, a refused key, a refused first request, a wrong spec.
    However a run ends, its connections are closed. One thread; no request waits for anything but its turn.
Must not know
    Which server it measures, and anything of Butterfly but errors and the base of the border nouns. No terminal.
The life of a run
    `first_contact` (which model, which `dialect`) -> warm-up -> `load` (closed loop, or open loop with `arrivals`)
    -> for each request `prompts`, `dialect.request_body`, `asking.ask` with `answers.AnswerReader` over `sse` and
    `chunks` -> `report.make_report`.
What the times mean
    A request starts when its bytes are handed to the connection (opening one counts) and its chunks arrive when they
    are read. TTFT ends with the first chunk that has output, E2E with the chunk that says why the output ended. TPOT
    is the time between these two by the number of tokens after the first. ITL are the gaps between chunks with
    output: a server that sends several tokens in a chunk, or tokens without text in none, has fewer of them.
The typical one-hour change, a new field of the request
    A field of `spec.LoadSpec` with its check, a line in `dialect.request_body`, an option in `cli.bench`.
"""

from butterfly.loadgen.load import run_load
from butterfly.loadgen.report import LoadReport, Quantiles
from butterfly.loadgen.spec import LoadSpec, RequestRecord

__all__ = ["LoadReport", "LoadSpec", "Quantiles", "RequestRecord", "run_load"]
