"""What Ray's long errors become."""

from __future__ import annotations

import pytest

from butterfly.cluster.ray_driver import in_short


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            "The actor died because of an error raised in its creation task:\n  File ...\n"
            "ModuleNotFoundError: No module named 'butterfly'",
            "Butterfly is not installed for the Python of the Ray node h1",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: WorkerKeeper\n"
            "The actor died because its node has died. Node Id: 0123. the actor's node was terminated unexpectedly",
            "Ray lost its node h1",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\tpid: 1\nWorker exit type: SYSTEM_ERROR",
            "the Ray actor on h1 that held it died",
        ),
        (
            "\x1b[36mray::WorkerKeeper.begin()\x1b[39m\n  LaunchError: no\n",
            "Ray on h1: ray::WorkerKeeper.begin() LaunchError: no",
        ),
    ],
)
def test_an_error_of_ray_is_one_line_about_a_node(text: str, short: str) -> None:
    assert in_short(text, "h1") == short


def test_only_the_end_of_a_long_error_is_told() -> None:
    told = in_short("many words " * 1000 + "and the reason", "h1")
    assert told.endswith("and the reason")
    assert len(told) < 400
