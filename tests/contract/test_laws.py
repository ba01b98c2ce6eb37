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


@parametrize_with_laws("retrofit")
def test_retrofit(method, law):
    law(method.tiny())


@parametrize_with_laws("reduce")
def test_reduce(method, law):
    law(method.tiny())
