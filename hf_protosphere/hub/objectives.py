"""What each objective is, in words: for cards and tables. `losses.py` computes them."""

from pathlib import Path

import yaml

WORDS = yaml.safe_load(Path(__file__).with_name("objectives.yaml").read_text(encoding="utf-8"))
