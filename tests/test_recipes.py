"""Recipes are found, loaded, handed out, and refused with a reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hllm_jax import recipes
from hllm_jax.config import ConfigError

RECIPE = '''"""Counts to a number.

More text.
"""

from hllm_jax.config import config


@config
class Count:
    steps: int = 3


@config
class Config:
    recipe: str = "count.py"
    count: Count = Count()


def main(config: Config) -> list[int]:
    return list(range(config.count.steps))
'''


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one recipe, `count`, and its configuration; the current folder is elsewhere."""
    home = tmp_path / "home"
    (home / "train").mkdir(parents=True)
    (home / "configs" / "count").mkdir(parents=True)
    (home / "train" / "count.py").write_text(RECIPE, encoding="utf-8")
    (home / "configs" / "count" / "tiny.yaml").write_text(
        "# small\nrecipe: count  # this one\n", encoding="utf-8"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(recipes, "home", lambda: home)
    monkeypatch.chdir(elsewhere)
    return home


def test_recipes_are_listed_with_their_first_line_and_configs(shipped: Path) -> None:
    (recipe,) = recipes.recipes()
    assert (recipe.name, recipe.summary) == ("count", "Counts to a number.")
    assert recipe.configs == (shipped / "configs" / "count" / "tiny.yaml",)


@pytest.mark.parametrize(
    "path", ["configs/count/tiny.yaml", "./configs/count/tiny.yaml", "count/tiny", "count/tiny.yaml"]
)
@pytest.mark.usefixtures("shipped")
def test_a_shipped_config_runs_from_anywhere(path: str) -> None:
    module, config = recipes.load_run_config(path, ["count.steps=2"])
    assert module.main(config) == [0, 1]
    assert config.recipe == "count"


@pytest.mark.usefixtures("shipped")
def test_a_copy_runs_itself_and_never_overwrites() -> None:
    written = recipes.copy("count", "mine")
    assert written == [Path("mine/count.py"), Path("mine/tiny.yaml")]
    written[0].write_text(RECIPE.replace("range(config", "range(10, 10 + config"), encoding="utf-8")
    module, config = recipes.load_run_config("mine/tiny.yaml")
    assert module.main(config) == [10, 11, 12]
    assert written[1].read_text(encoding="utf-8") == "# small\nrecipe: count.py  # this one\n"
    with pytest.raises(FileExistsError, match=r"mine/count.py, mine/tiny.yaml"):
        recipes.copy("count", "mine")


@pytest.mark.usefixtures("shipped")
def test_a_run_folder_is_its_config() -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.yaml").write_text("recipe: count\ncount: {steps: 1}\n", encoding="utf-8")
    module, config = recipes.load_run_config("runs/a")
    assert module.main(config) == [0]


@pytest.mark.usefixtures("shipped")
def test_a_recipe_may_be_named_on_the_command_line() -> None:
    Path("other.py").write_text(RECIPE.replace("range(", "range(5, 5 + "), encoding="utf-8")
    module, config = recipes.load_run_config("count/tiny", ["recipe=other.py"])
    assert module.main(config) == [5, 6, 7]


@pytest.mark.usefixtures("shipped")
def test_a_changed_recipe_is_read_again() -> None:
    recipes.copy("count", "mine")
    assert recipes.load_recipe("mine/count.py") is recipes.load_recipe("mine/count.py")
    before = recipes.load_recipe("mine/count.py")
    Path("mine/count.py").write_text(RECIPE + "\nEXTRA = 1\n", encoding="utf-8")
    assert recipes.load_recipe("mine/count.py") is not before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: {}\n", "run.yaml: recipe: is required; there are count"),
        ("recipe: [a]\n", "run.yaml:1: recipe: must be the name of a recipe; there are count"),
        ("recipe: cuont\n", "there is no recipe 'cuont'; there are count. Did you mean count?"),
        ("recipe: empty.py\n", "has no class `Config`"),
        ("recipe: nofield.py\n", "needs a field `recipe: str"),
        ("recipe: nomain.py\n", "has no function `main(config)`"),
        ("recipe: count\ncounts: 3\n", "run.yaml:2: counts = 3: unknown key. Did you mean count?"),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_a_wrong_recipe_is_a_clear_error(text: str, message: str) -> None:
    Path("run.yaml").write_text(text, encoding="utf-8")
    Path("empty.py").write_text("", encoding="utf-8")
    Path("nofield.py").write_text(RECIPE.replace('recipe: str = "count.py"', "x: int = 1"), encoding="utf-8")
    Path("nomain.py").write_text(RECIPE.replace("def main", "def run"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        recipes.load_run_config("run.yaml")
    assert message in str(caught.value)


@pytest.mark.usefixtures("shipped")
def test_a_missing_config_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean configs/count/tiny.yaml\?"):
        recipes.load_run_config("configs/count/tinny.yaml")


@pytest.mark.usefixtures("shipped")
def test_an_unknown_recipe_is_not_copied() -> None:
    with pytest.raises(ValueError, match="Did you mean count"):
        recipes.copy("counts", "mine")
    assert not Path("mine").exists()


def test_one_process_prepares_the_data_of_a_recipe_and_the_others_wait() -> None:
    """Every `config.data.build(…)` of a shipped recipe stands in a `with run.coordinator_first(…)`."""
    alone, found = [], 0
    for recipe in recipes.recipes():
        tree = ast.parse(recipe.path.read_text("utf-8"))
        waiting = [node for node in ast.walk(tree) if isinstance(node, ast.With) and waits(node)]
        inside = {id(node) for block in waiting for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "config.data.build":
                found += 1
                alone += [] if id(node) in inside else [f"{recipe.path.name}:{node.lineno}"]
    assert alone == []
    assert found >= 6, "training and held-out data of three recipes"


def waits(block: ast.With) -> bool:
    return any(ast.unparse(item.context_expr).startswith("run.coordinator_first(") for item in block.items)
