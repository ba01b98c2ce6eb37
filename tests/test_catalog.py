"""The catalogue: its rows, specs, and what looking at it costs."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mintage import catalog
from mintage.catalog import Method
from mintage.errors import UserError

ROWS = [row for job in catalog.JOBS for row in importlib.import_module(f"mintage.{job}").METHODS]
READY = [row for row in ROWS if row.status == "ready"]
READY_IDS = [row.name for row in READY]

HEAVY = {"torch", "transformers", "tokenizers", "pandas", "plotly", "scipy", "accelerate", "datasets"}


# -- rows ----------------------------------------------------------------------------------------------------------


def test_the_catalogue_holds_the_46_papers():
    assert len([row for row in ROWS if row.role == "paper"]) == 46


def test_names_and_papers_are_unique():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    papers = [row.arxiv for row in ROWS if row.role == "paper"]
    assert len(set(papers)) == len(papers)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_row_is_well_formed(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.name)
    assert row in importlib.import_module(f"mintage.{row.job}").METHODS
    for text in (row.title, row.summary, row.claim):
        assert text == " ".join(text.split()), "stray white space"
    assert row.title
    assert row.summary.endswith(".")
    assert len(row.summary) <= 120
    if row.role == "paper":
        assert re.fullmatch(r"\d{4}\.\d{4,5}", row.arxiv)
        assert row.year == 2000 + int(row.arxiv[:2])
        assert row.claim.endswith(".")
    if row.arxiv:
        assert 1 <= int(row.arxiv[2:4]) <= 12


CALLED = {"lib": "less_is_better"}
"""Files whose name says more than the method's short one; a file called lib reads as a library."""


@pytest.mark.parametrize("row", READY, ids=READY_IDS)
def test_a_ready_method_stands_where_its_row_says(row):
    module, _, name = row.entry.partition(":")
    assert module.startswith(f"mintage.{row.job}.")
    if row.role == "paper":
        assert module.rpartition(".")[2] == CALLED.get(row.name, row.name.replace("-", "_"))
    cls = row.load()
    assert cls.__module__ == module, "the entry names where the class is defined"
    front = importlib.import_module(f"mintage.{row.job}")
    assert getattr(front, name) is cls, f"mintage.{row.job} does not offer {name}"
    assert name in dir(front)


@pytest.mark.parametrize("row", READY, ids=READY_IDS)
def test_a_ready_method_has_settings_in_a_documented_frozen_dataclass(row):
    """Its own; those of a model of transformers are its training's."""
    assert row.load().__doc__
    assert row.load().__name__ in sys.modules[row.load().__module__].__all__
    cls = row.load_settings()
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__
    parameters = cls.__doc__.partition("Parameters\n")[2]
    helped = {field.name for field in dataclasses.fields(cls) if field.metadata.get("help")}
    for name in catalog.hyperparameters(cls).keys() - helped:  # an option says itself what it is
        if re.search(rf'^    {name}: .*\n    """', inspect.getsource(cls), re.MULTILINE):  # told below the field
            continue
        # a line of names, alone or with others: "top_k, top_p"
        assert re.search(rf"^ *(\w+, )*{name}(, \w+)*$", parameters, re.MULTILINE), f"{name} is not in the docstring"
    module = sys.modules[cls.__module__]
    assert module.__doc__
    assert cls.__name__ in module.__all__


@pytest.mark.parametrize("row", READY, ids=READY_IDS)
def test_a_ready_method_has_a_tiny_instance(row):
    cls = row.load()
    tiny = cls.tiny()
    assert type(tiny) is cls
    assert cls.tiny() is not tiny


def test_every_job_says_what_it_is():
    for job in catalog.JOBS:
        assert re.fullmatch(r"[A-Z].{10,110}\.", catalog.job_summary(job))


# -- what looking costs --------------------------------------------------------------------------------------------


def loaded_by(code):
    """Return the modules that a fresh interpreter has loaded after `code`."""
    ends = f"{code}\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", ends], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


def run_cli(*arguments):
    return f"""
import sys
sys.argv = ["mintage", *{arguments!r}]
from mintage.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import mintage",
        "from mintage import catalog; assert len(catalog.methods(role='paper')) == 46",
        "import mintage.draft; dir(mintage.draft)",
        "import mintage.measure; dir(mintage.measure)",
        run_cli("methods"),
        run_cli("methods", "--job", "draft", "--json"),
        run_cli("--help"),
        run_cli("generate", "--help"),
        run_cli("bench", "--help"),
    ],
    ids=["mintage", "catalog", "draft", "measure", "methods", "methods-json", "help", "generate-help", "bench-help"],
)
def test_looking_loads_nothing_heavy(code):
    modules = loaded_by(code)
    assert not modules & HEAVY, f"see who loads it: python -X importtime -c {code!r}"
    assert len(modules) < 700, f"{len(modules)} modules; see: python -X importtime -c {code!r}"


# -- finding -------------------------------------------------------------------------------------------------------


def test_methods_are_filtered_by_job_and_role():
    assert {m.job for m in catalog.methods("draft")} == {"draft"}
    assert {m.role for m in catalog.methods(role="baseline")} == {"baseline"}
    assert catalog.methods("draft", role="combinator") == [catalog.find("union")]


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown job 'drift'; did you mean 'draft'\?"):
        catalog.methods("drift")
    with pytest.raises(UserError, match=r"unknown method 'dispec'; did you mean 'dyspec'\?"):
        catalog.find("dispec")


def test_a_method_of_another_job_is_refused():
    with pytest.raises(UserError, match="pitome belongs to the reduce job, not to draft; draft has: token-recycling"):
        catalog.find("pitome", "draft")


def test_a_planned_method_says_what_is_ready_instead():
    row = Method(name="later", job="draft", title="Later")
    assert row.status == "planned"
    with pytest.raises(UserError, match="later is not built yet; ready in its job: token-recycling"):
        row.load()


def test_a_front_door_suggests_names():
    import mintage.draft

    with pytest.raises(AttributeError, match="did you mean 'TokenRecycling'"):
        mintage.draft.TokenRecyclin  # noqa: B018


# -- specs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Toy:
    """One field of every kind that a spec can write, and one that it cannot."""

    model: object
    count: int = 1
    share: float = 0.5
    wide: bool = False
    mode: Literal["row", "rank"] = "row"
    budget: int | Literal["auto"] = "auto"
    shape: tuple[int, ...] = (2, 2)
    store: str | None = None


@pytest.fixture
def toy(monkeypatch):
    rows = {"toy": Method(name="toy", job="draft", title="Toy", entry=f"{__name__}:Toy")}
    monkeypatch.setattr(catalog, "_discover", lambda: rows)


def build(spec, **given):
    return catalog.build(spec, "draft", **{"model": "a model"} | given)


SPEC_NAMES = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True)
KEYS = st.from_regex(r"[a-z]+(_[a-z]+)*", fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters=",", exclude_categories=("Z", "C")))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(SPEC_NAMES, st.dictionaries(KEYS, TEXTS))
def test_a_spec_is_split_as_it_was_joined(name, settings):
    spec = name + ":" * bool(settings) + ",".join(f"{key}={text}" for key, text in settings.items())
    assert catalog.parse_spec(spec) == (name, settings)


@given(SPEC_NAMES, st.dictionaries(KEYS, TEXTS))
def test_dashes_and_spaces_in_a_spec_do_not_matter(name, settings):
    pairs = (f" {key.replace('_', '-')} = {text} " for key, text in settings.items())
    assert catalog.parse_spec(f" {name} :{','.join(pairs)}") == (name, settings)


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(UserError, match=r"'budget' is not key=value; write e\.g\. toy:budget=8"):
        catalog.parse_spec("toy:budget")


@given(
    count=st.integers(),
    share=st.floats(allow_nan=False, allow_infinity=False),
    wide=st.booleans(),
    mode=st.sampled_from(["row", "rank"]),
    budget=st.one_of(st.integers(), st.just("auto")),
    shape=st.lists(st.integers(), min_size=1).map(tuple),
    store=st.one_of(st.none(), st.from_regex(r"[a-z/.]+", fullmatch=True).filter(lambda s: s != "none")),
)
def test_what_a_spec_writes_is_what_is_built(count, share, wide, mode, budget, shape, store):
    rows = {"toy": Method(name="toy", job="draft", title="Toy", entry=f"{__name__}:Toy")}
    wanted = Toy(
        model="a model", count=count, share=share, wide=wide, mode=mode, budget=budget, shape=shape, store=store
    )
    values = {f.name: getattr(wanted, f.name) for f in dataclasses.fields(Toy) if f.name != "model"}
    values["shape"] = "x".join(map(str, shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_discover", lambda: rows)
        assert build("toy:" + ",".join(f"{key}={value}" for key, value in values.items())) == wanted


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("toi", "unknown method 'toi'; did you mean 'toy'?"),
        ("toy:cuont=3", "toy has no setting 'cuont'; did you mean 'count'?"),
        ("toy:count=three", "toy: count='three' is not int"),
        ("toy:count=3.5", "toy: count='3.5' is not int"),
        ("toy:share=half", "toy: share='half' is not float"),
        ("toy:wide=perhaps", "toy: wide='perhaps' is not bool"),
        ("toy:mode=column", "toy: mode='column' is not one of row, rank"),
        ("toy:shape=2xtwo", "toy: shape='2xtwo' is not "),
        ("toy:budget=most", "toy: budget='most' is not "),
        ("toy:model=x", "toy: model='x' is not object"),
    ],
)
def test_a_bad_spec_is_told_in_one_line(spec, message):
    with pytest.raises(UserError) as caught:
        build(spec)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("toy")
def test_objects_are_given_and_written_settings_win():
    assert build("toy:count=2", count=5, unknown="ignored") == Toy(model="a model", count=2)
    with pytest.raises(UserError, match="toy needs model"):
        catalog.build("toy", "draft")


@pytest.mark.parametrize("row", READY, ids=READY_IDS)
def test_a_spec_can_write_every_default_of_a_ready_method(row):
    """Numbers, texts and choices; what is given as an object (a model, other drafters) is not written."""
    for name, (kind, default) in catalog.hyperparameters(row.load_settings()).items():
        if isinstance(default, bool | int | float | str):
            assert catalog._read(row.name, name, str(default), kind) == default
        elif isinstance(default, tuple) and default and all(isinstance(part, int | float) for part in default):
            assert catalog._read(row.name, name, "x".join(map(str, default)), kind) == default


def test_a_job_is_no_method():
    with pytest.raises(UserError, match=r"^keep is a job, not a method; its methods: .*double-sparsity"):
        catalog.build("keep", "draft")


def test_benches_are_named_without_being_loaded():
    for job, entry in catalog.benches().items():
        assert job in catalog.JOBS
        assert entry.startswith(f"mintage.bench.{job}.")
