"""A whole cluster behind one process: a model opened, workers started (here, or by Ray), a coordinator running.

Promises: wrong options, models and plans are refused before any process is started; however the block ends, no
process and no thread is left; who watches hears how the cluster comes up (`StartWatcher`).

Must not know: terminals, commands, prompts, text. `cli` and `llm` work with what it yields.

A one-hour change: a new option of a run is a field of `config.ClusterConfig` and a line of
`building.coordinator_config` or `building.worker_command`. Another way to start workers: `workforce.open_launcher`.
"""

from butterfly.embedded.cluster import EmbeddedCluster, embedded_cluster
from butterfly.embedded.watching import StartWatcher, Watching, unwatched

__all__ = ["EmbeddedCluster", "StartWatcher", "Watching", "embedded_cluster", "unwatched"]
