"""Which node of a Ray cluster a worker goes to."""

from __future__ import annotations

import pytest

from butterfly.cluster.ray_places import Places
from butterfly.cluster.ray_words import RayNode
from butterfly.errors import LaunchError


def node(number: int, num_cpus: float = 4, num_gpus: float = 0, life: int = 0) -> RayNode:
    return RayNode(node_id=f"id-{number}-{life}", host=f"10.0.0.{number}", num_cpus=num_cpus, num_gpus=num_gpus)


def places_of(*nodes: RayNode, workers_per_node: int = 1) -> Places:
    places = Places(workers_per_node)
    places.see(nodes)
    return places


def test_workers_go_to_the_largest_node_first_and_each_gets_all_of_one() -> None:
    places = places_of(node(1), node(2, num_cpus=16), node(3))
    taken = [places.take(f"w{number}") for number in range(3)]
    assert [(place.node.host, place.num_cpus, place.num_gpus) for place in taken] == [
        ("10.0.0.2", 16, 0),
        ("10.0.0.1", 4, 0),
        ("10.0.0.3", 4, 0),
    ]
    assert places.num_free() == 0


def test_a_node_holds_a_worker_for_each_gpu_or_as_many_as_asked_for() -> None:
    places = places_of(node(1, num_cpus=9, num_gpus=2), node(2, num_cpus=3), workers_per_node=4)
    assert places.num_free() == 6
    taken = [places.take(f"w{number}") for number in range(6)]
    assert sorted((place.node.host, place.num_cpus, place.num_gpus) for place in taken) == [
        *[("10.0.0.1", 4, 1)] * 2,
        *[("10.0.0.2", 0.75, 0)] * 4,
    ]


def test_a_node_without_cpus_for_ray_is_kept_free() -> None:
    places = places_of(node(1, num_cpus=0), node(2))
    assert places.num_free() == 1
    assert places.take("w0").node == node(2)


def test_no_place_is_an_error_with_what_there_is() -> None:
    places = places_of(node(1))
    places.take("w0")
    with pytest.raises(
        LaunchError, match=r"no place for worker w1 \(places: 1 on 10\.0\.0\.1; workers: w0 on 10\.0\.0\.1\)"
    ):
        places.take("w1")
    with pytest.raises(LaunchError, match=r"no place for worker w0 \(places: it has no nodes; workers: none\)"):
        Places().take("w0")


def test_a_worker_comes_back_to_where_it_was() -> None:
    places = places_of(node(1), node(2), node(3))
    homes = {name: places.take(name).node for name in ("w0", "w1")}
    assert places.num_free() == 1  # not that of a worker that may have ended
    assert places.take("w1").node == homes["w1"]
    assert places.take("w2").node == node(3)


def test_a_node_that_comes_back_gets_its_worker_back() -> None:
    places = places_of(node(1), node(2))
    places.take("w0")
    places.take("w1")
    places.see([node(1)])
    with pytest.raises(LaunchError):
        places.take("w1")
    places.see([node(1), node(2, life=1), node(3, num_cpus=64)])
    assert places.num_free() == 1
    assert places.take("w1").node == node(2, life=1)


def test_a_worker_whose_node_is_gone_goes_to_another() -> None:
    places = places_of(node(1), node(2))
    places.take("w0")
    places.see([node(2)])
    assert places.num_free() == 0  # it is for w0
    assert places.take("w0").node == node(2)


def test_the_place_of_a_worker_that_was_told_to_end_stays_empty_until_its_node_is_gone() -> None:
    places = places_of(node(1), node(2))
    places.take("w0")
    places.take("w1")
    places.retire("w1")
    assert places.num_free() == 0
    with pytest.raises(LaunchError):
        places.take("w2")
    places.see([node(1)])
    assert places.num_free() == 0
    places.see([node(1), node(3)])
    assert places.num_free() == 1
    assert places.take("w2").node == node(3)


def test_a_worker_that_was_told_to_end_may_come_back() -> None:
    places = places_of(node(1))
    places.take("w0")
    places.retire("w0")
    assert places.take("w0").node == node(1)
    places.see([])
    places.see([node(2)])
    assert places.num_free() == 0  # it is for w0


def test_two_nodes_of_one_host_are_two() -> None:
    twin = RayNode(node_id="twin", host=node(1).host, num_cpus=4, num_gpus=0)
    places = places_of(node(1), twin)
    assert {places.take("w0").node.node_id, places.take("w1").node.node_id} == {"twin", node(1).node_id}
