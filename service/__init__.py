"""An appointment service for JSON API clients: one true schedule for each organisation."""

from pathlib import Path

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent
