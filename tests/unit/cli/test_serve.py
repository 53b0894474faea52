"""What `butterfly serve` refuses before it opens a model, and what it hands on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
import trustme
import typer

from butterfly.api import ApiKeys, BoundPort, ServedModel
from butterfly.cli.main import app
from butterfly.cli.options import parse_listen, split_prefixes
from butterfly.cli.serve import announce, check_reach, serve, tls_files, warn_of_eavesdroppers
from butterfly.config import ClusterConfig
from butterfly.errors import CommunicationError, ConfigError, LaunchError
from butterfly.specs import ClusterStatus, Plan
from tests.unit.api.doubles import ByteTokenizer

KEY = "sk-ada-0123456789"


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUTTERFLY_API_KEY", raising=False)


def _serve(*arguments: str) -> None:
    app(["serve", "no-such-model.gguf", "--port", "0", *arguments], standalone_mode=False)


# ------------------------------------------------------------------------------- who may be let in


@pytest.mark.parametrize(
    ("host", "has_keys", "no_key_needed", "problem"),
    [
        ("127.0.0.1", False, False, None),
        ("localhost", False, False, None),
        ("0.0.0.0", True, False, None),
        ("0.0.0.0", False, True, None),
        ("127.0.0.1", False, True, None),
        ("0.0.0.0", False, False, "other machines can reach --host 0.0.0.0, .* give --api-key-file, or --no-api-key"),
        ("", False, False, "other machines can reach --host '', "),
        ("0.0.0.0", True, True, "there are API keys, and --no-api-key: leave out one of them"),
    ],
)
def test_beyond_loopback_a_key_is_wanted(host: str, has_keys: bool, no_key_needed: bool, problem: str | None) -> None:
    keys = ApiKeys({"ada": KEY}) if has_keys else None
    with closing(BoundPort(host, 0)) as bound:
        if problem is None:
            check_reach(bound, keys, no_key_needed=no_key_needed)
            return
        with pytest.raises(ConfigError, match=problem):
            check_reach(bound, keys, no_key_needed=no_key_needed)


def test_the_command_refuses_before_it_looks_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = tmp_path / "keys"
    public.write_text(KEY)
    public.chmod(0o644)
    with pytest.raises(ConfigError, match="other machines can reach"):
        _serve("--host", "0.0.0.0")
    with pytest.raises(ConfigError, match="chmod 600"):
        _serve("--api-key-file", str(public))
    with pytest.raises(ConfigError, match="--api-key number 1: a key has at least 8 characters"):
        _serve("--api-key", "short")
    with pytest.raises(ConfigError, match="--ssl-certfile and --ssl-keyfile belong together"):
        _serve("--ssl-certfile", str(public))
    monkeypatch.setenv("BUTTERFLY_API_KEY", KEY)
    with pytest.raises(ConfigError, match="leave out one of them"):
        _serve("--no-api-key")


def test_a_certificate_comes_with_its_key(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    file = tmp_path / "both.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(file)

    assert tls_files(None, None) is None
    assert tls_files(file, file) is not None
    for pair in ((file, None), (None, file)):
        with pytest.raises(ConfigError, match="belong together: give both, or neither"):
            tls_files(*pair)


# ---------------------------------------------------------------------------------- what is handed on


def test_options_reach_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[ClusterConfig] = []

    @contextmanager
    def no_cluster(config: ClusterConfig, watching: object) -> Iterator[None]:
        configs.append(config)
        raise LaunchError("enough")
        yield

    monkeypatch.setattr("butterfly.cli.serve.embedded_cluster", no_cluster)
    options = ("--kv-tokens", "9000", "--prefix-reuse", "prompt", "--max-batched-tokens", "64", "--target-ttft", "1.5")
    for arguments in ((), (*options, "--host", "0.0.0.0", "--api-key", KEY)):
        with pytest.raises(LaunchError, match="enough"):
            _serve(*arguments)

    default, chosen = configs
    assert default == ClusterConfig(model="no-such-model.gguf")
    assert chosen == msgspec.structs.replace(
        default, kv_tokens=9000, prefix_reuse="prompt", max_num_batched_tokens=64, target_ttft_s=1.5
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--workers", "-1"),
        ("--prefix-reuse", "some"),
        ("--kv-tokens", "-1"),
        ("--request-timeout", "-1"),
        ("--max-batched-tokens", "0"),
    ],
)
def test_wrong_values_are_wrong_usage(option: str, value: str) -> None:
    with pytest.raises(typer.TyperException) as refused:
        _serve(option, value)
    assert option in refused.value.format_message()


def test_the_line_to_try_names_the_key_but_does_not_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(stages=(), predicted_tpot_s=0.1, bound_tpot_s=0.1, binding="memory", kv_capacity_tokens=1)
    status = ClusterStatus(phase="ready", epoch=1, model="tiny", workers=(), plan=plan)
    served = ServedModel(id="tiny", tokenizer=ByteTokenizer(), max_context=8)

    announce(status, served, "https://127.0.0.1:8000", wants_key=True)
    announce(status, served, "http://127.0.0.1:8000", wants_key=False)

    _, with_key, *_, without_key = [line for line in capsys.readouterr().out.splitlines() if "127.0.0.1:8000" in line]
    assert with_key.lstrip().startswith(
        'curl https://127.0.0.1:8000/v1/completions -H "Authorization: Bearer $BUTTERFLY_API_KEY" -H '
    )
    assert "Authorization" not in without_key


def test_who_can_listen_in_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with closing(BoundPort(host, 0)) as bound:
            warn_of_eavesdroppers(bound, None)

    [note] = capsys.readouterr().out.splitlines()
    assert "travel unencrypted" in note


def test_the_command_does_not_grow_by_accident() -> None:
    single = typer.Typer(add_completion=False)
    single.command()(serve)
    parameters = typer.main.get_command(single).params

    assert len([parameter for parameter in parameters if parameter.param_type_name == "option"]) <= 37
    assert all(getattr(parameter, "help", None) for parameter in parameters)


def test_with_ray_every_node_gets_a_worker_unless_a_number_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[ClusterConfig] = []

    @contextmanager
    def no_cluster(config: ClusterConfig, watching: object) -> Iterator[None]:
        configs.append(config)
        raise LaunchError("enough")
        yield

    monkeypatch.setattr("butterfly.cli.serve.embedded_cluster", no_cluster)
    for words in ((), ("--workers", "0"), ("--workers", "2"), ("--workers", "0", "--all-workers")):
        with pytest.raises(LaunchError, match="enough"):
            _serve("--ray", "127.0.0.1:6379", *words)
    assert [config.num_workers for config in configs] == [0, 0, 2, 0]
    assert [config.fills_places for config in configs] == [True, True, False, True]
    assert [config.constraints.use_all for config in configs] == [False, False, True, True]
    assert {(config.ray_address, config.listen_host) for config in configs} == {("127.0.0.1:6379", "127.0.0.1")}


def test_an_address_of_ray_is_checked_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'ray://there' is no address; write HOST:PORT"):
        _serve("--ray", "ray://there")
    with pytest.raises(ConfigError, match="--ray auto does not say where the nodes are: add --listen HOST"):
        _serve("--ray", "auto")

    def no_way(endpoint: str) -> str:
        raise CommunicationError(f"there is no way from here to {endpoint}")

    monkeypatch.setattr("butterfly.cli.options.local_host_towards", no_way)
    with pytest.raises(ConfigError, match=r"--ray 10\.0\.0\.1:6379: there is no way from here"):
        _serve("--ray", "10.0.0.1:6379")


@pytest.mark.parametrize(
    ("text", "ray", "address"),
    [
        ("", "", ("127.0.0.1", 0)),
        ("", "127.0.0.1:6379", ("127.0.0.1", 0)),
        ("10.0.0.5", "auto", ("10.0.0.5", 0)),
        ("10.0.0.5:7700", "127.0.0.1:6379", ("10.0.0.5", 7700)),
        ("::1", "", ("::1", 0)),
    ],
)
def test_where_workers_reach_the_server(text: str, ray: str, address: tuple[str, int]) -> None:
    assert parse_listen(text, discoverable=False, ray=ray) == address


def test_words_before_a_worker_are_split_as_a_shell_does() -> None:
    assert split_prefixes(None) == ()
    assert split_prefixes(["taskset -c 0", "ssh 'big box'"]) == (("taskset", "-c", "0"), ("ssh", "big box"))
    with pytest.raises(ConfigError, match="--start-with"):
        split_prefixes(["an 'open quote"])
