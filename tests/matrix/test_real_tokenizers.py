"""Tokenizer files that people publish, through every reader: their own library's ids on 1,000 texts, or one line.

Files are looked for in ``$MINTAGE_TOKENIZERS`` (any folders) and in installed packages that carry some;
``python tests/matrix/test_real_tokenizers.py --update`` writes what came out to docs/tokenizers.md.
"""

import base64
import importlib.util
import json
import os
import random
import sys
import unicodedata
import warnings
from functools import cache
from pathlib import Path

import pytest

from mintage.data import texts
from mintage.errors import UserError
from mintage.segment.core.adapters import open_segmenter
from mintage.tokenizer_files import load_tokenizer, read_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "tokenizers.md"
PACKAGES = {
    "mistral_common": "data/*",
    "dashscope": "resources/*.tiktoken",
    "whisper": "assets/*.tiktoken",
    "litellm": "litellm_core_utils/tokenizers/*",
}
_META = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OWN_PATTERNS = {(128000, "llama3"): _META, (151643, "qwen"): _META.replace("{1,3}", "")}
"""Of rank files whose owners are not tiktoken: by number of ranks, from their own code."""
OPENAI = {50256: "r50k_base", 50257: "r50k_base", 50280: "p50k_base", 100256: "cl100k_base", 199998: "o200k_base"}


def files():
    """Every file that may be a tokenizer, by a short name."""
    root = Path(os.environ.get("MINTAGE_TOKENIZERS") or "absent")
    found = {str(p.relative_to(root)): p for p in sorted(root.rglob("*")) if p.is_file()}
    for package, pattern in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations if spec else ():
            found |= {f"{package}: {p.name}": p for p in sorted(Path(place).glob(pattern)) if p.is_file()}
    return {name: path for name, path in found.items() if _is_tokenizer(path)}


def _is_tokenizer(path):
    if path.name.endswith(("tokenizer.json", ".tiktoken")) or "tekken" in path.name or ".model" in path.name:
        return True
    with path.open("rb") as file:  # litellm names its rank files by a digest
        line = file.readline(200)
    return path.stat().st_size > 100_000 and len(line.split()) == 2 and line.split()[1] == b"0"


@cache
def thousand():
    """Declarations of human rights in 300 languages, code, and letters in any order."""
    draw = random.Random(0)
    lines = [x for text in texts("udhr", "all") for x in text.splitlines() if x.strip()]
    found = draw.sample(lines, 830) + list(texts("humaneval", "all"))[:100]
    alphabet = "abc XYZ 0123 \n\r\t  .,!?'\"<>/é½ﬁ潮🙂👩‍👩‍👧\u0301\u200b\ufeff▁"
    return found + ["".join(draw.choice(alphabet) for _ in range(draw.randint(0, 40))) for _ in range(70)]


def own_library(path):
    """Return ``text -> ids`` of whoever made the file."""
    data = path.read_bytes()
    if "tekken" in path.name:
        return _tekken(json.loads(data))
    if path.suffix == ".json":
        tokenizers = pytest.importorskip("tokenizers")
        theirs = tokenizers.Tokenizer.from_file(str(path))
        return lambda text: theirs.encode(text, add_special_tokens=False).ids
    if data[:1] == b"\x0a":
        return pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=data).encode
    lines = [line.split() for line in data.splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines if token != b"="}
    own = next((pattern for (size, _), pattern in OWN_PATTERNS.items() if size == len(ranks)), None)
    return _tiktoken(ranks, own or _openai_pattern(len(lines), ranks), composed=len(ranks) == 151643)


def _openai_pattern(size, ranks):
    public = pytest.importorskip("tiktoken_ext.openai_public")
    if size not in OPENAI:
        pytest.skip("nobody says how this file cuts text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: ranks)
        return getattr(public, OPENAI[size])()["pat_str"]


def _tiktoken(ranks, pattern, composed=False):
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding("theirs", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: theirs.encode_ordinary(unicodedata.normalize("NFC", text) if composed else text)


def _tekken(held):
    """Return ids as mistral-common's Tekkenizer makes them: control tokens come first."""
    config = held["config"]
    first = config["default_num_special_tokens"]
    rows = held["vocab"][: config["default_vocab_size"] - first]
    inner = _tiktoken({base64.b64decode(row["token_bytes"]): row["rank"] for row in rows}, config["pattern"])
    return lambda text: [first + i for i in inner(text)]


def through(reader, path):
    """Return ``text -> ids`` of one of our readers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = reader(path)
    return opened.encode if reader is open_segmenter else lambda t: opened.encode(t, add_special_tokens=False).ids


READERS = {"load_tokenizer": load_tokenizer, "open_segmenter": open_segmenter}
FOUND = files()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FOUND or [pytest.param("", marks=pytest.mark.skip(reason="no tokenizer file here"))])
def test_a_published_file_gives_its_own_librarys_ids_or_is_refused(name, reader):
    assert outcome(FOUND[name], reader) in ("equal", "refused")


def outcome(path, reader):
    """Say what became of a file."""
    theirs = own_library(path)
    try:
        ours = through(READERS[reader], path)
    except UserError as error:
        return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
    wrong = [text for text in thousand() if ours(text) != theirs(text)]
    return "equal" if not wrong else f"{len(wrong)} differ, e.g. {wrong[0]!r}"


def table():
    """Return the table of docs/tokenizers.md."""
    kinds = {"json": "tokenizer.json", "ranks": "ranks", "pieces": "SentencePiece"}
    rows = ["| file | kind | `load_tokenizer` | `open_segmenter` |", "| --- | --- | --- | --- |"]
    for name, path in FOUND.items():
        kind = kinds[read_tokenizer(path).kind]
        rows.append(f"| {name} | {kind} | {' | '.join(outcome(path, reader) for reader in READERS)} |")
    return "\n".join(rows)


if __name__ == "__main__" and "--update" in sys.argv:
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition("<!-- the table follows -->")
    PAGE.write_text(f"{head}{mark}\n\n{table()}\n", encoding="utf-8")
