from hypothesis import given
from hypothesis import strategies as st

from mintage.errors import UserError, did_you_mean, missing_extra

NAMES = ("dyspec", "rsd", "spectr", "token-recycling")


def test_a_near_name_is_suggested():
    assert did_you_mean("token-recyling", NAMES) == "did you mean 'token-recycling'?"


def test_without_a_near_name_all_are_listed_in_order():
    assert did_you_mean("zzz", reversed(NAMES)) == "known: dyspec, rsd, spectr, token-recycling"


def test_nothing_known_says_so():
    assert did_you_mean("anything", []) == "known: none"


def test_known_names_may_be_an_iterator():
    assert did_you_mean("rds", iter(NAMES)) == "did you mean 'rsd'?"


@given(st.text(), st.lists(st.text(alphabet="abc-", min_size=1)))
def test_a_suggestion_is_one_of_the_known_names(name, known):
    hint = did_you_mean(name, known)
    assert hint.startswith(("did you mean '", "known: "))
    if hint.startswith("did"):
        assert hint.removeprefix("did you mean '").removesuffix("'?") in known


def test_a_missing_extra_names_the_command():
    error = missing_extra("jinja2", "report")
    assert isinstance(error, UserError)
    assert str(error) == "jinja2 is not installed; run: pip install 'mintage[report]'"


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
