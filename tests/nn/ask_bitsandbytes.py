"""What `bitsandbytes` makes of weights: NF4 with double quantisation, and back; in the peers environment.

ask_bitsandbytes.py FOLDER      reads FOLDER/*.npy `[I, O]`, writes FOLDER/*.npz: `weight`, and `map`
"""

from __future__ import annotations

import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

for path in sorted(Path(sys.argv[1]).glob("*.npy")):
    # Its weights are [O, I], and blocks run along a row.
    matrix = torch.from_numpy(np.load(path).T.copy())
    codes, state = bnb.quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")
    weight = bnb.dequantize_4bit(codes, state).numpy().T
    np.savez(path.with_suffix(".npz"), weight=weight, map=bnb.create_dynamic_map().numpy())
