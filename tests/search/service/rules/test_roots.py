"""Requests read and write below the folders that the service was started with, and nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.service.rules.roots import Reach, check_reach, checked_data, checked_model, confined
from studies.service.service_store import ServiceStore
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


@pytest.mark.parametrize("field", ["model", "data", "out"])
def test_a_path_that_no_file_can_have_is_refused(client: TestClient, root: Path, field: str) -> None:
    # A name that is too long, a path that is, and one that is with the name of a file behind it.
    for value in ("a" * 300, f"{root}/{'a' * 300}/b", "a/" * 2000, f"{root}/".ljust(4090, "a").replace("aa", "a/")):
        refused = client.post(STUDIES, json={"name": "one", field: value})
        if field == "out" and refused.status_code == 201:
            assert client.delete(f"{STUDIES}/one").status_code == 204
            continue
        assert refused.status_code == 422 and f"{field} is" in refused.json()["detail"], refused.text


def test_a_folder_that_the_service_may_not_look_into_is_refused(
    client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "closed").mkdir()

    def refuse(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    refused = client.post(STUDIES, json={"name": "one", "out": "closed"})
    assert refused.status_code == 422 and "Permission denied" in refused.json()["detail"]

    def refuse_all(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    for question in ("exists", "is_file", "is_dir"):
        monkeypatch.setattr(Path, question, refuse_all)
    for check in (lambda: checked_data("x", (root,), hub=False), lambda: checked_model("x", (root,), hub=False)):
        with pytest.raises(ConfigError, match="expected"):
            check()


def test_results_never_go_below_a_file(client: TestClient, root: Path, tmp_path: Path) -> None:
    (root / "file").write_text("")
    for out in ("file", "file/below", "file/deep/below"):
        refused = client.post(STUDIES, json={"name": "one", "out": out})
        assert refused.status_code == 422 and "is a file" in refused.json()["detail"], out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one").write_text("")
    refused = client.post(STUDIES, json={"name": "one"})
    assert refused.status_code == 422 and "is a file" in refused.json()["detail"]
    assert client.post(STUDIES, json={"name": "two"}).status_code == 201


def test_results_never_go_where_another_study_has_its_own(
    make_client: MakeClient, store: ServiceStore, root: Path
) -> None:
    client = make_client(out=root / "results")
    (root / "link").symlink_to(root / "shared")
    assert client.post(STUDIES, json={"name": "o1", "out": "shared/o"}).status_code == 201
    for out in ("shared/o", "shared", "shared/o/deep", "link/o", f"{root}/x/../shared/o"):
        refused = client.post(STUDIES, json={"name": "o2", "out": out})
        assert refused.status_code == 422, out
        assert "results of study 'o1'" in refused.json()["detail"] and refused.json()["detail"].startswith("out is")
    # The folder that a study has if it names none counts, too: taken, and to be taken.
    assert client.post(STUDIES, json={"name": "plain"}).status_code == 201
    assert client.post(STUDIES, json={"name": "o2", "out": "results/plain/model"}).status_code == 422
    assert client.post(STUDIES, json={"name": "o2", "out": "results/late"}).status_code == 201
    assert client.post(STUDIES, json={"name": "late"}).status_code == 422
    # A name that is taken is told as such.
    assert client.post(STUDIES, json={"name": "o1", "out": "shared/o"}).status_code == 409
    # What begins with the same letters is another folder.
    assert client.post(STUDIES, json={"name": "o3", "out": "shared/o-3"}).status_code == 201
    assert client.delete(f"{STUDIES}/o1").status_code == 204
    assert client.post(STUDIES, json={"name": "o4", "out": "shared/o"}).status_code == 201


def test_a_study_does_not_move_its_results_to_another_ones(client: TestClient, store: ServiceStore) -> None:
    for name in ("one", "two", "three"):
        assert client.post(STUDIES, json={"name": name, "out": name}).status_code == 201
        store.queue.request_stop(name)
    assert client.post(f"{STUDIES}/one/resume", json={"out": "two"}).status_code == 422
    assert client.post(f"{STUDIES}/one/resume", json={"out": "four"}).status_code == 202
    # Where it goes from now on, though its runner has not begun.
    assert client.post(f"{STUDIES}/two/resume", json={"out": "four/deep"}).status_code == 422
    assert client.post(f"{STUDIES}/three/resume", json={"out": "three/deep"}).status_code == 202


def test_of_many_that_name_one_folder_at_the_same_moment_one_gets_it(client: TestClient, root: Path) -> None:
    statuses: list[int] = []

    def ask(number: int) -> None:
        statuses.append(client.post(STUDIES, json={"name": f"s{number}", "out": "o"}).status_code)

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert sorted(statuses) == [201] + [422] * 7


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


def test_a_model_and_data_that_were_moved_are_named_below_a_root_as_well(client: TestClient, root: Path) -> None:
    assert client.post(STUDIES, json={"name": "one"}).status_code == 201
    assert client.post(f"{STUDIES}/one/stop").status_code in (200, 202)
    for changes in ({"model": "/etc"}, {"data": "/etc/passwd"}, {"model": "nowhere"}, {"data": "nowhere.jsonl"}):
        refused = client.post(f"{STUDIES}/one/resume", json=changes)
        assert refused.status_code == 422 and f"{next(iter(changes))} is" in refused.json()["detail"]
    (root / "moved").mkdir()
    (root / "moved" / "config.json").write_text("{}")
    (root / "moved" / "data.jsonl").write_text('{"prompt": "a", "completion": " b"}\n')
    # Whether they are the same, the runner finds out.
    moved = {"model": "moved", "data": "moved/data.jsonl"}
    assert client.post(f"{STUDIES}/one/resume", json=moved).status_code == 202


@pytest.mark.parametrize("field", ["data", "test_data"])
def test_every_source_of_several_is_confined(client: TestClient, root: Path, field: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    _data(outside / "data.jsonl")
    _data(root / "data.jsonl")
    (root / "folder").mkdir()
    _data(root / "folder" / "more.jsonl")
    (root / "linked").mkdir()
    (root / "linked" / "more.jsonl").symlink_to(outside / "data.jsonl")
    (root / "task.yaml").write_text("task: one")
    refused = {
        f"data.jsonl + {outside}/data.jsonl": "below a folder",
        "data.jsonl + 2:../outside/data.jsonl": "below a folder",
        "linked": "files of this folder lie elsewhere",
        "data.jsonl + ": "empty source",
        "hf:allenai/ai2_arc": "without --hub",
        "data.jsonl + task:arc_easy": "without --hub",
        f"task:{root}/task.yaml": "their files may execute code",
        "task:task.yaml": "their files may execute code",
        "task:../outside": "expected names of tasks",
    }
    for value, reason in refused.items():
        answer = client.post(STUDIES, json={"name": "one", field: value, **SIZES})
        assert answer.status_code == 422 and reason in answer.json()["detail"], (value, answer.text)
    made = client.post(STUDIES, json={"name": "one", field: "2:data.jsonl + folder + demo + self", **SIZES})
    assert made.status_code == 201, made.text
    assert made.json()["config"][field] == f"2:{root}/data.jsonl + {root}/folder + demo + self"


def test_sources_of_the_hub_need_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("hf:allenai/ai2_arc:ARC-Easy:train[:10]", "task:arc_easy,piqa"):
        assert checked_data(value, (), hub=True) == value
    (tmp_path / "allenai" / "ai2_arc").mkdir(parents=True)
    with pytest.raises(ConfigError, match="in the way"):
        checked_data("hf:allenai/ai2_arc", (), hub=True)
    with pytest.raises(ConfigError, match="may execute code"):
        checked_data("task:own.yaml", (tmp_path,), hub=True)


def test_an_adapter_is_confined_like_a_model(tmp_path: Path) -> None:
    roots = (tmp_path.resolve(),)
    reach = Reach(roots=roots, out=tmp_path / "out")
    inside, outside = RunConfig(adapter=str(tmp_path / "adapter")), RunConfig(adapter="/etc")
    check_reach(inside.model_copy(update={"out": str(tmp_path / "out" / "one")}), "one", reach)
    with pytest.raises(ConfigError, match="adapter is '/etc', which lies below no folder"):
        check_reach(outside.model_copy(update={"out": str(tmp_path / "out" / "one")}), "one", reach)
