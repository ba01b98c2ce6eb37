"""Many and varied chat prompts, made from texts at hand: what a drafter is taught on, in the target's own words.

Templates over topics, paragraphs, sentences and the standard library's own code. None of it comes from the prompts that
the benches use. Not here: answers; the target writes them itself (`mintage.draft.core.answers`).
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mintage.data.corpora import CORPORA, Document, texts
from mintage.data.sets import SETS, find_data
from mintage.errors import UserError

__all__ = ["instructions"]

_TOPICS = """
gardening in small spaces; the water cycle; learning the violin; a lost umbrella; medieval castles; solar panels; bees;
home baking; chess openings; public libraries; volcanoes; a first job interview; the human heart; recycling; Mars;
black holes; electric cars; a rainy holiday; time management; budgeting for students; cats and dogs; ocean currents;
ancient Rome; the printing press; vaccines; coffee; mountain hiking; a village school; quantum computers; basketball;
whales; photography; machine learning; remote work; a birthday party; bicycle repair; the French Revolution; sleep;
healthy breakfasts; robots; earthquakes; the Silk Road; a noisy neighbour; fair trade; opera; deserts; trains; honesty;
databases; meditation; rainforests; the stock market; a pocket watch; kite flying; penguins; bridges; social media;
cooking pasta; glaciers; a haunted lighthouse; friendship; the immune system; gravity; street food; museums; marathons;
renewable energy; a broken computer; ice hockey; painting with watercolours; dinosaurs; city traffic; writing a diary;
the moon landing; tea ceremonies; wolves; cryptography; a shy student; football; online shopping; paper making; jazz;
learning Spanish; the great pyramids; fire safety; volunteering; chocolate; the internet; a small bakery; satellites;
moving to a new city; pottery; wind turbines; sharks; speaking in public; board games; the Renaissance; camping; bread;
customer service; a delayed flight; photosynthesis; fashion; mathematics anxiety; swimming; insects; an old piano; rice;
the Olympic Games; data privacy; a detective in the snow; compound interest; yoga; folk tales; bridges over rivers;
plastic waste; the Great Wall of China; a new manager; open source software; honey; dreams; winter sports; microscopes
"""

_OPEN = (
    "Write a short story about {}.",
    "Explain {} to a beginner.",
    "Give me five tips about {}.",
    "What are the advantages and disadvantages of {}?",
    "Write a poem about {}.",
    "Write a short email to a colleague about {}.",
    "List ten words that have to do with {} and explain each.",
    "Describe {} in three sentences.",
    "Why does {} matter?",
    "Write a dialogue between two friends about {}.",
    "Plan a one-hour lesson on {}.",
    "What are common mistakes people make with {}?",
    "Write an introduction to an essay about {}.",
    "How has {} changed over the last hundred years?",
    "Suggest three titles for an article about {}, with a sentence on each.",
    "Write a product description inspired by {}.",
    "What questions should I ask an expert on {}?",
    "Tell me an interesting fact about {} and explain it.",
    "Write a step-by-step guide on {}.",
    "Write a blog post about {} with headings.",
    "How would you explain {} to a five-year-old?",
    "Write a speech of two paragraphs about {}.",
    "Create a quiz with four questions and answers about {}.",
    "What is the connection between {} and {}?",
    "Compare {} with {}.",
    "Write a letter to the editor about {}.",
)
_PARAGRAPH = (
    "Summarise this text:\n{}",
    "Summarize the following passage in one sentence.\n\n{}",
    "List the main facts of this text as bullet points:\n{}",
    "Explain this text to a child: {}",
    "Continue this text: {}",
    "Rewrite this in simpler words:\n\n{}",
    "Write a headline and a short news item from this:\n{}",
    "Which people, places and dates are named here?\n\n{}",
    "Ask three questions about this text and answer them.\n{}",
    "{}\n\nWhat is this text about?",
    "Give the key points of: {}",
)
_SPEECH = (
    "Rewrite this in modern English: {}",
    "Summarise: {}",
    "Reply to the speaker of these words: {}",
    "Who might have said this, and why? {}",
    "What mood does this passage have? Explain.\n{}",
)
_SENTENCES = (
    "Correct the grammar of this text, if needed: {}",
    "Rewrite this more formally: {}",
    "Is the mood of this text positive, negative or neutral? Explain.\n{}",
    "Write a short story that begins with: {}",
    "Turn this into a list: {}",
    "List every noun in this text: {}",
    "Extract the names, numbers and times from this text as JSON: {}",
    "Write a reply to this message: {}",
)
_LANGUAGES = {"fra": "French", "spa": "Spanish", "deu": "German", "ita": "Italian", "por": "Portuguese"}
_LANGUAGES |= {"nld": "Dutch", "swe": "Swedish", "pol": "Polish", "ron": "Romanian", "cat": "Catalan"}
_CODE = (
    "Write a Python function `{name}{signature}`. It should: {purpose}",
    "Write unit tests for a Python function `{name}{signature}` that does this: {purpose}",
    "In Python, how do I do this? {purpose}",
    "Explain what this Python code does:\n```python\n{body}```",
    "Write a docstring for this function:\n```python\n{body}```",
    "Find problems in this code and improve it:\n```python\n{body}```",
)
_MODULES = """
argparse ast base64 bdb bisect calendar cmd code codecs collections colorsys configparser contextlib copy csv
datetime decimal difflib dis doctest email.utils enum filecmp fileinput fnmatch fractions ftplib functools
getpass gettext glob graphlib gzip hashlib heapq hmac html http.client http.cookies imaplib inspect io ipaddress
json keyword linecache locale logging mailbox mimetypes numbers operator optparse pathlib pickle pkgutil platform
plistlib pprint profile pstats queue quopri random re reprlib sched secrets selectors shelve shlex shutil site
smtplib socket socketserver sqlite3 ssl stat statistics string stringprep subprocess symtable sysconfig tabnanny
tarfile tempfile textwrap threading timeit token tokenize trace traceback types typing unittest.mock urllib.parse
urllib.request uuid warnings wave weakref webbrowser xml.dom.minidom xml.etree.ElementTree zipfile zipapp
"""


def instructions(count: int, *, words: int = 70, seed: int = 0, code: bool = True) -> list[str]:
    """Make `count` prompts; a smaller count gives the first of the same.

    The texts are the ``train`` splits of gsm8k, xquad, wikitext2, speeches, shakespeare and tatoeba; those that
    are not on this machine (`mintage.data.sets`) are left out.

    Parameters
    ----------
    count
        How many prompts.
    words
        Longest passage.
    seed
        Of the choice.
    code
        Whether to ask about the standard library's functions, which differ from one Python to the next.

    Raises
    ------
    UserError
        Fewer prompts than `count` can be made.
    """
    random_state = random.Random(seed)
    kinds: list[tuple[int, list[str]]] = []
    for share, make in _KINDS:
        if code or make is not _functions:
            kind = sorted(set(make(words)))
            random_state.shuffle(kind)
            kinds.append((share, kind))
    mixed = list(_deal(kinds, count))
    if len(mixed) < count:
        raise UserError(
            f"only {len(mixed)} prompts can be made of the texts on this machine, not {count}; ask for fewer, or see "
            "mintage data for more"
        )
    return mixed


def _deal(kinds: Sequence[tuple[int, list[str]]], count: int) -> Iterator[str]:
    """Deal `count` prompts from the kinds in turn, each by its share per round, until all are used up."""
    given, left = 0, [iter(kind) for _, kind in kinds]
    while given < count:
        before = given
        for (share, _), kind in zip(kinds, left, strict=True):
            for _, prompt in zip(range(min(share, count - given)), kind, strict=False):
                given += 1
                yield prompt
        if given == before:
            return


def _documents(corpus: str, domain: str | None = None) -> list[Document]:
    if not any(find_data(file.name) for file in SETS[CORPORA[corpus].data].files):
        return []
    return list(texts(corpus, "train", domain=domain).documents())


def _passage(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _fill(templates: Sequence[str], passages: Sequence[str]) -> list[str]:
    return [templates[i % len(templates)].format(text) for i, text in enumerate(passages)]


def _open(words: int) -> list[str]:
    topics = [" ".join(topic.split()) for topic in _TOPICS.split(";")]
    pairs = zip(topics, topics[7:] + topics[:7], strict=True)
    return [template.format(*pair) for pair in pairs for template in _OPEN]


def _mathematics(words: int) -> list[str]:
    return [document.text for document in _documents("gsm8k") if len(document.text.split()) <= words]


def _paragraph_questions(words: int) -> list[str]:
    asked = []
    for document in _documents("xquad", "en"):
        text = _passage(document.text, words)
        asked += [f"{text}\n\nAnswer this question about the text: {qa['question']}" for qa in document.fields["qas"]]
    return asked


def _questions(words: int) -> list[str]:
    questions = [qa["question"] for document in _documents("xquad", "en") for qa in document.fields["qas"]]
    return _fill(("{}", "Explain in a few sentences: {}", "Question: {} Think step by step."), questions)


def _articles(words: int) -> list[str]:
    lines = [document.text.strip() for document in _documents("wikitext2")]
    long = [line for line in lines if len(line.split()) > words // 2 and not line.startswith("=")]
    clean = [re.sub(r" @(.)@ ", r"\1", line).replace("<unk>", "it") for line in long]
    passages = [re.sub(r" ([,.;:!?)])", r"\1", line).replace("( ", "(") for line in clean]
    return _fill(_PARAGRAPH, [_passage(text, words) for text in passages])


def _speeches(words: int) -> list[str]:
    passages = []
    for document in (*_documents("speeches"), *_documents("shakespeare")):
        split = document.text.split()
        passages += [" ".join(split[i : i + words]) for i in range(400, min(len(split), 6000) - words, 700)]
    return _fill(_SPEECH, passages)


def _english() -> list[str]:
    return sorted({document.fields["eng"] for document in _documents("tatoeba")})


def _sentences(words: int) -> list[str]:
    english = _english()
    return _fill(_SENTENCES, [" ".join(english[i : i + 2]) for i in range(0, len(english), 7)])


def _remarks(words: int) -> list[str]:
    return [text for text in _english()[3::5] if len(text.split()) > 4]


def _translations(words: int) -> list[str]:
    asked = []
    for i, document in enumerate(_documents("tatoeba")):
        if language := _LANGUAGES.get(document.domain):
            there = f"Translate into {language}: {document.fields['eng']}"
            asked.append(there if i % 2 else f"Translate from {language} into English: {document.text}")
    return asked


def _functions(words: int) -> list[str]:
    asked = []
    for name in _MODULES.split():
        try:
            module = importlib.import_module(name)
        except ImportError:  # an interpreter built without it
            continue
        for function in _own_functions(module):
            first = (inspect.getdoc(function) or "").split("\n")[0]
            try:
                body, signature = inspect.getsource(function), str(inspect.signature(function))
            except (OSError, ValueError, TypeError):  # made at run time
                continue
            parts = {"name": function.__name__, "signature": signature, "purpose": first, "body": body}
            usable = [
                t for t in _CODE if ("body" not in t or len(body.split()) < words) and ("purpose" not in t or first)
            ]
            asked += [t.format(**parts) for t in usable[len(asked) % 2 :: 2]]
    return [prompt for prompt in asked if len(prompt.split()) < 2 * words]


def _own_functions(module: Any) -> Iterator[Any]:
    """Yield the functions that a module defines, and the public methods of its classes."""
    for owner in (
        module,
        *(c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__),
    ):
        for name, function in inspect.getmembers(owner, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield function


_KINDS: tuple[tuple[int, Callable[[int], list[str]]], ...] = (
    (5, _open),
    (3, _functions),
    (3, _mathematics),
    (3, _articles),
    (2, _paragraph_questions),
    (2, _questions),
    (2, _sentences),
    (2, _translations),
    (1, _speeches),
    (1, _remarks),
)
"""Prompts per round, and what makes them."""
