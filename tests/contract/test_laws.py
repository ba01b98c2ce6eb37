"""Every law of every contract over every method that is ready."""

from mintage.testing import parametrize_with_laws


@parametrize_with_laws("draft")
def test_draft(method, law):
    law(method.tiny())


@parametrize_with_laws("segment")
def test_segment(method, law):
    law(method.tiny())


@parametrize_with_laws("audit")
def test_audit(method, law):
    law(method.tiny())


@parametrize_with_laws("keep")
def test_keep(method, law):
    law(method.tiny())


_OPEN = "one token back is not far enough: what was written before is read as if it had been cut there on purpose"


@parametrize_with_laws(
    "retrofit",
    expected_failures={
        ("token-healing", "texts_up_to_the_longest_have_probability_one"): _OPEN,
        ("token-healing", "a_state_kept_up_to_date_is_the_one_made_anew"): _OPEN,
    },
)
def test_retrofit(method, law):
    law(method.tiny())


@parametrize_with_laws("reduce")
def test_reduce(method, law):
    law(method.tiny())


_CUT_AHEAD = "how a text is cut into tokens depends on what comes behind it"


@parametrize_with_laws(
    "lm",
    expected_failures={
        ("bpe-transformer", "later_bytes_change_nothing"): _CUT_AHEAD,
        ("bpe-transformer", "scores_add_up"): _CUT_AHEAD,
    },
)
def test_lm(method, law):
    law(method.tiny())
