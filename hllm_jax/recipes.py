"""Recipes and the configurations they run: where they are, how one is loaded, how one is handed out.

In a checkout they are the folders `train/` and `configs/`; in an installed wheel a copy of these lies inside
the package. A configuration names its recipe: `recipe: pretrain` is a file of `train/`, `recipe: my_copy.py`
a file beside the configuration or below the current folder.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm_jax.config.document import COMMAND_LINE, read_document
from hllm_jax.config.load import check
from hllm_jax.config.problems import ConfigError, Problem

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from types import ModuleType


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way of training: one file with a `Config` and a `main(config)`.

    Attributes:
        name: what `recipe:` in a configuration says.
        path: the file.
        summary: the first line of its docstring.
        configs: the configurations that come with it.
    """

    name: str
    path: Path
    summary: str
    configs: tuple[Path, ...]


def home() -> Path:
    """The folder with `train/` and `configs/`: the checkout, or what the wheel carries."""
    package = Path(__file__).resolve().parent
    shipped = package / "_shipped"
    return shipped if shipped.is_dir() else package.parent


def checkout() -> Path | None:
    """The checkout that this package is imported from, or None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "train").is_dir() else None


def recipes() -> list[Recipe]:
    """Every recipe that comes with the package, by name."""
    return [
        Recipe(
            name=path.stem,
            path=path,
            summary=_summary(path),
            configs=tuple(sorted((home() / "configs" / path.stem).glob("*.yaml"))),
        )
        for path in sorted((home() / "train").glob("*.py"))
        if not path.stem.startswith("_")
    ]


def copy(name: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Write a recipe and its configurations into `folder`, where the configurations name the copy.

    Returns:
        The files written: `NAME.py` first, then the configurations.

    Raises:
        ValueError: there is no recipe `name`.
        FileExistsError: a file is there already; nothing is written then.
    """
    found = {recipe.name: recipe for recipe in recipes()}
    if name not in found:
        raise ValueError(
            f"there is no recipe {name!r}; there are {', '.join(found) or 'none'}{_close(name, found)}"
        )
    recipe = found[name]
    target = Path(folder)
    texts = {target / f"{name}.py": recipe.path.read_text(encoding="utf-8")}
    for config in recipe.configs:
        text = config.read_text(encoding="utf-8")
        texts[target / config.name] = re.sub(r"(?m)^recipe:\s*[^\s#]+", f"recipe: {name}.py", text)
    if there := [str(path) for path in texts if path.exists()]:
        raise FileExistsError(f"not overwriting {', '.join(there)}; choose another folder")
    target.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def find_config(path: str | os.PathLike[str]) -> Path:
    """The configuration file that `path` means.

    A file; a run folder (its `config.yaml`); or a shipped one, with or without `configs/` and `.yaml`
    (`configs/pretrain/tiny.yaml` and `pretrain/tiny` work outside a checkout too).

    Raises:
        ConfigError: there is no such file; names the nearest shipped one.
    """
    given = Path(path)
    if given.is_dir() and (given / "config.yaml").is_file():
        return given / "config.yaml"
    if given.exists():
        return given
    shipped = home() / "configs"
    name = given.as_posix().removeprefix("./").removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if not given.is_absolute() and (shipped / name).is_file():
        return shipped / name
    names = [f"configs/{each.relative_to(shipped).as_posix()}" for each in sorted(shipped.glob("*/*.yaml"))]
    near = [str(each) for each in given.parent.glob("*.y*ml")] if given.parent.is_dir() else []
    close = difflib.get_close_matches(str(given), [*near, *names], n=1)
    nearest = close[0] if close else None
    message = (
        "there is no such configuration."
        if nearest
        else f"there is no such configuration; shipped are {names}"
    )
    raise ConfigError([Problem(where=str(path), message=message, nearest=nearest)])


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a name of `train/`, or a path relative to the folder `beside` or the current one.

    Raises:
        FileNotFoundError: says where it was looked for.
    """
    given = Path(name)
    own = [folder / given for folder in (beside, Path()) if folder is not None]
    shipped = [home() / "train" / f"{name.removesuffix('.py')}.py", home() / given]
    is_path = given.suffix == ".py" or len(given.parts) > 1
    for candidate in [*own, *shipped] if is_path else shipped[:1]:
        if candidate.is_file():
            return candidate
    names = [recipe.name for recipe in recipes()]
    hint = _close(given.stem, names) or "; for a recipe of your own give its path, ending in .py"
    raise FileNotFoundError(f"there is no recipe {name!r}; there are {', '.join(names) or 'none'}{hint}")


def load_recipe(name: str, beside: Path | None = None) -> ModuleType:
    """Import a recipe by name or path and return its module, which has `Config` and `main`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file has no `Config` class, no `Config.recipe`, or no `main` function.
    """
    path = find_recipe(name, beside).resolve()
    # The name holds the content, so that a changed file is not taken for the one imported before.
    mark = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    module_name = f"recipe_{path.stem}_{mark}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # before it runs: its annotations are resolved by module name
    try:
        spec.loader.exec_module(module)
        _check_recipe(module, path)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def load_run_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> tuple[ModuleType, Any]:
    """Read a configuration with overrides, and the recipe that it names.

    Nothing heavy starts here: no jax, no data.

    Returns:
        The recipe's module and an instance of its `Config`: `module.main(config)` runs it.

    Raises:
        ConfigError: everything that is wrong, a missing recipe included.
    """
    file = find_config(path)
    document = read_document(file, overrides)
    where = document.where(("recipe",))
    name = document.values.get("recipe")
    if not isinstance(name, str):
        names = ", ".join(recipe.name for recipe in recipes())
        found = "is required" if name is None else "must be the name of a recipe"
        problem = Problem(where=where, key="recipe", message=f"{found}; there are {names}")
        raise ConfigError([*document.problems, problem])
    try:
        module = load_recipe(name, None if where == COMMAND_LINE else file.parent)
    except (FileNotFoundError, ValueError) as error:
        problem = Problem(where=where, key="recipe", value=name, message=str(error))
        raise ConfigError([*document.problems, problem]) from None
    return module, check(module.Config, document)


def _check_recipe(module: ModuleType, path: Path) -> None:
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ValueError(f"{path} is no recipe: it has no class `Config` declared with @config")
    if "recipe" not in {field.name for field in dataclasses.fields(config)}:
        raise ValueError(f'{path}: its `Config` needs a field `recipe: str = "{path.stem}"`')
    if not callable(getattr(module, "main", None)):
        raise ValueError(f"{path} is no recipe: it has no function `main(config)`")


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _close(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f". Did you mean {close[0]}?" if close else ""
