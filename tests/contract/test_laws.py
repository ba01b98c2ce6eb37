"""Every law of every contract over every method that is ready."""

from mintage.testing import parametrize_with_laws


@parametrize_with_laws("draft")
def test_draft(method, law):
    law(method.tiny())
