"""Models, data and metrics that many papers share; one module or folder per bench."""

from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "data"
CHECKPOINTS = DATA / "checkpoints"
