"""Preparing a file larger than the allowed memory: resident memory stays flat."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

MEASURE = textwrap.dedent("""
    import sys
    from hllm_jax.data import Batches, DataConfig, SourceConfig, prepare
    from hllm_jax.testing.tokenizer import ByteTokenizer
    from hllm_jax.training.metrics import peak_resident

    class Short(ByteTokenizer):
        def encode(self, text):  # a token for 64 bytes: the reading is measured, not this double
            return [5 + byte for byte in text.encode()[::64]]

    def peak():
        return peak_resident() / 2**20

    source = SourceConfig(path=sys.argv[1])
    marks = []
    config = DataConfig(sources=(source,), holdout=0.0)
    data = prepare(config, Short(), progress=lambda label, done: marks.append(peak()))
    batches = Batches(data, 8, 128, 0, epochs=1)
    for n in range(0, len(batches), max(1, len(batches) // 50)):
        batches[n]
    print(marks[len(marks) // 10], marks[-1], peak())
""")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "txt"])
def test_memory_stays_flat_over_a_large_file(tmp_path, kind):
    size = 2**30 if kind == "jsonl" else 2**27
    path = tmp_path / f"large.{kind}"
    text = "A line of a large file, 大文件中的一行. " * 60
    record = f"{text}\n\n" if kind == "txt" else f'{{"text": "{text}"}}\n'
    separator = "," if kind == "json" else ""
    with path.open("w", encoding="utf-8") as file:
        file.write("[" if kind == "json" else "")
        for number in range(size // len(record.encode())):
            file.write((separator if number else "") + record)
        file.write("]" if kind == "json" else "")
    measure = MEASURE
    if kind == "txt":
        measure = measure.replace("path=sys.argv[1]", 'path=sys.argv[1], documents="blank_line"')
    result = subprocess.run(
        [sys.executable, "-c", measure, str(path)], capture_output=True, text=True, check=True
    )
    early, late, after = map(float, result.stdout.split())
    assert late - early < 40, (early, late, after)
    assert after - early < 120, (early, late, after)
    assert after < 600
