"""`load_config`: what is accepted, and that every kind of mistake is named with its place, all at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from hllm_jax.config import ConfigError, Invalid, config, load_config, to_yaml


@config
class Source:
    name: str
    weight: float = 1.0


@config
class Model:
    heads: int = 8
    kv_heads: int = 4
    window: int | None = None

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (self.heads % self.kv_heads > 0, "heads", f"must be a multiple of kv_heads={self.kv_heads}"),
                (self.window == 0, "window", "must be at least 1, or null"),
            ]
        )


@config
class Train:
    steps: int = 100
    batch_size: int = 8
    peak: float = 1e-3
    remat: Literal["none", "selective", "full"] = "none"
    shuffle: bool = True


@config
class Data:
    sources: tuple[Source, ...] = ()
    prompt: str | None = None
    limit: int | Literal["all"] = "all"


@config
class Config:
    recipe: str = "pretrain"
    model: Model = Model()
    train: Train = Train(batch_size=4)
    data: Data = Data()
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    draft: Model | None = None

    def __post_init__(self) -> None:
        Invalid.check([(self.train.batch_size % 2 > 0, "train.batch_size", "must be even")])


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Config, path, overrides)
    return [str(problem).replace(f"{path}", "run.yaml") for problem in caught.value.problems]


def test_file_and_overrides_become_the_instance(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "train: {steps: 1_000, peak: 1e-3, remat: full}\n"
        "data:\n  sources:\n  - name: a\n  - {name: b, weight: 2}\n",
    )
    loaded = load_config(Config, path, ["data.sources.1.weight=0.5", "mesh.data=-1", "train.shuffle=false"])
    assert loaded == Config(
        train=Train(steps=1000, batch_size=4, peak=1e-3, remat="full", shuffle=False),
        data=Data(sources=(Source(name="a"), Source(name="b", weight=0.5))),
        mesh={"data": -1},
    )


def test_the_defaults_alone_are_a_configuration() -> None:
    assert load_config(Config) == Config()


def test_setting_one_key_keeps_the_rest_of_that_sections_default() -> None:
    assert load_config(Config, None, ["train.steps=5"]).train == Train(steps=5, batch_size=4)


def test_an_override_creates_an_optional_section_and_null_removes_it(tmp_path: Path) -> None:
    path = write(tmp_path, "draft: {heads: 2, kv_heads: 1}\n")
    assert load_config(Config, None, ["draft.heads=12"]).draft == Model(heads=12)
    assert load_config(Config, path, ["draft=null"]).draft is None
    assert load_config(Config, path, ["draft={heads: 4}"]).draft == Model(heads=4)


def test_a_later_override_wins() -> None:
    assert load_config(Config, None, ["train.steps=5", "train.steps=6"]).train.steps == 6


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3", ".001"])
def test_a_number_may_be_written_with_an_exponent(tmp_path: Path, text: str) -> None:
    assert load_config(Config, write(tmp_path, f"train: {{peak: {text}}}\n")).train.peak == 1e-3
    assert load_config(Config, None, [f"train.peak={text}"]).train.peak == 1e-3


def test_an_integer_is_a_number() -> None:
    peak = load_config(Config, None, ["train.peak=1"]).train.peak
    assert peak == 1.0
    assert type(peak) is float


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "${a}",
        "a: b",
        "no",
        "12:30",
        "2024-01-01",
        "it's {x}",
        "[x",
        "北京 = 首都",
        "a=b",
        "1e-3",
        "7",
    ],
)
def test_text_is_text(tmp_path: Path, text: str) -> None:
    assert load_config(Config, None, [f"data.prompt={text}"]).data.prompt == text
    path = write(tmp_path, to_yaml(Config(data=Data(prompt=text))))
    assert load_config(Config, path).data.prompt == text


def test_dollar_braces_in_a_file_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "data: \n  prompt: say ${x} and $HOME\n")
    assert load_config(Config, path).data.prompt == "say ${x} and $HOME"


def test_every_problem_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "recipe: pretrain\n"
        "model:\n"
        "  heads: 7\n"
        "  window: 0\n"
        "train:\n"
        "  step: 5\n"
        "  batch_size: many\n"
        "  remat: ful\n"
        "data:\n"
        "  sources:\n"
        "  - weight: 2\n",
    )
    assert problems(path, "train.shuffle=3", "heads=4") == [
        "run.yaml:3: model.heads = 7: must be a multiple of kv_heads=4",
        "run.yaml:4: model.window = 0: must be at least 1, or null",
        "run.yaml:6: train.step = 5: unknown key. Did you mean train.steps?",
        "run.yaml:7: train.batch_size = many: wants an integer, this is text",
        "run.yaml:8: train.remat = ful: must be 'none', 'selective' or 'full'. Did you mean full?",
        "run.yaml:11: data.sources.0.name: is required and not given",
        "command line: train.shuffle = 3: wants true or false, this is an integer",
        "command line: heads = 4: unknown key. Did you mean model.heads?",
    ]


def test_a_combination_is_reported_beside_an_unknown_key_of_the_same_section(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  headz: 7\n  window: 0\n")
    assert problems(path) == [
        "run.yaml:2: model.headz = 7: unknown key. Did you mean model.heads?",
        "run.yaml:2: model.heads = 7: must be a multiple of kv_heads=4",
        "run.yaml:3: model.window = 0: must be at least 1, or null",
    ]


def test_a_combination_across_sections_is_reported_beside_an_unknown_key(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {zzz: 1}\ntrain:\n  stepz: 7\n  batch_size: 3\n")
    assert problems(path) == [
        "run.yaml:1: model.zzz = 1: unknown key; here go heads, kv_heads, window.",
        "run.yaml:3: train.stepz = 7: unknown key. Did you mean train.steps?",
        "run.yaml:4: train.batch_size = 3: must be even",
    ]


def test_a_combination_across_sections_is_reported_beside_one_within(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  heads: 7\ntrain:\n  batch_size: 3\n")
    assert problems(path) == [
        "run.yaml:2: model.heads = 7: must be a multiple of kv_heads=4",
        "run.yaml:4: train.batch_size = 3: must be even",
    ]


def test_a_refused_section_is_refused_everywhere_else() -> None:
    problems(None, "model.heads=7")
    with pytest.raises(Invalid, match="must be a multiple of kv_heads=4"):
        Model(heads=7)


def test_a_combination_with_a_value_that_is_wrong_itself_is_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  heads: six\n  kv_heads: 3\n")
    assert problems(path) == ["run.yaml:2: model.heads = six: wants an integer, this is text"]


def test_a_combination_with_a_default_shows_the_default(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "model:\n  kv_heads: 3\n")) == [
        "run.yaml:1: model.heads = 8: must be a multiple of kv_heads=3"
    ]


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.stepz=1", "train.steps"),
        ("train.kv_heads=1", "model.kv_heads"),
        ("steps=1", "train.steps"),
        ("trian.steps=1", "train"),
        ("data.prompts=x", "data.prompt"),
        ("data.wieght=1", "data.sources.0.weight"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(override: str, nearest: str) -> None:
    (problem,) = problems(None, override)
    assert problem.endswith(f"Did you mean {nearest}?")


def test_an_unknown_key_that_is_like_nothing_lists_the_valid_ones() -> None:
    (problem,) = problems(None, "model.zzz=1")
    assert problem == "command line: model.zzz = 1: unknown key; here go heads, kv_heads, window."


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=2.5", "wants an integer, this is a number"),
        ("train.steps=1e3", "wants an integer, this is a number"),
        ("train.steps=true", "wants an integer, this is true or false"),
        ("train.steps=", "wants an integer, this is empty"),
        ("train.steps='5'", "wants an integer, this is text"),
        ("train.peak=.nan", "wants a number, this is text"),
        ("train.peak=fast", "wants a number, this is text"),
        ("train.shuffle=yes", "wants true or false, this is text"),
        ("train=5", "wants a section (keys with values), this is an integer"),
        ("data.sources={name: a}", "wants a list, this is a section"),
        ("data.prompt=true", "wants text, this is true or false"),
        ("data.limit=some", "wants an integer or must be 'all', this is text"),
    ],
)
def test_a_wrong_type_says_what_is_wanted_and_what_it_is(override: str, message: str) -> None:
    (problem,) = problems(None, override)
    assert problem.startswith(f"command line: {override.partition('=')[0]}")
    assert message in problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "is no override; write key=value"),
        ("=5", "is no override"),
        ("train..steps=5", "is no override"),
        ("recipe.name=5", "which has no keys below it"),
        ("data.sources.0.weight=5", "unknown"),
        ("data.prompt=\udcff", "is not valid UTF-8"),
    ],
)
def test_a_malformed_override_is_refused(override: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "recipe: x\n")
    found = problems(path, override)
    assert len(found) == 1
    assert message in found[0] or "wants a list" in found[0]


def test_an_item_beyond_the_list_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  sources:\n  - name: a\n")
    assert problems(path, "data.sources.1.weight=2") == [
        "command line: data.sources.1.weight: data.sources has 1 items in run.yaml; give a number below that"
    ]


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  steps: 1\n  steps: 2\ntrain: {}\n")
    assert problems(path) == [
        "run.yaml:3: train.steps: is written twice (first at run.yaml:2); keep one of them",
        "run.yaml:4: train: is written twice (first at run.yaml:1); keep one of them",
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "run.yaml: is empty"),
        (b"# nothing\n", "run.yaml: is empty"),
        (b"- a\n- b\n", "run.yaml: must be a mapping of keys"),
        (b"just text\n", "run.yaml: must be a mapping of keys"),
        (b"a: 1\nb: \xff\xfe\n", "run.yaml:2: is not UTF-8 (byte 0xff at offset 8)"),
        (b"train:\n  steps: [1\nx: 2\n", "run.yaml:3: is not YAML"),
        (b"train:\n\tsteps: 1\n", "run.yaml:2: is not YAML"),
        (b"a: 1\n---\nb: 2\n", "run.yaml:2: is not YAML"),
        (b"a: \x00\n", "run.yaml: is not YAML"),
        (b"train: !!python/object:os.system {}\n", "run.yaml:1: train: the tag"),
        (b"train: &t\n  steps: *t\n", "an alias that contains itself"),
        (b"train: {steps: !!int x}\n", "run.yaml:1: train.steps"),
        (b"? [a]\n: 1\n", "run.yaml:1: a key must be plain text"),
        (b"x: " + b"[" * 3000 + b"]" * 3000, "run.yaml: is not YAML: it is nested too deeply"),
    ],
)
def test_an_unreadable_file_is_a_clear_error(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(raw)
    assert message in problems(path)[0]


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    near = write(tmp_path, "{}")
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_config(Config, tmp_path / "runn.yaml")
    assert caught.value.problems[0].nearest == str(near)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    assert "cannot be read" in problems(tmp_path)[0]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbftrain: {steps: 3}\n")
    assert load_config(Config, path).train.steps == 3


def test_an_alias_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path, "model: &m {heads: 6, kv_heads: 3}\ndraft: *m\n")
    assert load_config(Config, path).draft == Model(heads=6, kv_heads=3)


@config
class Length:
    steps: int | None = None
    width: int = 3

    def __post_init__(self) -> None:
        Invalid.check([(self.steps is None, "steps", "must be given")])


@config
class Demanding:
    length: Length = dataclasses.field(default_factory=Length)


def test_a_default_that_refuses_itself_asks_for_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"defaults: length.steps = null: must be given"):
        load_config(Demanding)
    assert load_config(Demanding, None, ["length.steps=2"]).length == Length(steps=2)
