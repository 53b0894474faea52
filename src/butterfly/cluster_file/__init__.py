"""A cluster as a file that people write, and that a running cluster is exported to: `cluster.toml` <-> ClusterSpec.

    [cluster]
    coordinator = "laptop"              # a node or a site: where the coordinator runs

    [defaults]                          # of every pair that nothing below speaks of
    latency = "20ms"
    bandwidth = "50Mb/s"                # b: bits, B: bytes

    [[sites]]                           # links inside a site
    name = "home"
    latency = "0.2ms"
    bandwidth = "1Gb/s"

    [[nodes]]
    name = "laptop"
    memory = "16GB"                     # for weights, KV cache and activations; GB is 10^9 bytes, GiB 2^30
    memory_bandwidth = "40GB/s"
    flops = "800G"                      # per second, of matrix products; optional, as are device and site
    device = "cpu"
    site = "home"

    [[links]]                           # from and to: nodes, sites, or "coordinator"
    from = "home"
    to = "office"
    latency = "12ms"
    bandwidth = "40Mb/s"                # and with a second entry the other way, that way

    [[links.codecs]]                    # optional, also of sites and defaults: what hidden states may be sent in
    name = "int8"                       # without harm to the answers, which is yours to promise
    ratio = 0.53                        # encoded bytes / plain bytes
    encode_s_per_byte = 2e-10           # of plain bytes
    decode_s_per_byte = 1e-10

Promises
- What an entry says of a pair holds for both directions, unless an entry speaks of the other one. The more specific
  entry wins: a node's name before the node that the coordinator runs on, and that before a site; of equally specific
  ones the one in this direction, then the first.
- A pair of which nothing is said gets no link, and a link between two nodes by name is not repeated for the way back:
  in a ClusterSpec a missing pair is as its other direction, or else the planner's default, one machine.
- `parse_cluster(dump_cluster(cluster)) == cluster`, measured profiles included, for every cluster that has nodes, whose
  names are not empty and none twice, whose links join these nodes or the coordinator and none is there twice, and whose
  figures are finite, no time negative and no rate 0.
- Errors are ConfigError: one line with the file and the key; an unknown key names the nearest known one.

Must not know: torch, the planner, processes.

The one-hour change, another unit: a row in `units`, and one in tests/unit/test_cluster_file.py.
"""

from butterfly.cluster_file.reading import parse_cluster, read_cluster
from butterfly.cluster_file.writing import dump_cluster, write_cluster

__all__ = ["dump_cluster", "parse_cluster", "read_cluster", "write_cluster"]
