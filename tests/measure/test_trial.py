import pytest

from mintage.measure import Trial


def made(folder, told=None, **definition):
    return Trial(
        "ems",
        job="keep",
        model="m",
        seed=1,
        command="mintage bench ems",
        definition=definition,
        total=4,
        progress=(lambda *step: told.append(step)) if told is not None else lambda *_: None,
        work=folder / "work",
    )


def test_arms_rotate_and_values_come_by_arm(tmp_path):
    told, order = [], []

    def measure(arm, unit):
        order.append((arm, unit))
        return arm * unit

    found = made(tmp_path, told).each("product", {"u": 2, "v": 3}, {"a": 10, "b": 100}, measure)
    assert found == {"a": [20, 30], "b": [200, 300]}
    assert order == [(10, 2), (100, 2), (100, 3), (10, 3)]
    assert [step[:2] for step in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[0][2] == "product: a"


def test_a_killed_run_goes_on_under_the_same_definition(tmp_path):
    measured = []

    def measure(arm, unit):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(unit)
        return unit

    units, arms = {"u": 2, "v": 3}, {"a": 1, "b": 2}
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path).each("x", units, arms, measure)
    del measured[:1]
    assert made(tmp_path).each("x", units, arms, measure) == {"a": [2, 3], "b": [2, 3]}
    assert len(measured) == 3
    measured.clear()
    with pytest.raises(KeyboardInterrupt):  # all over again
        made(tmp_path, size=2).each("x", units, arms, measure)


def test_rows_share_what_the_run_is(tmp_path):
    trial = made(tmp_path)
    row = trial.result(metric="x", value=1.0, unit="x", higher_is_better=True)
    assert (row.method, row.job, row.model, row.seed, row.command) == ("ems", "keep", "m", 1, "mintage bench ems")
    assert trial.result(method="h2o", metric="x", value=1.0, unit="x", higher_is_better=True).method == "h2o"
    figure = trial.figure(
        name="f", title="t", caption="c", kind="bars", data={"y_label": "y", "categories": [], "series": []}
    )
    assert (figure.job, figure.method) == ("keep", "ems")
