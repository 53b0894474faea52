"""An emulated cluster on one Linux machine: nodes in network namespaces, links with any rate and delay."""

from benchmarks.lab.check import PathReport, check, check_path, complaints
from benchmarks.lab.cluster import Lab, Node, unavailable
from benchmarks.lab.shapes import LabError, Link, NodeConfig, SwitchLoad, Traffic

__all__ = [
    "Lab",
    "LabError",
    "Link",
    "Node",
    "NodeConfig",
    "PathReport",
    "SwitchLoad",
    "Traffic",
    "check",
    "check_path",
    "complaints",
    "unavailable",
]
