"""Finding and fetching raw data: never the wrong bytes, never the sample by accident."""

from __future__ import annotations

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.poeta import download, load_task, sources, status, task_spec
from evaluation.poeta.raw import RawData
from evaluation.poeta.table import task_table
from megatron_ext.artifacts import hash_file
from megatron_ext.errors import UserError

TWEETS = "data/tweetsentbr/tweetsentbr.json"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("POETA_DATA", raising=False)
    monkeypatch.setattr(download, "_unreachable_hosts", set())
    return sources.cache_folder()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and the folder that it serves."""
    root = tmp_path / "web"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    server.server_close()


def put(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def point_to(monkeypatch: pytest.MonkeyPatch, name: str, url: str, path: Path | None) -> None:
    files = {name: {"url": url} | ({"sha256": hash_file(path)} if path else {})}
    monkeypatch.setattr(sources, "manifest", lambda: {"files": files, "archives": [], "hub": {}})


def test_manifest_covers_everything() -> None:
    for spec in task_table().values():
        assert spec.hub is None or spec.hub in sources.manifest()["hub"]
        assert all(sources._source_of(name) for name in spec.raw_names())


def test_status_of_a_task_is_that_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = task_table()["tweetsentbr_greedy"]
    (tmp_path / "mine").mkdir()
    assert status.task_status(spec, tmp_path / "mine") == "missing"
    path = put(tmp_path / "mine", TWEETS, "{}")
    assert status.task_status(spec, tmp_path / "mine") == "local"
    point_to(monkeypatch, TWEETS, "http://nowhere", path)
    assert status.task_status(spec, tmp_path / "mine") == "official"
    with pytest.raises(UserError, match="does not exist"):
        status.task_status(spec, tmp_path / "yours")


def test_rows_and_licences_are_told_where_they_are_known() -> None:
    faquad, enem = task_table()["faquad"], task_table()["enem_greedy"]
    assert (status.task_rows(faquad), status.task_licences(faquad)) == (837 + 63, ["CC BY 4.0"])
    assert (status.task_rows(enem), status.task_licences(enem)) == (None, [])


def test_data_folder_wins_and_is_local(tmp_path: Path) -> None:
    place = put(tmp_path / "mine", TWEETS, "{}")
    found = sources.find_raw_data([task_spec("tweetsentbr_greedy")], tmp_path / "mine", allow_download=False)
    assert (found[TWEETS].path, found[TWEETS].origin) == (place, "local")


def test_known_bytes_are_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = put(tmp_path / "mine", TWEETS, "{}")
    point_to(monkeypatch, TWEETS, "http://nowhere.invalid/x", place)
    monkeypatch.setenv("POETA_DATA", str(tmp_path / "mine"))
    assert sources.find_raw_data([task_spec("tweetsentbr_greedy")], None)[TWEETS].origin == "official"


def test_missing_data_is_listed(tmp_path: Path) -> None:
    specs = [task_spec("tweetsentbr_greedy"), task_spec("enem_greedy"), task_spec("sst2_pt_greedy")]
    with pytest.raises(UserError) as error:
        sources.find_raw_data(specs, None, allow_download=False)
    for word in ("3 task(s)", TWEETS, "ENEMdataset.zip", "maritaca-ai/sst2_pt", "POETA_DATA", "downloads are off"):
        assert word in str(error.value)


def test_sample_only_when_allowed_and_labelled() -> None:
    spec = task_spec("tweetsentbr_greedy")
    with pytest.raises(UserError, match="is missing"):
        sources.find_raw_data([spec], None, allow_download=False)
    found = sources.find_raw_data([spec], None, allow_download=False, allow_sample=True)
    assert found[TWEETS].origin == "sample"
    assert sources.least_official(["official", "sample", "local"]) == "sample"


def test_sample_never_stands_in_for_data_that_is_there(tmp_path: Path) -> None:
    put(tmp_path / "mine", TWEETS, "{}")
    found = sources.find_raw_data([task_spec("tweetsentbr_greedy")], tmp_path / "mine", allow_sample=True)
    assert found[TWEETS].origin == "local"


def test_download_is_kept_and_verified(web: tuple[str, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, root = web
    served = put(root, "tweets.json", '{"a": 1}')
    point_to(monkeypatch, TWEETS, f"{address}/tweets.json", served)
    spec = task_spec("tweetsentbr_greedy")
    found = sources.find_raw_data([spec], None)
    assert (found[TWEETS].path, found[TWEETS].origin) == (own_cache / TWEETS, "official")
    (own_cache / TWEETS).write_text("damaged")
    assert sources.find_raw_data([spec], None)[TWEETS].sha256 == hash_file(served)
    served.unlink()
    assert sources.find_raw_data([spec], None)[TWEETS].path.read_text() == '{"a": 1}'


def test_wrong_bytes_are_refused(web: tuple[str, Path], own_cache: Path, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    address, root = web
    put(root, "tweets.json", "something else")
    point_to(monkeypatch, TWEETS, f"{address}/tweets.json", put(tmp_path, "expected.json", "{}"))
    with pytest.raises(UserError, match="other bytes than expected"):
        sources.find_raw_data([task_spec("tweetsentbr_greedy")], None)
    assert not list(own_cache.rglob("*.json*"))


def test_absent_file_and_unreachable_host(web: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(monkeypatch, TWEETS, f"{web[0]}/no.json", None)
    with pytest.raises(UserError, match="404"):
        sources.find_raw_data([task_spec("tweetsentbr_greedy")], None)
    point_to(monkeypatch, TWEETS, "http://127.0.0.1:9/no.json", None)
    with pytest.raises(UserError, match="cannot be reached"):
        sources.find_raw_data([task_spec("tweetsentbr_greedy")], None)


def test_archive_gives_only_what_is_needed(web: tuple[str, Path], own_cache: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    address, root = web
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in (*(Path(name).name for name in task_spec("enem_greedy").files), "other.xml"):
            archive.writestr(name, f"<exam name='{name}'/>")
    (root / "enem.zip").write_bytes(content.getvalue())
    archives = [{"url": f"{address}/enem.zip", "folder": "data/enem"}]
    monkeypatch.setattr(sources, "manifest", lambda: {"files": {}, "archives": archives, "hub": {}})
    found = sources.find_raw_data([task_spec("enem_greedy")], None)
    assert len(found) == 20
    assert sorted(path.name for path in (own_cache / "data/enem").iterdir()) == sorted(
        Path(name).name for name in task_spec("enem_greedy").files)
    (root / "enem.zip").write_bytes(b"no archive")
    (own_cache / "data/enem/2009-1.xml").unlink()
    with pytest.raises(UserError, match="no archive of what is needed"):
        sources.find_raw_data([task_spec("enem_greedy")], None)


def test_hub_split_keeps_rows_and_order(tmp_path: Path) -> None:
    rows = [{"text": f"frase {number}", "label": number % 2} for number in (3, 1, 2)]
    put(tmp_path / "dataset", "train.jsonl", "\n".join(map(json.dumps, rows)))
    target = download.fetch_split(str(tmp_path / "dataset"), None, "train", None, tmp_path / "out" / "train.parquet")
    spec = task_spec("sst2_pt_greedy")
    assert RawData(spec, {"hub/maritaca-ai/sst2_pt/default/train": target}).split("train") == rows


def test_hub_data_in_a_data_folder(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        put(tmp_path, f"hub/maritaca-ai/sst2_pt/default/{split}.jsonl", '{"text": "bom\u2028filme", "label": 1}\n')
    spec = task_spec("sst2_pt_greedy")
    found = sources.find_raw_data([spec], tmp_path, allow_download=False)
    loaded = load_task(spec.name).load(sources.open_raw_data(spec, found))
    assert loaded.documents[0].text == "Crítica: bom\u2028filme\nAvaliação:"
    assert loaded.documents[0].target == " positiva"
