"""Named inputs: prompts that ship with mintage, corpora with their splits, text of any size as a stream.

Looking at this front door imports nothing heavy.
"""

from mintage.data.corpora import Document, texts
from mintage.data.corpus import Corpus, Texts, as_corpus
from mintage.data.counting import count_words
from mintage.data.fasta import Fasta, FastaRecord, reverse_complement, write_fasta
from mintage.data.prompts import Prompt, read_prompts, spread
from mintage.data.sets import data_file

__all__ = [
    "Corpus",
    "Document",
    "Fasta",
    "FastaRecord",
    "Prompt",
    "Texts",
    "as_corpus",
    "count_words",
    "data_file",
    "read_prompts",
    "reverse_complement",
    "spread",
    "texts",
    "write_fasta",
]
