"""Count what the five rules of the house are about. ``python tests/house/survey.py [JOB]`` prints it."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import median

SOURCE = Path(__file__).parents[2] / "src" / "mintage"
GROUND = {"mintage.errors", "mintage.files", "mintage.catalog", "mintage.options", "mintage.progress", "mintage"}
"""What every file may stand on without being counted as something to read."""

JOBS = ("draft", "keep", "reduce", "segment", "retrofit", "lm", "codec", "embed", "perceive", "audit")
HOUSE = {"__init__", "contract", "baselines"}
"""Names that every job has; what stands beside them is a method."""

CORPORA = ("data_file", "Corpus")
OPENERS = {"segment", "train"}
"""Verbs whose arguments are the user's own texts."""


def name_of(path: Path) -> str:
    parts = ("mintage", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@cache
def imports(name: str) -> frozenset[str]:
    """Modules of mintage that a module imports, anywhere in it."""
    known, found = modules(), set()
    for node in ast.walk(tree(known[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner} if inner in known else {node.module} & known.keys()
    return frozenset(found - {name})


def reached(name: str) -> set[str]:
    """Modules that someone has to enter to understand `name`, front doors and the ground not counted."""
    seen, open_ = set(), [name]
    while open_:
        for other in imports(open_.pop()) - GROUND:
            door = modules()[other].name == "__init__.py"
            if other not in seen and not door:
                seen.add(other)
                open_.append(other)
    return seen - {name}


def methods(*jobs: str) -> list[Path]:
    """Files of methods: what stands in a job's folder beside the names that all jobs have."""
    return [p for job in jobs or JOBS for p in sorted((SOURCE / job).glob("*.py")) if p.stem not in HOUSE]


def papers() -> list[str]:
    """Modules of the published methods that are built, as their rows name them."""
    sys.path.insert(0, str(SOURCE.parent))
    from mintage import catalog

    return [row.entry.partition(":")[0] for row in catalog.methods(role="paper") if row.entry]


def long_functions(most: int = 8) -> list[str]:
    """Functions outside core rooms that take more parameters than that."""
    found = []
    for name, path in modules().items():
        if ".core" in name:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                count = len([x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")])
                if count > most:
                    found.append(f"{name}.{node.name} ({count})")
    return found


def circles() -> list[list[str]]:
    """Groups of modules that import each other, by way of others or not (Tarjan's strong components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in imports(name):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for name in modules():
        if name not in index:
            visit(name)
    return found


def impure_studies() -> list[str]:
    """Studies that do what a runner does: rows, verdicts, files, resume."""
    words = ("Result(", '"holds"', "open(", "read_jsonl", "append_line", "Memo(", "write_text")
    files = sorted((SOURCE / "studies").glob("*.py"))
    return [f"{p.stem}: {word}" for p in files for word in words if word in p.read_text(encoding="utf-8")]


def corpus_openers() -> list[str]:
    """Places outside `mintage.data` that open a corpus that mintage knows by name."""
    rooms = ("mintage.data",)
    found = []
    for name, path in modules().items():
        if name.startswith(rooms):
            continue
        found += [name for node in ast.walk(tree(path)) if isinstance(node, ast.Name) and node.id == "data_file"]
    return sorted(set(found))


def repeated_names() -> dict[str, list[str]]:
    """Public classes and functions whose name stands in several modules."""
    where: dict[str, list[str]] = defaultdict(list)
    for name, path in modules().items():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                where[node.name].append(name)
    return {name: places for name, places in sorted(where.items()) if len(places) > 1}


def survey() -> dict[str, float]:
    """All numbers, by name."""
    files = methods()
    studies = [p for p in (SOURCE / "studies").glob("*.py") if p.stem != "__init__"]
    trainings = [p for p in SOURCE.glob("*/training/*.py") if p.stem != "__init__"]
    return {
        "source lines": sum(map(lines, modules().values())),
        "method files over 300 lines": sum(lines(p) > 300 for p in files),
        "median method file": median(map(lines, files)),
        "studies over 150 lines": sum(lines(p) > 150 for p in studies),
        "median study": median(map(lines, studies)),
        "trainings over 150 lines": sum(lines(p) > 150 for p in trainings),
        "median training": median(map(lines, trainings)),
        "functions with more than 8 parameters": len(long_functions()),
        "import circles": len(circles()),
        "median of modules reached by a paper's method": median(len(reached(name)) for name in papers()),
        "studies that do a runner's work": len(impure_studies()),
        "corpora opened outside mintage.data": len(corpus_openers()),
        "public names that stand in several modules": len(repeated_names()),
    }


if __name__ == "__main__":
    jobs = sys.argv[1:]
    for key, value in survey().items():
        print(f"{value:>8g}  {key}")
    for path in methods(*jobs):
        name = name_of(path)
        print(f"{lines(path):>8}  {name}: reaches {len(reached(name))}")
    print("circles:", *circles(), sep="\n  ")
    print("many parameters:", *long_functions(), sep="\n  ")
    print("opens a corpus:", *corpus_openers(), sep="\n  ")
    print("repeated names:", *(f"{k}: {', '.join(v)}" for k, v in repeated_names().items()), sep="\n  ")
