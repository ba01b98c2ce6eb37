"""A killed bench goes on: nothing is asked twice, and hot drafters know what they would have known."""

import dataclasses
import json

import pytest

from mintage.bench.draft.arms import COLD, GENERATE, default_arms
from mintage.bench.draft.joint import DraftBench
from mintage.bench.draft.journal import Journal
from mintage.bench.draft.run import DraftRun
from mintage.data import Prompt
from mintage.draft.core.loop import Stats
from mintage.models import load_causal_lm

HOT = "token-recycling"
UNION = "token-recycling:budget=8+prompt-lookup+budget=8"
SPECS = [HOT, COLD, UNION]
PROMPTS = [Prompt(f"p{i}", "chat", (f"the tide {i}",)) for i in range(3)]
ARMS = len(SPECS) + 2  # with transformers' two
NEW = 16
WARM = 8  # tokens of the prompt that warms an arm up


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_causal_lm(tiny_folder, dtype="float32")


class Spied:
    """A run whose questions are counted, and which dies after so many answers."""

    def __init__(self, lm, work=None, die_after=None, specs=SPECS):
        self.asked, self.answered, self.die_after = [], 0, die_after
        arms = {arm.name: self._spy(arm) for arm in default_arms(lm, specs, assisted=False)}
        self.run = DraftRun(lm, PROMPTS, arms, max_new_tokens=NEW)
        journal = None if work is None else Journal(work, {"arms": specs})
        if die_after is None:
            self.run.measure(self._step, journal)
        else:
            with pytest.raises(Killed):
                self.run.measure(self._step, journal)

    def _spy(self, arm):
        def decode(ids, *rest):
            if ids.shape[1] != WARM:
                self.asked.append(arm.name)
            return arm.decode(ids, *rest)

        return dataclasses.replace(arm, decode=decode)

    def _step(self, stage, done, of):
        self.answered = done
        if self.answered == self.die_after:
            raise Killed

    @property
    def outcome(self):
        """Everything that no clock decides."""
        return {
            name: [(a.tokens, a.stats.rounds, a.stats.tree_nodes, a.stats.accepted) for a in m.answers]
            for name, m in self.run.measurements.items()
        }


@pytest.fixture(scope="module")
def whole(lm):
    return Spied(lm).outcome


def rounds(outcome, name):
    return sum(answer[1] for answer in outcome[name])


def test_what_was_learned_matters_here(whole):
    """Else the tests below could not tell a hot drafter that was put back from one that was not."""
    assert rounds(whole, HOT) < rounds(whole, COLD)
    assert whole[HOT][-1] != whole[COLD][-1]


@pytest.mark.parametrize("answers", [1, ARMS, 2 * ARMS + 3])
def test_a_killed_run_ends_as_if_it_had_not_been(lm, tmp_path, whole, answers):
    killed = Spied(lm, tmp_path, die_after=answers)
    again = Spied(lm, tmp_path)
    assert again.outcome == whole
    finished = answers // ARMS
    assert len(again.asked) == (len(PROMPTS) - finished) * ARMS
    assert again.answered == len(PROMPTS) * ARMS  # those taken over are told, too
    for name in (GENERATE, HOT):  # and are those of the first process, with its times
        mine, its = (run.run.measurements[name].answers[:finished] for run in (again, killed))
        assert [(a.tokens, a.seconds, a.stats) for a in mine] == [(a.tokens, a.seconds, a.stats) for a in its]


def test_a_run_can_be_killed_twice(lm, tmp_path, whole):
    Spied(lm, tmp_path, die_after=ARMS + 2)
    Spied(lm, tmp_path, die_after=2 * ARMS + 1)
    assert Spied(lm, tmp_path).outcome == whole


def test_tables_of_earlier_prompts_do_not_pile_up(lm, tmp_path):
    Spied(lm, tmp_path, die_after=2 * ARMS + 1)
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["after-2"]
    assert len(list((folder / "after-2").iterdir())) == 2  # the hot table's and the union's


def test_an_answer_torn_by_a_kill_is_asked_again(tmp_path):
    journal = Journal(tmp_path, {})
    journal.add("p0", "one", [1, 2], 0.5, Stats(rounds=2))
    journal.close_prompt("p0", [])
    journal.add("p1", "one", [3], 0.5, Stats(rounds=1))
    with (journal.folder / "answers.jsonl").open("a") as file:
        file.write('{"prompt": "p1", "arm": "tw')
    again = Journal(tmp_path, {})
    assert again.finished == 1
    (answers,) = again.restore([])
    assert answers["one"]["tokens"] == [1, 2]
    assert Stats(**answers["one"]["stats"]) == Stats(rounds=2)
    again.add("p1", "one", [4], 0.5, Stats(rounds=1))
    again.close_prompt("p1", [])
    assert [a["one"]["tokens"] for a in Journal(tmp_path, {}).restore([])] == [[1, 2], [4]]
    again.delete()
    assert Journal(tmp_path, {}).finished == 0


# -- the whole bench -----------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"id": p.id, "prompt": p.turns[0]}) + "\n" for p in PROMPTS[:2]))

    def go(specs=("prompt-lookup", HOT), die_after=None, note=lambda line: None, **changes):
        answered = 0

        def progress(stage, done, of):
            nonlocal answered
            answered += done > 0
            if answered == die_after:
                raise Killed

        given = {"model": tiny_folder, "prompts": str(path), "dtype": "float32", "max_new_tokens": 4}
        made = DraftBench(**given | {"assisted": False} | changes)
        if die_after is None:
            return made.run(specs, progress=progress, note=note)
        with pytest.raises(Killed):
            made.run(specs, progress=progress, note=note)
        return None

    return go


def test_each_temperature_goes_on_by_itself(bench, tmp_path):
    temperatures = {"temperature": (0.0, 1.0)}
    bench(die_after=2 * 4 + 5, **temperatures)
    told = []
    assert bench(note=told.append, **temperatures)
    assert [line.partition(" (")[0] for line in told] == [
        "2 of 2 prompts answered before, temperature 0",
        "1 of 2 prompts answered before, temperature 1",
    ]
    assert not list((tmp_path / ".mintage" / "bench" / "draft").iterdir())  # a run that is over leaves nothing


def test_another_run_has_another_journal(bench, tmp_path):
    (tmp_path / ".mintage" / "bench" / "draft").mkdir(parents=True)

    def folders(*specs, **changes):
        before = set((tmp_path / ".mintage" / "bench" / "draft").iterdir())
        bench(*specs, die_after=1, **changes)
        return len(set((tmp_path / ".mintage" / "bench" / "draft").iterdir()) - before)

    assert folders() == 1
    assert folders() == 0
    for changes in ({"seed": 1}, {"max_new_tokens": 3}, {"limit": 1}, {"temperature": (1.0,)}, {"dtype": "bfloat16"}):
        assert folders(**changes) == 1, changes
    assert folders([HOT, "plain"]) == 1
