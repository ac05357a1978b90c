"""What tests take from benchmarks/, whose scripts find each other only in their own folder."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from helpers.children import TESTS


def benchmark_module(name: str) -> ModuleType:
    """Return a file of benchmarks/ as a module; it may import nothing else from that folder."""
    spec = importlib.util.spec_from_file_location(name, TESTS.parent / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
