"""The OpenAPI document: valid, complete, and consistent with the service's responses; and Swagger UI."""

import re
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from service.app import routes
from service.problems import KINDS
from service.settings import Settings
from tests.http.requests import payload, post


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    response = client.get("/api/openapi.json")
    assert response.headers["content-type"] == "application/json"
    parsed: dict[str, Any] = response.json()
    return parsed


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema | {"components": document["components"]})


def contents(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The `content` objects of all request and response bodies."""
    found = []
    for path in document["paths"].values():
        for operation in path.values():
            bodies = [operation.get("requestBody", {"content": {}}), *operation["responses"].values()]
            found += [content for body in bodies for content in body.get("content", {}).values()]
    return found


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_every_route_except_the_documents_is_documented(document: dict[str, Any]) -> None:
    documented = {route.path for route in routes(Settings()) if not re.match("/api/(docs|openapi)", route.path)}
    assert documented == document["paths"].keys()


def test_generators_of_clients_find_what_they_need(document: dict[str, Any]) -> None:
    """Names for modules and functions, and types: an enum without one becomes an object."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(len(operation["tags"]) == 1 for operation in operations)
    for name, schema in document["components"]["schemas"].items():
        for member in schema["properties"].values():
            assert {"type", "$ref", "anyOf"} & member.keys(), name


def test_every_problem_code_has_an_example_that_matches_the_schema(document: dict[str, Any]) -> None:
    examples = document["components"]["examples"]
    assert examples.keys() == KINDS.keys()
    schema = validator(document, {"$ref": "#/components/schemas/Problem"})
    for code, example in examples.items():
        schema.validate(example["value"])
        assert example["value"]["code"] == code


def test_all_examples_match_their_schemas(document: dict[str, Any]) -> None:
    checked = 0
    for content in contents(document):
        for example in content.get("examples", {}).values():
            reference = example.get("$ref", "").rpartition("/")[2]
            value = document["components"]["examples"][reference]["value"] if reference else example["value"]
            validator(document, content["schema"]).validate(value)
            checked += 1
    assert checked > 20


def test_responses_match_the_document(client: httpx.Client, document: dict[str, Any], organisation: str) -> None:
    responses = [
        post(client, organisation),
        post(client, organisation),
        post(client, organisation, id="a-2"),
        post(client, organisation, id=5, start=None),
        post(client, organisation, id="first", start="0001-01-01", end="0001-01-01 00:00:00.000001"),
        post(client, organisation, id="last", start="9999-12-31", end="9999-12-31T23:59:59.9999999Z", cancelled=True),
        client.get("/api/appointments", params={"org": organisation, "includeCancelled": "true"}),
        post(client, organisation, start="2020-10-11"),
        client.get("/api/appointments", params={"org": organisation}),
        client.get("/api/appointments?at=x"),
        client.post("/api/appointments/batch", json=[payload(organisation, id=name) for name in ("a-1", "a-3", " ")]),
        client.post("/api/appointments/batch", json={}),
        client.get("/api/appointments/versions", params={"org": organisation, "id": "a-1"}),
        client.get("/api/appointments/versions"),
        client.get("/api/appointments/changes", params={"org": organisation}),
        client.get("/api/appointments/changes?after=-1"),
        client.get("/api/availability", params={"org": organisation, "from": "2020-10-10", "to": "2020-10-11"}),
        client.get("/api/availability?from=2020-10-10&to=2020-10-10"),
        client.get("/livez"),
        client.get("/readyz"),
    ]
    for response in responses:
        operation = document["paths"][response.request.url.path][response.request.method.lower()]
        documented = operation["responses"][str(response.status_code)]
        content = documented["content"][response.headers["content-type"]]
        validator(document, content["schema"]).validate(response.json())
        for name in documented["headers"].keys() - {"Link"}:  # which is sent only if there is another page
            assert name in response.headers


def test_the_request_examples_are_accepted(client: httpx.Client, document: dict[str, Any]) -> None:
    body = document["paths"]["/api/appointments"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        response = client.post("/api/appointments", json=example["value"])
        assert response.status_code == 200
        assert response.json() in ({"status": "ok"}, {"status": "ignored-stale"})
    validator(document, body["schema"]).validate(payload(None))


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/api/docs", "text/html; charset=utf-8"),
        ("/api/docs/swagger-ui.css", "text/css; charset=utf-8"),
        ("/api/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("/api/docs/favicon-32x32.png", "image/png"),
    ],
)
def test_the_docs_page_and_its_assets_are_served_locally(client: httpx.Client, path: str, media_type: str) -> None:
    response = client.get(path, headers={"Range": "bytes=x"})
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    if media_type.startswith("text/html"):
        addresses = re.findall(r'(?:src=|href=|url: )"(.+?)"', response.text)
        assert len(addresses) == 4
        for address in addresses:  # a proxy may have stripped a prefix
            assert client.get(urljoin(path, address)).status_code == 200
            assert urljoin("/prefix" + path, address).startswith("/prefix/api/")
