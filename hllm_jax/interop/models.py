"""Published models as ours: the architecture, the parameters and the tokenizer out of one file or folder."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from flax.traverse_util import unflatten_dict

from hllm_jax.config.declare import Invalid
from hllm_jax.interop.gguf import GGUF
from hllm_jax.interop.hf import CONFIG, WEIGHTS, HFFolder
from hllm_jax.interop.meta import open_meta
from hllm_jax.interop.registry import Source, resolve
from hllm_jax.interop.safetensors import write_safetensors
from hllm_jax.models.families import Family, families
from hllm_jax.models.families.forms import Same
from hllm_jax.models.families.llama_meta import META_NAMES, from_params
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import row
from hllm_jax.models.layout import flat_unrolled, parameter_shapes, stacked_path
from hllm_jax.models.spec import DecoderConfig, Spec
from hllm_jax.tokenizers.errors import NoTokenizer

if TYPE_CHECKING:
    from hllm_jax.models.families.forms import Shape
    from hllm_jax.models.families.table import Table, Tensors
    from hllm_jax.tokenizers.tokenizer import Tokenizer


#: What the name of a class of `transformers` ends with whose models give a text a number, or a class.
CLASSIFIER = "ForSequenceClassification"
_LANGUAGE_MODEL = re.compile(r"(ForCausalLM|LMHeadModel)$")


class UnreadableModel(ValueError):
    """A model of a kind that is not read here, or whose parts do not fit together."""


class PublishedModel(NamedTuple):
    """What `read_model` returns.

    Attributes:
        config: the architecture.
        params: the tree under `params`, NumPy arrays.
        tokenizer: of the model; None where its folder holds none.
    """

    config: Spec
    params: dict[str, Any]
    tokenizer: Tokenizer | None


@dataclasses.dataclass(frozen=True)
class Opened:
    """A published model, opened but for its weights.

    Attributes:
        config: the architecture.
        table: names of its format.
        tensors: of the checkpoint.
        tokenizer: reads the tokenizer; `NoTokenizer` where there is none.
    """

    config: Spec
    table: Table
    tensors: Tensors
    tokenizer: Callable[[], Tokenizer]


def read_config(model: str | os.PathLike[str] | Source) -> Spec:
    """The architecture of a published model; its weights are not read.

    Args:
        model: a Hugging Face folder, a GGUF file, LLaMA in Meta's names or a registered name (fetched if it
            is not there yet).

    Raises:
        UnreadableModel: a run or checkpoint (read those with `hllm_jax.training`), or an unknown family.
        ValueError: the files are damaged, or ask for what this decoder does not do.
    """
    return _open(model).config


def read_tokenizer(model: str | os.PathLike[str] | Source) -> Tokenizer:
    """The tokenizer of a published model; its weights are not read. Arguments and errors as `read_config`.

    Raises:
        NoTokenizer: the folder holds none.
    """
    return _open(model).tokenizer()


#: Puts a parameter, by its path in the tree that is built, where it belongs: `(path, array) -> leaf`.
Place: TypeAlias = Callable[[str, np.ndarray], Any]


class OpenModel(NamedTuple):
    """What `open_model` returns: all but the weights, and how to read them.

    Attributes:
        config: the architecture.
        tokenizer: of the model; None where its folder holds none.
        read: `(scan_layers, place) -> tree`, see `read_params`.
    """

    config: Spec
    tokenizer: Tokenizer | None
    read: Callable[[bool, Place | None], dict[str, Any]]


def open_model(model: str | os.PathLike[str] | Source) -> OpenModel:
    """A published model, its weights not yet read. Arguments and errors as `read_model`."""
    opened = _open(model)
    try:
        tokenizer = opened.tokenizer()
    except NoTokenizer:
        tokenizer = None
    if tokenizer is not None and tokenizer.vocab_size > opened.config.vocab_size:
        raise UnreadableModel(
            f"{opened.tensors.where}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only "
            f"{opened.config.vocab_size} rows"
        )

    def read(scan_layers: bool, place: Place | None) -> dict[str, Any]:
        return read_params(opened.table, opened.tensors, opened.config, scan_layers, place=place)

    return OpenModel(opened.config, tokenizer, read)


def read_model(
    model: str | os.PathLike[str] | Source,
    *,
    scan_layers: bool = False,
) -> PublishedModel:
    """Read a published model, one tensor at a time.

    Args:
        model: see `read_config`.
        scan_layers: parameters stacked for the scan instead of one subtree per layer.

    Raises:
        TensorsError: tensors are missing, not known or of another shape; all are named.
        UnreadableModel, ValueError: see `read_config`; or the tokenizer has more ids than the embedding rows.
    """
    opened = open_model(model)
    return PublishedModel(opened.config, opened.read(scan_layers, None), opened.tokenizer)


def read_params(
    table: Table,
    tensors: Tensors,
    config: Spec,
    scan_layers: bool = False,
    param_dtype: Any = np.float32,
    place: Place | None = None,
) -> dict[str, Any]:
    """The parameter tree of an open checkpoint, read one tensor after another.

    Beside what `place` keeps, no more is held than the parameter that is being read (all layers of it, where
    they are stacked), and one tensor of the file.

    Args:
        table: names of its format.
        tensors: the open checkpoint.
        config: the architecture.
        scan_layers: parameters stacked for the scan instead of one subtree per layer.
        param_dtype: of the parameters; the file's values are rounded to it where it is narrower.
        place: is given every finished parameter, often a transposed view of the file, and returns the leaf of
            the tree (an array on its devices); None: a NumPy array.
    """
    put = place or _array
    period = len(config.attention_pattern)
    leaves: dict[str, Any] = {}
    shapes = parameter_shapes(config)
    depth = {path: stacked_path(path, period) for path in shapes} if scan_layers else {}
    missing = collections.Counter(path for path, index in depth.values() if index is not None)
    for path, array in table.load(tensors, shapes):
        stacked, index = depth.get(path, (path, None))
        if index is None:
            leaves[path] = put(path, np.asarray(array, param_dtype))
            continue
        if stacked not in leaves:
            leaves[stacked] = np.empty((missing[stacked], *array.shape), param_dtype)
        leaves[stacked][index] = array
        missing[stacked] -= 1
        if not missing[stacked]:
            leaves[stacked] = put(stacked, leaves[stacked])
    return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in leaves.items()})


def _array(path: str, array: np.ndarray) -> np.ndarray:
    """An array of its own, that a file may be closed under."""
    del path
    return np.array(array, order="C", copy=None if array.flags.owndata and array.flags.c_contiguous else True)


def save_hf(
    folder: str | os.PathLike[str],
    config: Spec,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    family: str | None = None,
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files, all that `transformers` loads.

    Args:
        folder: made if missing; files of these names are replaced.
        config: the architecture.
        params: the tree under `params`, stacked or not, in the dtype to be written.
        tokenizer: written too, if given.
        family: name of the page whose format it is; None: the first that can say the config.

    Raises:
        ValueError: the format cannot say what the config or the tree holds.
    """
    folder = Path(folder)
    if isinstance(config, DecoderConfig) and config.head == "both":
        raise ConfigRefused("head is 'both', and a class of transformers has logits or a score")
    scored = isinstance(config, DecoderConfig) and config.head == "score"
    said = dataclasses.replace(config, head="logits") if scored else config  # pyrefly: ignore
    page, published = export_page("to_hf", said, family)
    names = page.HF_NAMES
    if scored:
        names = with_score_row(names)
        published |= {
            "architectures": [_LANGUAGE_MODEL.sub(CLASSIFIER, name) for name in published["architectures"]],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        }
    flat = flat_unrolled(params)
    expect(flat, parameter_shapes(config))
    dtypes = {str(np.asarray(leaf).dtype) for leaf in flat.values()}
    if len(dtypes) == 1:
        published["dtype"] = published["torch_dtype"] = dtypes.pop()
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, names.save(flat))
    if tokenizer is not None:
        if scored:  # by which transformers finds the last token of a row
            published["pad_token_id"] = tokenizer.pad_id
        published["bos_token_id"], published["eos_token_id"] = tokenizer.bos_id, list(tokenizer.stop_ids)
        tokenizer.save(folder)
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG)


def _open(model: str | os.PathLike[str] | Source) -> Opened:
    source = model if isinstance(model, Source) else resolve(model)
    if source.kind in ("run", "checkpoint"):
        raise UnreadableModel(f"{source.name} is a {source.kind} of this system: load it with hllm_jax.load")
    path = source.fetch()
    kind = resolve(path).kind if source.kind == "registered" else source.kind
    return {"hf": _open_hf, "gguf": _open_gguf, "meta": _open_meta}[kind](path)


def _open_hf(path: Path) -> Opened:
    folder = HFFolder(path)
    page, spec = _read("HF_TYPES", folder.config.get("model_type"), folder.where, folder.config)
    spec = with_score_of(with_heads_of(page, spec, folder), folder)
    scored = isinstance(spec, DecoderConfig) and spec.head == "score"
    names = with_score_row(page.HF_NAMES) if scored else page.HF_NAMES
    return Opened(spec, names, folder, _tokenizer_in(path))


def _open_gguf(path: Path) -> Opened:
    file = GGUF(path)
    name = file.metadata.get("general.architecture")
    page, spec = _read("GGUF_ARCHITECTURES", name, file.where, file.metadata, file)

    def tokenizer() -> Tokenizer:
        from hllm_jax.tokenizers.gguf import from_gguf

        if "tokenizer.ggml.model" not in file.metadata:
            raise NoTokenizer(f"{file.where} has no metadata key 'tokenizer.ggml.model'")
        return from_gguf(file.metadata)

    return Opened(spec, page.GGUF_NAMES, file, tokenizer)


def _open_meta(path: Path) -> Opened:
    checkpoint = open_meta(path)
    try:
        with _naming(checkpoint.where):
            spec = from_params(checkpoint.params, checkpoint)
    except ConfigRefused as error:
        raise UnreadableModel(f"{checkpoint.where}: {error}") from error
    return Opened(spec, META_NAMES, checkpoint, _tokenizer_in(path if path.is_dir() else path.parent))


def _tokenizer_in(folder: Path) -> Callable[[], Tokenizer]:
    def tokenizer() -> Tokenizer:
        from hllm_jax.tokenizers.folder import load_tokenizer

        return load_tokenizer(folder)

    return tokenizer


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """What goes wrong while a published config is understood, with the name of its file."""
    try:
        yield
    except ConfigRefused:
        raise
    except Invalid as error:
        raise UnreadableModel(f"{where} describes an impossible model: {error}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise UnreadableModel(f"{where}: a value of its config has the wrong type: {error}") from error
    except ValueError as error:
        raise UnreadableModel(f"{where}: {error}") from error


def _read(kind: str, name: Any, where: str, *told: Any) -> tuple[Family, Spec]:
    """The page that understands a published config, and the spec it makes of it.

    Several pages may answer to one name (a llama with and without experts): the first that does not refuse.
    """
    answering = [page for page in families().values() if name in getattr(page, kind, ())]
    if not answering:
        known = sorted({known for page in families().values() for known in getattr(page, kind, ())})
        raise UnreadableModel(f"{where} is of the family {name!r}; known here: {', '.join(known)}")
    refusals: list[ConfigRefused] = []
    for page in answering:
        try:
            with _naming(where):
                return page, (page.from_hf if kind == "HF_TYPES" else page.from_gguf)(*told)
        except ConfigRefused as error:
            refusals.append(error)
    raise UnreadableModel(f"{where}: {refusals[0]}") from refusals[0]


def with_heads_of(page: Family, spec: Spec, tensors: Tensors) -> Spec:
    """The spec with the heads that a file has: often more, or fewer, than the class its config names."""
    heads = getattr(page, "HF_HEADS", {})
    if not heads:
        return spec
    names = page.HF_NAMES.named(tensors).shapes
    found: dict[str, Any] = {head: tensor in names for tensor, head in heads.items()}
    try:
        return dataclasses.replace(spec, **found)
    except Invalid as error:
        raise UnreadableModel(f"{tensors.where}: {error}") from error


def with_score_of(spec: Spec, folder: HFFolder) -> Spec:
    """The spec of a decoder with a head that gives a number, where its folder says that it has one.

    Raises:
        UnreadableModel: it has several classes.
    """
    told = (folder.config.get("architectures") or [""])[0]
    if not isinstance(spec, DecoderConfig) or not told.endswith(CLASSIFIER):
        return spec
    classes = len(folder.config.get("id2label") or (0, 1))
    if classes != 1:
        raise UnreadableModel(
            f"{folder.where} is a {told} of {classes} classes: of decoders only a score is read, num_labels=1"
        )
    return dataclasses.replace(spec, head="score")


def with_score_row(names: Table) -> Table:
    """The names of a family's tensors, and that of the head of its `…ForSequenceClassification`."""
    return dataclasses.replace(names, rows=(*names.rows, row("score.weight", "score", Same(lead=1))))


def export_page(way: str, config: Spec, family: str | None) -> tuple[Family, dict[str, Any]]:
    """The page that can say a spec in its format (`to_hf` or `to_gguf`), and what it says."""
    pages = families() if family is None else {family: families()[family]}
    refusals: list[str] = []
    for name, page in pages.items():
        if not hasattr(page, way) or type(config) not in {type(spec) for spec in page.PRESETS.values()}:
            continue
        try:
            return page, getattr(page, way)(config)
        except ConfigRefused as error:
            refusals.append(f"{name}: {error}")
    said = "\n  ".join(refusals) or f"no family is a {config.architecture} there"
    raise ConfigRefused(f"no format of {', '.join(pages)} can say this model:\n  {said}")


def expect(found: Mapping[str, Any], wanted: Mapping[str, Shape]) -> None:
    """Refuse parameters by path that are not those of an architecture, naming the first twenty."""
    wrong = [f"missing {path}" for path in wanted if path not in found]
    wrong += [f"not of this model: {path}" for path in found if path not in wanted]
    wrong += [
        f"{path}: expected {list(shape)}, found {list(found[path].shape)}"
        for path, shape in wanted.items()
        if path in found and tuple(found[path].shape) != shape
    ]
    if wrong:
        raise UnreadableModel("the parameters do not fit the config: " + "; ".join(wrong[:20]))
