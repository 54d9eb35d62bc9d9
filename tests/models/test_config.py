"""What a decoder spec promises: sizes, parameter counts, FLOPs, and which combinations it refuses."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest

from hllm_jax.config import Invalid, load_config, to_yaml
from hllm_jax.models import DecoderConfig, ModelConfig, parameter_shapes
from hllm_jax.models.families import presets
from hllm_jax.testing.models import tiny_config
from tests.models.published import PARAMETERS


@pytest.mark.parametrize("name", ["book-82m", "book-215m", "llama-2-7b"])
def test_the_closed_form_counts_the_parameters_that_are_made(name: str) -> None:
    shapes = parameter_shapes(presets()[name])
    assert sum(math.prod(shape) for shape in shapes.values()) == PARAMETERS[name]


def test_the_books_mlp_sizes() -> None:
    assert DecoderConfig().mlp_size == 2048
    assert presets()["book-215m"].mlp_size == 2752
    assert presets()["book-215m"].layer_parameters() == 11_601_920


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"heads": 4, "kv_heads": 3}, "kv_heads", "4 heads cannot share 3 kv heads"),
        ({"head_dim": None, "embed": 30, "heads": 4}, "heads", "embed 30 is no multiple of 4 heads"),
        ({"head_dim": 5}, "head_dim", "5 is odd"),
        (
            {"layers": 3, "attention_pattern": ("full", "window"), "window": 4},
            "attention_pattern",
            "period of 2",
        ),
        ({"attention_pattern": ("window",)}, "window", "say how many tokens"),
        ({"window": 4}, "window", "not used"),
        ({"attention_pattern": ()}, "attention_pattern", "period of 0"),
        ({"layers": 0}, "layers", "at least 1"),
        ({"dropout": 1.0}, "dropout", "below 1"),
        ({"logit_softcap": 0.0}, "logit_softcap", "positive"),
        ({"rope_theta": -1.0}, "rope_theta", "positive"),
    ],
)
def test_impossible_specs_are_refused_by_field(changes: dict, field: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        tiny_config(**changes)
    assert any(name == field and says in message for name, message in caught.value.problems)


def test_all_wrong_sizes_are_named_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        DecoderConfig(layers=0, vocab_size=-1, dropout=2.0)
    assert [name for name, _ in caught.value.problems] == ["layers", "dropout", "vocab_size"]


def test_a_spec_survives_yaml(tmp_path) -> None:
    spec = tiny_config(attention_pattern=("full", "window"), window=8, logit_softcap=30.0)
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml(spec))
    assert load_config(DecoderConfig, path) == spec


def test_flops_per_token_of_one_layer_worked_by_hand() -> None:
    spec = DecoderConfig(
        vocab_size=10, layers=1, embed=4, heads=2, kv_heads=1, head_dim=2, mlp=8, max_length=8
    )
    matrices = 4 * 4 + 2 * (4 * 2) + 4 * 4 + 3 * 4 * 8 + 4 * 10
    # Queries of a row of 3 see 1, 2 and 3 keys: 2 on average; two products of 2 heads × 2.
    assert spec.flops_per_token(3) == 6 * matrices + 12 * 2 * 2 * 2
    assert spec.flops_per_token(3, frozen=True) == 4 * matrices + 12 * 2 * 2 * 2
    windowed = dataclasses.replace(spec, attention_pattern=("window",), window=1)
    assert windowed.flops_per_token(3) == 6 * matrices + 12 * 2 * 2 * 1


def test_a_model_section_says_exactly_one_source() -> None:
    with pytest.raises(Invalid, match="exactly one"):
        ModelConfig()
    with pytest.raises(Invalid, match="load and preset given"):
        ModelConfig(load="x", preset="book-82m")
    with pytest.raises(Invalid, match="nearest: 'book-82m'"):
        ModelConfig(preset="book-83m")


def test_a_fresh_model_takes_the_vocabulary_of_the_tokenizer() -> None:
    section = ModelConfig(preset="book-82m", max_length=1024, dropout=0.1)
    spec = section.spec(vocab_size=500)
    assert (spec.vocab_size, spec.max_length, spec.dropout) == (500, 1024, 0.1)
    assert section.spec().vocab_size == 6144


def test_a_loaded_model_must_have_a_row_for_every_id() -> None:
    section = ModelConfig(load="somewhere")
    loaded = tiny_config()
    assert section.spec(vocab_size=60, loaded=loaded) == loaded
    with pytest.raises(ValueError, match="68 ids, somewhere has 67 embeddings"):
        section.spec(vocab_size=68, loaded=loaded)
    with pytest.raises(ValueError, match="read_config"):
        section.spec(vocab_size=60)


def test_configs_are_read_without_jax() -> None:
    code = "import sys, hllm_jax.models as m; m.ModelConfig(preset='book-82m'); print('jax' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
