"""Embeddings without a trained network: equal to an independent reference, and to what their papers say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.retrofit.core.embeddings import Parts
from mintage.retrofit.core.mixtures import focus_weights, nearest_mixture, pursuit, sparsemax, static_embeddings
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.word_vectors import aligned, token_vectors
from mintage.retrofit.heuristics import FOCUS, FVT, OMP, WECHSEL, Lexical, MeanRow
from mintage.testing.retrofit import _reader

VECTORS = Path(__file__).parents[1] / "vectors" / "zett" / "heuristics.npz"


@pytest.fixture(scope="module")
def held():
    return np.load(VECTORS)


@pytest.fixture(scope="module")
def source():
    lm = _reader(tie_word_embeddings=True)
    return Parts(lm.model, TokenBytes(lm.tokenizer))


def _tensor(held, name):
    return torch.from_numpy(held[name])


def test_fvt_equals_the_reference(held):
    class Reference(Parts):
        def __init__(self):
            self.input = self.output = _tensor(held, "source_embeddings")
            self.tied = True

        def of(self, tokens):
            return [[int(i) for i in row if i >= 0] for row in held["target_segmentation"]]

    made = FVT().rows(Reference(), [b"?"] * len(held["fvt"]))
    assert (made.input - _tensor(held, "fvt")).abs().max() < 1e-8


def test_focus_equals_the_reference(held):
    overlap = _tensor(held, "overlap_mask")
    source, target = (json.loads(bytes(held[f"{side}_tokens_json"])) for side in ("source", "target"))
    vectors = _tensor(held, "aux_target")
    weights = focus_weights(vectors[~overlap], vectors[overlap])
    assert (weights - _tensor(held, "focus_weights")[~overlap]).abs().max() < 1e-8
    names = [source.index(token) for token, known in zip(target, overlap, strict=True) if known]
    made = weights @ _tensor(held, "source_embeddings")[names]
    assert (made - _tensor(held, "focus")[~overlap]).abs().max() < 1e-8


def test_wechsel_equals_the_reference(held):
    made = nearest_mixture(
        _tensor(held, "aux_target"),
        _tensor(held, "aux_source"),
        _tensor(held, "source_embeddings"),
        k=int(held["wechsel_k"]),
        temperature=float(held["wechsel_temperature"]),
    )
    assert (made - _tensor(held, "wechsel")).abs().max() < 1e-8


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_sparsemax_is_the_nearest_point_of_the_simplex(rows):
    scores = torch.tensor(rows, dtype=torch.float64)
    made = sparsemax(scores)
    assert (made >= 0).all()
    assert torch.allclose(made.sum(-1), torch.ones(len(rows), dtype=torch.float64))
    corners = torch.eye(4, dtype=torch.float64)
    inner = ((scores - made)[:, None] * (corners - made[:, None])).sum(-1)
    assert (inner <= 1e-9).all()  # what is left points away from every corner


def test_pursuit_finds_what_was_mixed():
    known = torch.randn(40, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.stack([known[3] * 2 - known[17], known[5] + 0.5 * known[30]])
    places, weights = pursuit(wanted, known, sparsity=2)
    assert [sorted(row) for row in places.tolist()] == [[3, 17], [5, 30]]
    assert torch.allclose((weights[..., None] * known[places]).sum(1), wanted, atol=1e-4)


def test_pursuit_agrees_with_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is no dependency")
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(40, 24, generator=generator, dtype=torch.float64)
    new = torch.randn(6, 24, generator=generator, dtype=torch.float64)
    places, _ = pursuit(new, known, sparsity=5)
    atoms = torch.nn.functional.normalize(known, dim=-1)
    theirs = linear.orthogonal_mp(atoms.T.numpy(), new.T.numpy(), n_nonzero_coefs=5)
    assert [sorted(row) for row in places.tolist()] == [sorted(np.flatnonzero(c).tolist()) for c in theirs.T]


def test_tokens_in_like_company_have_like_vectors():
    """0 and 1 stand between the same neighbours, 2 between others."""
    texts = [[4, 0, 5] * 20, [4, 1, 5] * 20, [6, 2, 7] * 20]
    made = torch.nn.functional.normalize(static_embeddings(texts, 9, dim=4), dim=-1)
    assert made[0] @ made[1] > 0.9 > 0.5 > made[0] @ made[2]
    assert made[8].norm() == 0  # never seen
    with pytest.raises(UserError, match="no text"):
        static_embeddings([[1]], 3)


def test_known_tokens_are_copied_and_others_filled(source):
    tokens = [b"a", b"ab", b"b"]
    for method in (Lexical(), MeanRow()):
        made = method.rows(source, tokens).input
        assert torch.equal(made[[0, 2]], source.input[[source.vocabulary.ids[t] for t in (b"a", b"b")]])
    assert torch.allclose(MeanRow().rows(source, tokens).input[1], source.input.mean(0))
    drawn = [Lexical(seed=seed).rows(source, [b"ab"]).input for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_learned_mixtures_are_of_known_rows(source):
    vocabulary = [b"a", b"b", b"ab", b"c", b"d"]
    texts = [[2, 3, 0, 4, 2, 3, 1, 4] * 10]
    for method in (FOCUS(dim=3), WECHSEL(dim=3, k=2)):
        row = method.fitted(source, vocabulary, texts).rows(source, [b"ab"]).input[0]
        known = source.input[[source.vocabulary.ids[t] for t in (b"a", b"b", b"c", b"d")]]
        weights = torch.linalg.lstsq(known.T, row[:, None]).solution[:, 0]
        assert torch.allclose(weights @ known, row, atol=1e-5)  # within the hull of what is known
        assert weights.sum() == pytest.approx(1, abs=1e-4)
        assert weights.min() > -1e-4


def test_mistakes_are_one_line(source):
    with pytest.raises(UserError, match="has learnt no vectors yet"):
        OMP().rows(source, [b"ab"])
    with pytest.raises(UserError, match="none of the tokens"):
        FOCUS(dim=2).fitted(source, [b"ab", b"cd"], [[0, 1] * 9]).rows(source, [b"ab"])


def test_omp_mixes_rows_by_direction_however_rare_their_tokens_are(source):
    """Counted vectors of rare tokens are tiny; their rows must not be blown up for it."""
    tokens = [b"a", b"b", b"c", b"zq"]
    vectors = {b"a": [1e-6, 0.0], b"b": [0.0, 3.0], b"c": [2.0, 0.0], b"zq": [5.0, 5.0]}
    made = OMP(sparsity=2, vectors={t: torch.tensor(v) for t, v in vectors.items()}).rows(source, tokens)
    known = source.input[[source.vocabulary.ids[token] for token in (b"a", b"b", b"c")]]
    assert torch.equal(made.input[:3], known)
    assert made.input[3].norm() <= 2 * known.norm(dim=1).max()


@pytest.mark.parametrize("make", [np.float64, np.float32, np.float16, list, torch.tensor])
@pytest.mark.parametrize("method", [FOCUS, WECHSEL, OMP])
def test_given_vectors_of_any_make_are_taken_and_no_texts_are_asked_for(source, method, make):
    held = {b"a": [1.0, 0.0], b"b": [0.0, 1.0], b"ab": [0.5, 0.5]}
    given = {t: make(v) if make in (list, torch.tensor) else np.array(v, dtype=make) for t, v in held.items()}
    made = method(vectors=given)
    assert not made.reads_texts
    assert made.fitted(source, [b"a", b"ab"], []) is made
    row = made.rows(source, [b"ab"]).input[0]
    assert torch.allclose(row, method(vectors=held).rows(source, [b"ab"]).input[0], atol=1e-3)


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        ({}, "is no mapping from bytes to vectors, or empty"),
        ([1.0, 2.0], "is no mapping from bytes to vectors"),
        ({"a": [1.0]}, "names 'a', a str; pass bytes"),
        ({b"a": [1.0], b"b": [1.0, 2.0]}, "pass one length for all"),
        ({b"a": 1.0}, "pass one length for all"),
        ({b"a": [float("nan")]}, "the vector of b'a' is not finite"),
    ],
)
def test_vectors_that_are_none_are_one_line(vectors, told):
    with pytest.raises(UserError, match=told):
        FOCUS(vectors=vectors)


def test_wechsel_takes_vectors_of_both_sides_as_in_the_paper(source, held):
    """Every new token is mixed of the nearest of the model's, also one that the model has."""
    english = {b"a": [1.0, 0.1], b"b": [0.0, 1.0], b"c": [-1.0, 0.2], b"unknown to the model": [1.0, 0.0]}
    german = {b"xa": [0.9, 0.2], b"b": [-0.9, 0.1]}
    made = WECHSEL(vectors=german, source_vectors=english, k=2, temperature=0.5).rows(source, [b"xa", b"b", b"c"])
    known = source.input[[source.vocabulary.ids[t] for t in (b"a", b"b", b"c")]]
    unit = torch.nn.functional.normalize
    cosines = (
        unit(torch.tensor(list(german.values())), dim=-1) @ unit(torch.tensor(list(english.values())[:3]), dim=-1).T
    )
    for row, scores in zip(made.input, cosines, strict=False):
        best = scores.topk(2)
        want = ((best.values / 0.5).softmax(-1)[:, None] * known[best.indices]).sum(0)
        assert torch.allclose(row, want, atol=1e-5)
    assert torch.equal(made.input[2], known[2])  # without a vector: the mean of its parts
    with pytest.raises(UserError, match="pass vectors, too"):
        WECHSEL(source_vectors=english)
    with pytest.raises(UserError, match="pass one space for both"):
        WECHSEL(vectors={b"a": [1.0]}, source_vectors=english)
    with pytest.raises(UserError, match="none of the model's tokens has a vector"):
        WECHSEL(vectors=german, source_vectors={b"zz": [1.0, 0.0]}).rows(source, [b"xa"])


def test_two_languages_word_vectors_become_token_vectors_of_one_space(source):
    draw = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=draw))[0]
    english = {
        word: torch.randn(4, generator=draw, dtype=torch.float64) for word in ("sea", "moon", "sun", "tide", "day")
    }
    german = dict(
        zip(("See", "Mond", "Sonne", "Flut", "Tag"), (v.float() @ turn for v in english.values()), strict=True)
    )
    pairs = list(zip(german, english, strict=True))
    turned = aligned(german, english, [*pairs[:4], ("kein", "none")])
    for mine, theirs in pairs:
        assert torch.allclose(turned[mine], english[theirs].float(), atol=1e-4)
    tokens = token_vectors(source.vocabulary.backend, english, {"sea": 3})
    assert torch.allclose(tokens[b"m"], english["moon"].float())
    mean = (3 * english["sea"] + english["tide"]) / 4
    assert torch.allclose(tokens[b"e"], mean.float())
    with pytest.raises(UserError, match="no pair has vectors of both words"):
        aligned(german, english, [("kein", "none")])
