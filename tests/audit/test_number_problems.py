from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mintage.audit.core.digits import SCHEMES, format_scheme, number_tokenizer
from mintage.audit.core.number_problems import (
    Evaluation,
    Outcome,
    Problem,
    Prompting,
    draw_problem,
    evaluate,
    first_problems,
    greedy_answers,
    judge,
    length_problems,
    prompts,
    read_answer,
    thinking_spaces,
)
from mintage.errors import UserError

VECTORS = Path(__file__).parents[1] / "vectors" / "number-tokens"


@pytest.mark.parametrize("name", ["group3", "edge"])
def test_questions_are_the_authors(name):
    spaces = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for written, (around, after) in zip(np.load(VECTORS / f"{name}.npz")["problem_strings"], spaces, strict=True):
        prompting = Prompting(question="comma_r2l", operator_spaces=around, trailing_spaces=after)
        assert prompting.ask(Problem(1234567, 89)) == written


# -- problems ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 18), st.integers(1, 18), st.booleans(), st.integers(0, 1000))
def test_a_drawn_problem_has_the_lengths_asked_for(a, b, longer, seed):
    problem = draw_problem((a, b, max(a, b) + longer), np.random.default_rng(seed))
    assert problem.lengths == (a, b, max(a, b) + longer)
    assert problem.length_match == (not longer)


def test_draws_follow_the_paper():
    generator = np.random.default_rng(0)
    drawn = [draw_problem((1, 2, 2), generator) for _ in range(9000)]
    assert {p.a for p in drawn} == set(range(1, 10))
    for smaller in (1, 9):  # uniform shorter addend, then a uniform answer: 11..99 for 1, 19..99 for 9
        answers = [p.answer for p in drawn if p.a == smaller]
        assert 850 < len(answers) < 1150
        assert (min(answers), max(answers)) == (10 + smaller, 99)
        assert np.mean(answers) == pytest.approx((10 + smaller + 99) / 2, abs=3)


@pytest.mark.parametrize("lengths", [(3, 4, 3), (3, 4, 6), (0, 1, 1), (19, 1, 19)])
def test_impossible_lengths_are_told(lengths):
    with pytest.raises(UserError, match="no addition has lengths"):
        draw_problem(lengths, np.random.default_rng(0))


def test_the_sets_of_the_paper():
    first = first_problems()
    assert len(first) == 90
    assert {p.lengths[:2] for p in first} == {(a, b) for a in (7, 8, 9) for b in (7, 8, 9)}
    match, mismatch = (length_problems(match=m, count=n) for m, n in ((True, 900), (False, 400)))
    assert all(p.length_match for p in match)
    assert not any(p.length_match for p in mismatch)
    pairs = [p.lengths[:2] for p in mismatch]
    assert max(pairs.count(p) for p in set(pairs)) - min(pairs.count(p) for p in set(pairs)) <= 1
    assert length_problems(match=True, count=900) == match
    assert length_problems(match=True, count=900, seed=1) != match
    with pytest.raises(UserError, match="count=0"):
        length_problems(match=True, count=0)


def test_carries_are_counted():
    assert Problem(999, 1).carries == 3
    assert Problem(123, 456).carries == 0
    assert Problem(5, 95).carries == 2


# -- prompts -----------------------------------------------------------------------------------------------------------

PROBLEM = Problem(1234567, 7654321)


def test_a_prompt_has_shots_of_the_same_lengths_in_their_formats():
    prompting = Prompting(question="comma_r2l", answers="nosep", shots=4)
    *shots, last = prompting.text(PROBLEM).split("\n")
    assert last == "1,234,567+7,654,321="
    assert len(set(shots)) == 4
    for shot in shots:
        addends, answer = shot.split("=")
        a, b = (int(n.replace(",", "")) for n in addends.split("+"))
        assert Problem(a, b).answer == int(answer)
        assert "," not in answer
        assert Problem(a, b).lengths == PROBLEM.lengths
    assert prompts([PROBLEM], prompting) == [prompting.text(PROBLEM)]
    assert Prompting(shots=0).text(PROBLEM) == "1234567+7654321="


def test_shots_never_hold_the_problem_and_too_few_are_told():
    one = Problem(9, 9)  # 81 sums of one-digit numbers, 45 of them with two digits
    assert one not in Prompting(shots=8).examples(one)
    with pytest.raises(UserError, match="50 shots of lengths"):
        Prompting(shots=50).examples(one)


def test_a_chat_has_a_turn_per_shot_and_the_repeat_experiment_restates():
    prompting = Prompting(repeat="comma_r2l", shots=2, system="Add.")
    turns = prompting.turns(PROBLEM)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    for asked, said in ((turns[1], turns[2]), (turns[3], turns[4])):
        a, b = map(int, asked["content"].rstrip("=").split("+"))
        assert said["content"] == format_scheme(f"{a}+{b}={a + b}", "comma_r2l")
    assert turns[-1]["content"] == "1234567+7654321="
    assert read_answer("1,234,567+7,654,321=8,888,888", "comma_r2l") == 8888888


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"question": "commas"}, "unknown number format"), ({"repeat": "x"}, "unknown"), ({"shots": -1}, "shots=-1")],
)
def test_bad_prompting_is_told(settings, says):
    with pytest.raises(UserError, match=says):
        Prompting(**settings)


def test_spaces_bring_the_tokens_of_commas():
    tokenizer = number_tokenizer("l2r")  # a token per space
    spaces = thinking_spaces(PROBLEM, tokenizer)
    count = [len(tokenizer.encode(p.ask(PROBLEM)).ids) for p in (Prompting(operator_spaces=spaces), Prompting())]
    assert count == [8 + 3 * 2, 8]
    assert spaces == 2  # four commas, three places for a space
    with pytest.raises(UserError, match="joins runs of spaces"):
        thinking_spaces(PROBLEM, tokenizer, at_most=1)


# -- scoring -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**15), st.sampled_from(sorted(SCHEMES)))
def test_an_answer_in_any_format_is_read_back(number, name):
    assert read_answer(format_scheme(str(number), name), name) == number
    assert read_answer(f" {format_scheme(str(number), name)}\n", name) == number


def test_answers_that_are_none():
    for text in ("", "I cannot", "about 12", "12kg", "-12", "twelve"):
        assert read_answer(text) is None
    assert read_answer("12,345") == 12  # without a separator agreed on, the number ends at it
    assert read_answer("123,45", "comma_r2l") == 12345  # grouped from the wrong side still counts
    assert read_answer("12.") == 12


def test_an_error_is_taken_apart():
    problem = Problem(12345678, 87654322)  # 100000000
    assert judge(problem, "100000000").right
    wrong = judge(problem, "100100000")
    assert wrong.digit_errors == [False] * 3 + [True] + [False] * 5
    assert wrong.token_errors == [False, True, False]
    assert (wrong.error, wrong.off_by_one, wrong.digit_dropped) == (100000, True, False)
    assert not judge(problem, "100200000").off_by_one
    short = judge(problem, "10000000")
    assert short.digit_dropped
    assert short.digit_errors == [False] * 8 + [True]
    assert judge(problem, "10000000", direction="r2l").token_errors == [True, False, False]
    none = judge(problem, "no")
    assert none.given is none.error is None
    assert none.digit_errors == [True] * 9
    assert none.token_errors == [True] * 3
    assert (none.right, none.off_by_one, none.digit_dropped) == (False, False, False)


def test_invalid_answers_are_wrong_and_reported():
    problems = [Problem(1, 2), Problem(5, 5), Problem(10, 20), Problem(99, 1)]
    result = evaluate(problems, ["3", "what?", "31", "100"])
    assert result.accuracy == 0.5
    assert result.accuracy_of_valid == pytest.approx(2 / 3)
    assert result.invalid == 0.25
    assert result.off_by_one == 0.5  # one of the two errors
    assert result.only(match=True).accuracy == 0.5
    assert result.only(match=False).accuracy == 0.5
    assert result.by_digit() == [0.25, 2 / 3, 0.0]
    assert result.by_carries() == {0: 0.5, 1: 0.0, 2: 1.0}
    assert result.summary()["problems"] == 4
    assert result.by_token() == [0.5]
    with pytest.raises(UserError, match="1 answers to 4 problems"):
        evaluate(problems, ["3"])
    with pytest.raises(UserError, match="at least one problem"):
        Evaluation([])


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(0, 2 * 10**9))
def test_a_right_answer_has_no_errors_and_a_wrong_one_has_some(a, b, given_number):
    outcome = Outcome(Problem(a, b), given_number)
    same_length = len(str(given_number)) == len(str(a + b))
    assert any(outcome.digit_errors) == any(outcome.token_errors) or not same_length
    if outcome.right:
        assert not any(outcome.digit_errors)
        assert (outcome.off_by_one, outcome.digit_dropped) == (False, False)
    elif same_length:
        assert any(outcome.digit_errors)


def test_a_transformers_model_is_asked(tiny_folder):
    from mintage.models import load_causal_lm

    model = load_causal_lm(tiny_folder, dtype="float32")
    problems = first_problems(per_combination=1)[:2]
    prompting = Prompting(question="comma_r2l", answers="comma_r2l", shots=1)
    seen = []
    settings = {"max_new_tokens": 5, "progress": lambda done, of: seen.append((done, of))}
    plain = greedy_answers(model, problems, prompting, **settings)
    chat = greedy_answers(model, problems, prompting, chat=True, **settings)
    assert len(plain) == len(chat) == 2
    assert seen[:2] == [(1, 2), (2, 2)]
    assert plain == greedy_answers(model, problems, prompting, max_new_tokens=5)
    assert evaluate(problems, plain, name="comma_r2l").accuracy == 0  # a random model cannot add
    with pytest.raises(UserError, match="no chat template"):
        greedy_answers(SimpleNamespace(tokenizer=SimpleNamespace(chat_template=None)), problems, prompting, chat=True)
