"""Requests read and write below the folders that the service was started with, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from search.errors import ConfigError
from search.service.roots import checked_model, confined
from tests.search.service.conftest import MakeClient

STUDIES = "/api/v1/studies"


@pytest.fixture
def root(tmp_path: Path, client: TestClient) -> Path:
    return (tmp_path / "root").resolve()


def _data(path: Path, n_lines: int = 40) -> None:
    lines = [json.dumps({"prompt": f"{number}?", "completion": " yes"}) for number in range(n_lines)]
    path.write_text("\n".join(lines))


SIZES = {"calibration_items": 8, "search_items": 4, "validation_items": 8, "test_items": 8}


def test_data_below_a_root_is_used_by_its_real_path(client: TestClient, root: Path) -> None:
    _data(root / "data.jsonl")
    (root / "link.jsonl").symlink_to(root / "data.jsonl")
    for number, given in enumerate((str(root / "data.jsonl"), "data.jsonl", "link.jsonl", "./x/../data.jsonl")):
        made = client.post(STUDIES, json={"name": f"s{number}", "data": given, **SIZES})
        assert made.status_code == 201, made.text
        assert made.json()["config"]["data"] == str(root / "data.jsonl")


def test_data_that_is_no_data_is_refused_before_there_is_a_study(client: TestClient, root: Path) -> None:
    (root / "data.jsonl").write_text("{}\n")
    refused = client.post(STUDIES, json={"name": "one", "data": "data.jsonl"})
    assert refused.status_code == 422 and "line 1" in refused.json()["detail"]
    _data(root / "data.jsonl", n_lines=2)
    assert client.post(STUDIES, json={"name": "one", "data": "data.jsonl"}).status_code == 422
    assert client.post(STUDIES, json={"name": "one", "data": "absent.jsonl"}).status_code == 422


@pytest.mark.parametrize("field", ["data", "model", "out"])
def test_everything_else_is_out_of_reach(client: TestClient, root: Path, field: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    _data(outside / "data.jsonl")
    (root / "up").symlink_to(outside)
    (root / "file").symlink_to(outside / "data.jsonl")
    (root / "loop").symlink_to(root / "loop")
    sibling = root.parent / "root-and-more"
    sibling.mkdir()
    tried = [
        "/etc/passwd",
        "/",
        "../outside",
        "up",
        "up/data.jsonl",
        "file",
        "loop",
        str(sibling),
        "~",
        "a\0b",
        "//etc",
    ]
    tried += [str(outside), f"{root}/../outside", "file:///etc/passwd", "sqlite:///x.db", "https://example.org/x"]
    for value in tried:
        refused = client.post(STUDIES, json={"name": "one", field: value})
        assert refused.status_code == 422 or not value.startswith(("/", "..", "up")), (value, refused.text)
        if refused.status_code == 201:
            # It lies below the root, under an odd name.
            assert Path(refused.json()["config"][field]).is_relative_to(root)
            client.delete(f"{STUDIES}/one")
    assert not list(outside.glob("report*"))


def test_whether_something_is_there_outside_is_not_said(client: TestClient, root: Path) -> None:
    details = [
        client.post(STUDIES, json={"name": "one", "data": path}).json()["detail"].replace(path, "PATH")
        for path in ("/etc/passwd", "/etc/absent")
    ]
    assert details[0] == details[1]


def test_results_never_overwrite_what_is_there(client: TestClient, root: Path) -> None:
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    for out in ("model", "model/config.json", ""):
        assert client.post(STUDIES, json={"name": "one", "out": out}).status_code == 422
    (root / "empty").mkdir()
    for number, out in enumerate(("empty", "new/deep")):
        made = client.post(STUDIES, json={"name": f"s{number}", "out": out})
        assert made.json()["config"]["out"] == str(root / out)


def test_without_a_root_there_is_the_demo_alone(make_client: MakeClient) -> None:
    client = make_client(roots=())
    for field in ("model", "data", "out"):
        refused = client.post(STUDIES, json={"name": "one", field: "/tmp"})
        assert refused.status_code == 422 and "without --root" in refused.json()["detail"]
    assert client.post(STUDIES, json={"name": "one", "model": "demo", "data": "demo"}).status_code == 201


def test_models_of_the_hub_are_named_only_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    roots = (tmp_path.resolve(),)
    assert checked_model("org/model-1", roots, hub=True) == "org/model-1"
    with pytest.raises(ConfigError, match="expected a directory"):
        checked_model("org/model-1", roots, hub=False)
    for odd in ("../x", "org/../x", "/etc", "a/b/c"):
        with pytest.raises(ConfigError):
            checked_model(odd, roots, hub=True)
    # A folder of that name would be loaded in its place.
    (tmp_path / "org" / "model-1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="in the way"):
        checked_model("org/model-1", roots, hub=True)


def test_a_relative_path_begins_at_any_root(tmp_path: Path) -> None:
    roots = tuple((tmp_path / name).resolve() for name in ("a", "b"))
    for root in roots:
        root.mkdir()
    (roots[1] / "x").write_text("")
    assert confined("data", "x", roots) == roots[1] / "x"
    assert confined("out", "y", roots) == roots[0] / "y"
