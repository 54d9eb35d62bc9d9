"""The house rules that a program can check: import arrows, file sizes, quick imports, no foreign code."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hllm_jax"

# A room imports only itself and rooms above it in this list.
ROOMS = [
    "config",
    "recipes",
    "tokenizers",
    "data",
    "nn",
    "models",
    "interop",
    "parallel",
    "objectives",
    "training",
    "generation",
    "rl",
    "evals",
    "report",
    "doctor",
    "inspection",
    "planning",
    "conversion",
    "quickstart",
    "cli",
]
# The one arrow upwards: `hllm_jax.parallel.plan` is a name that is promised to users.
PROMISED = ("hllm_jax/parallel/__init__.py", "planning")
# Public doubles for tests: may use every room, and no room uses them.
FREE = "testing"


@cache
def library() -> dict[Path, ast.Module]:
    """Every file of the library, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def python_files() -> list[Path]:
    """Every Python file of the repository."""
    folders = ("hllm_jax", "train", "scripts", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """The room of a library file: its folder, or its own name at the top level."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if first == "__main__" else first


def imports(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and dotted name of everything imported from hllm_jax, inside functions and for types too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, each) for each in (names if module in ("hllm_jax", ".") else [module])]
    return [(line, each) for line, each in found if each.startswith(("hllm_jax", "."))]


def test_every_room_has_its_place() -> None:
    rooms = {room(path) for path in library()} - {"__init__"}
    assert rooms <= {*ROOMS, FREE}, "a new room needs a line in ROOMS, between what it uses and what uses it"
    assert rooms >= {"config", "tokenizers", "data", "nn", "models", "training", "generation", "cli"}


def test_every_folder_has_an_index() -> None:
    folders = {path.parent for path in library()}
    assert [name(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
    assert len(folders) >= 15


def test_no_index_exports_the_name_of_a_module_beside_it() -> None:
    """`from room import name` gives the module once that was imported, and the function before."""
    wrong: list[str] = []
    exported = 0
    for path, tree in library().items():
        if path.name != "__init__.py":
            continue
        names = [
            a.asname for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names if a.asname
        ]
        modules = {each.stem for each in path.parent.glob("*.py")}
        wrong += [f"{name(path)}: {each}" for each in names if each in modules]
        exported += len(names)
    assert wrong == []
    assert exported >= 100


def test_imports_point_up_the_list() -> None:
    wrong: list[str] = []
    arrows = 0
    for path, tree in library().items():
        own = room(path)
        for line, imported in imports(tree):
            where = f"{name(path)}:{line}"
            if imported.startswith("."):
                wrong.append(f"{where}: relative import; write the whole name")
                continue
            parts = imported.split(".")
            target = parts[1] if len(parts) > 1 else ""
            if target in ("", "__version__") or own in ("__init__", FREE):
                continue
            arrows += 1
            if target == FREE:
                wrong.append(f"{where}: {own} uses {FREE}, which is for tests")
            elif target not in ROOMS:
                wrong.append(f"{where}: {imported} is in no room; import from the module that defines it")
            elif ROOMS.index(target) > ROOMS.index(own) and (name(path), target) != PROMISED:
                wrong.append(f"{where}: {own} is above {target} and may not import it")
    assert wrong == []
    assert len(library()) >= 100
    assert arrows >= 200


def test_files_tell_one_story() -> None:
    files = python_files()
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > 600} == {}
    assert len(lengths) >= 120


def test_file_names_are_plain() -> None:
    wrong = [
        name(path)
        for path in python_files()
        if path.stem == "utils" or (path.stem.startswith("_") and path.stem not in ("__init__", "__main__"))
    ]
    assert wrong == []


def test_no_text_is_run_as_code() -> None:
    """No eval, exec, pickle or shell in what could see a model's or a user's text."""
    # Pickles that a process exchanges with workers that it started itself come from nowhere else; PyTorch's
    # files are read by its loader that builds nothing but tensors and plain values.
    allowed = {"hllm_jax/data/rendering.py": "pickle", "hllm_jax/interop/pth.py": "torch"}
    forbidden_names = {"eval", "exec", "compile", "__import__"}
    forbidden_modules = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "torch"}
    forbidden_calls = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    wrong: list[str] = []
    calls = 0
    trees = library() | {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "train").glob("*.py")
    }
    for path, tree in trees.items():
        for node in ast.walk(tree):
            where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                )
                wrong += [
                    f"{where}: imports {m}"
                    for m in modules
                    if m.split(".")[0] in forbidden_modules and allowed.get(name(path)) != m
                ]
            if not isinstance(node, ast.Call):
                continue
            calls += 1
            called = ast.unparse(node.func)
            safe_yaml = called == "yaml.load" and ast.unparse(node).endswith(("SafeLoader)", "BaseLoader)"))
            if called in forbidden_names | forbidden_calls and not safe_yaml:
                wrong.append(f"{where}: calls {called}")
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("shell") == "True" or given.get("allow_pickle") == "True":
                wrong.append(f"{where}: {called} with shell or allow_pickle")
            if called == "torch.load" and given.get("weights_only") != "True":
                wrong.append(f"{where}: {called} without weights_only=True")
            in_tokenizers = path.is_relative_to(PACKAGE / "tokenizers")
            if in_tokenizers and called in (
                "jinja2.Environment",
                "Environment",
                "jinja2.Template",
            ):
                wrong.append(f"{where}: a chat template comes from outside; use the sandboxed environment")
    assert wrong == []
    assert calls >= 2000


def test_library_and_config_modules_import_no_jax() -> None:
    modules = [
        "hllm_jax",
        *(f"hllm_jax.{each}" for each in ROOMS if (PACKAGE / each).is_dir()),
        *(f"hllm_jax.{path.parent.name}.config" for path in sorted(PACKAGE.glob("*/config.py"))),
        *("hllm_jax.cli.entry", "hllm_jax.recipes", "hllm_jax.doctor"),
    ]
    assert len(modules) >= 20
    assert loaded_after([f"import {each}" for each in modules]) == []


def test_recipes_are_read_without_jax() -> None:
    """So that `hllm validate` is quick: a recipe imports rooms (`from hllm_jax import training`)."""
    names = sorted(path.stem for path in (ROOT / "train").glob("*.py"))
    statements = [f"hllm_jax.recipes.load_recipe({each!r})" for each in names]
    assert loaded_after(["import hllm_jax.recipes", *statements]) == []
    assert len(names) >= 3


def loaded_after(statements: list[str]) -> list[str]:
    """The heavy modules that these statements, run in a fresh interpreter, have loaded; none is wanted."""
    heavy = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax",
        "grain",
        "tensorflow_datasets",
        "numpy.testing",
        "matplotlib",
    )
    program = "\n".join(
        [
            "import sys",
            *(
                f"{each}\nfor m in {heavy!r}: assert m not in sys.modules, {each!r} + ' loads ' + m"
                for each in statements
            ),
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1:]


def test_requirements_name_no_registry() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert [
        line for line in lines if "://" in line or line.startswith(("-i", "--index", "--extra-index"))
    ] == []
    packages = [line for line in lines if "==" in line]
    assert len(packages) > 100
    assert sum("--hash=sha256:" in line for line in lines) >= len(packages)
