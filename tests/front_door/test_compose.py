"""compose.yaml, compose.citus.yaml and the Dockerfile, read as they stand: no probe may report ready too early."""

import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service import ROOT
from service.__main__ import parser
from service.settings import Settings


def read(name: str) -> dict[str, Any]:
    composed: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return composed


PLAIN, CITUS = read("compose.yaml"), read("compose.citus.yaml")
DATABASES = {"db": PLAIN} | dict.fromkeys(("coordinator", "worker-1", "worker-2"), CITUS)
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DATABASES)
def test_database_is_healthy_only_once_it_accepts_tcp_connections(name: str) -> None:
    """The image initialises a new database with a server that listens on a socket alone, and restarts it then."""
    database = DATABASES[name]["services"][name]
    kind, *command = database["healthcheck"]["test"]
    assert (kind, command[0]) == ("CMD", "pg_isready")
    assert "--host=127.0.0.1" in command
    environment = database["environment"]
    assert f"--username={environment['POSTGRES_USER']}" in command
    assert f"--dbname={environment['POSTGRES_DB']}" in command


def test_service_waits_for_a_healthy_database_and_is_healthy_once_it_is_ready() -> None:
    assert PLAIN["services"]["service"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    [probe] = re.findall(r"^HEALTHCHECK (?:.*\\\n)*.*", DOCKERFILE, re.MULTILINE)
    assert "/readyz" in probe


def test_on_citus_all_nodes_are_registered_and_the_tables_distributed_before_the_service_starts() -> None:
    services = CITUS["services"]
    done = {"condition": "service_completed_successfully"}
    assert services["service"]["depends_on"] == {"distribute": done}
    assert services["distribute"]["depends_on"] == {"register": done}
    nodes = [name for name in services if name in DATABASES]
    assert services["register"]["depends_on"] == {name: {"condition": "service_healthy"} for name in nodes}
    registered = re.findall(r"select citus_(\w+)\('([\w-]+)', 5432\)", "\n".join(services["register"]["command"]))
    calls = {"coordinator": "set_coordinator_host"} | dict.fromkeys(nodes[1:], "add_node")
    assert registered == [(calls[name], name) for name in nodes]


def test_on_citus_the_commands_and_addresses_exist() -> None:
    services = CITUS["services"]
    *python, module, package, command = services["distribute"]["command"]
    assert f'CMD ["{python[0]}", "{module}", "{package}", "serve"]' in DOCKERFILE
    assert parser().parse_args([command]).command == "distribute"
    for name in ("distribute", "service"):
        url = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", services[name]["environment"]["DATABASE_URL"])
        assert "@coordinator:5432/" in Settings(database_url=url).database_url


@pytest.mark.parametrize("composed", [PLAIN, CITUS], ids=["compose.yaml", "compose.citus.yaml"])
def test_ports_are_published_to_this_machine_only_and_volumes_are_declared(composed: dict[str, Any]) -> None:
    services = composed["services"].values()
    assert all(port.startswith("127.0.0.1:") for service in services for port in service.get("ports", ()))
    used = {volume.partition(":")[0] for service in services for volume in service.get("volumes", ())}
    assert used == composed["volumes"].keys()


def test_images_have_a_fixed_version() -> None:
    images = [
        service["image"] for each in (PLAIN, CITUS) for service in each["services"].values() if "image" in service
    ]
    assert all(re.fullmatch(r"[\w/]+:\d+(\.\d+)*", image) for image in images)
    assert len({image for image in images if "citus" in image}) == 1
