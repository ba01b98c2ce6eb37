"""torch.compile sees one graph, in a process without run-time checks of shapes."""

from pathlib import Path


def test_reducers_compile_without_a_graph_break(run_apart):
    run_apart(Path(__file__).with_name("compiled_cases.py"))
