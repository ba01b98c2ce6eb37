"""The number of laws that run may not fall unnoticed.

``python tests/contract/test_count.py --update`` writes the present number; commit it with the method or law that
changed it.
"""

import ast
import importlib.util
import inspect
import json
import sys
from collections import Counter
from pathlib import Path

from mintage import catalog
from mintage.testing import laws

HERE = Path(__file__).parent
STORE = HERE / "law_count.json"
UPDATE = "python tests/contract/test_count.py --update"


def counted() -> dict[str, dict[str, int]]:
    """Count, per job and method, the cases that pytest would make of test_laws.py; plug-ins do not count."""
    spec = importlib.util.spec_from_file_location("laws_as_collected", HERE / "test_laws.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = {m.name for m in catalog.methods() if m.package == "mintage"}
    jobs = {}
    for name, function in inspect.getmembers(module, inspect.isfunction):
        for mark in getattr(function, "pytestmark", ()):
            ids = [case.id.rsplit("-", 1)[0] for case in mark.args[1]]
            jobs[name.removeprefix("test_")] = dict(Counter(i for i in ids if i in own))
    return jobs


def test_no_law_was_lost():
    stored, now = json.loads(STORE.read_text()), counted()
    for job, methods in stored.items():
        for method, number in methods.items():
            found = now.get(job, {}).get(method, 0)
            assert found >= number, f"{job}: {method} runs {found} laws, it ran {number}; if that is meant: {UPDATE}"
    assert now == stored, f"more laws run than law_count.json says; write it: {UPDATE}"


def test_every_law_runs_over_every_ready_method():
    now = counted()
    for job in catalog.JOBS:
        ready = [m for m in catalog.methods(job) if m.status == "ready" and m.package == "mintage"]
        wanted = {m.name: len(laws(job, m.load())) for m in ready} if laws(job) else {}
        assert now.get(job, {}) == wanted, f"tests/contract/test_laws.py does not run the {job} contract"


def test_a_ready_method_has_a_contract():
    for job in catalog.JOBS:
        if any(m.status == "ready" for m in catalog.methods(job)):
            assert laws(job), f"{job} has ready methods and no laws"


def test_no_law_skips_itself():
    for job in catalog.JOBS:
        for law in laws(job).values():
            called = {
                ast.unparse(n.func) for n in ast.walk(ast.parse(inspect.getsource(law))) if isinstance(n, ast.Call)
            }
            assert not {c for c in called if "skip" in c or "xfail" in c}, f"{job}: {law.__name__} may skip itself"


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(f"usage: {UPDATE}")
    STORE.write_text(json.dumps(counted(), indent=2) + "\n")
    print(f"wrote {STORE}")
