"""FASTA in and out: what a user's files hold, and what they are told about files that are none."""

import gzip

import pytest

from mintage.data import Fasta, FastaRecord, reverse_complement, write_fasta
from mintage.data import fasta as module
from mintage.data.fasta import certain_runs
from mintage.errors import UserError


def read(tmp_path, text, name="x.fa"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(Fasta(tmp_path / name))


def test_records_keep_their_letters_and_headers(tmp_path):
    text = ">chr1 a bacterium\r\nACGTacgt\r\nNNry\n\n>chr2\nACGU\n  \n>chr3\nTTTT"
    assert read(tmp_path, text.replace("  \n", "\n")) == [
        FastaRecord("chr1", "ACGTacgtNNry", "a bacterium"),
        FastaRecord("chr2", "ACGU"),
        FastaRecord("chr3", "TTTT"),
    ]


def test_a_folder_gives_its_fasta_files_in_order_compressed_or_not(tmp_path):
    with gzip.open(tmp_path / "b.fasta.gz", "wt") as file:
        file.write(">b\nAC\n")
    (tmp_path / "a.fna").write_text(">a\nGT\n")
    (tmp_path / "README.md").write_text("about these")
    found = Fasta(tmp_path)
    assert [record.name for record in found] == ["a", "b"] == [record.name for record in found]
    before = found.fingerprint
    (tmp_path / "a.fna").write_text(">a\nGTT\n")
    assert found.fingerprint != before


def test_a_chromosome_on_one_line_is_read_whole_and_lines_are_counted_by_their_ends(tmp_path):
    long = "ACGT" * 600_000
    assert read(tmp_path, f">x\n{long}\n")[0].sequence == long
    with pytest.raises(UserError, match="line 3: 'E'"):
        read(tmp_path, f">x\n{long}\nACGE\n")
    with pytest.raises(UserError, match="line 2: '>'"):  # inside a line it begins no record
        read(tmp_path, f">x\n{long[: 1 << 20]}>y\n")


def test_what_is_written_is_read_again(tmp_path):
    records = [FastaRecord("a", "ACGTN" * 50, "of something"), FastaRecord("b", "acgu")]
    for name, width in (("x.fa", 60), ("x.fa.gz", 1), ("y.fa", 10_000)):
        write_fasta(tmp_path / name, iter(records), width)
        assert list(Fasta(tmp_path / name)) == records
    assert gzip.decompress((tmp_path / "x.fa.gz").read_bytes()).startswith(b">a of something\nA\nC\n")
    assert max(map(len, (tmp_path / "x.fa").read_text().splitlines())) == 60


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (">p\nACGT\nMKVLE\n", "line 3: 'L' is no nucleotide .a protein"),
        (">p\nACGT\n>q\nmkwvsr\n", "line 3: most letters of 'q' name no base"),
        (">p\nAC*\n", "line 2: '\\*' is no nucleotide .a protein"),
        (">p\nAC-GT\n", "line 2: '-' is a gap"),
        (">p\nAC GT\n", "line 2: ' ' is no nucleotide"),
        (">p\n1 acgt\n", "line 2: '1' is no nucleotide"),
        ("ACGT\n", "line 1: there is no >"),
        ("\n@r1\nACGT\n+\nIIII\n", "line 2 begins with @, as FASTQ does"),
        (">\nACGT\n", "line 1: a record without a name"),
        (">a\n>b\nACGT\n", "line 1: the record 'a' has no sequence"),
        (">a\nAC\n>b\n", "line 3: the record 'b' has no sequence"),
        ("", "holds no record"),
        (b">a\nAC\0GT\n", "NUL"),
        (b">a\nAC\xff\n", "not UTF-8"),
    ],
)
def test_what_is_no_dna_is_told_in_one_line(tmp_path, text, line):
    with pytest.raises(UserError, match=line) as told:
        read(tmp_path, text)
    assert "\n" not in str(told.value)
    assert "x.fa" in str(told.value)


def test_what_is_no_fasta_is_told(tmp_path):
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(b">a\nACGT\n")[:-4])
    (tmp_path / "folder").mkdir()
    for sources, line in (
        ([tmp_path / "none.fa"], "does not exist"),
        ([tmp_path / "folder"], "holds no FASTA files"),
        ([tmp_path / "x.fa.gz"], "cannot read"),
        ([], "no FASTA given"),
    ):
        with pytest.raises(UserError, match=line):
            list(Fasta(*sources))


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (FastaRecord("a", "ACE"), "'E' is no nucleotide"),
        (FastaRecord("a", ""), "it is empty"),
        (FastaRecord("a b", "AC"), "cannot be the name"),
        (FastaRecord("", "AC"), "cannot be the name"),
        (FastaRecord("a", "AC", "two\nlines"), "cannot be the name"),
    ],
)
def test_what_cannot_be_read_again_is_not_written(tmp_path, record, line):
    with pytest.raises(UserError, match=line):
        write_fasta(tmp_path / "x.fa", [record])
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="width=0"):
        write_fasta(tmp_path / "x.fa", [FastaRecord("a", "AC")], 0)


def test_the_other_strand():
    assert reverse_complement("AACGTn") == "nACGTT"
    assert reverse_complement("acgRYSWKMBDHV") == "BDHVKMWSRYcgt"
    assert reverse_complement("AACGU") == "ACGUU"
    for sequence in ("ACGTRYSWKMBDHVNacgtryswkmbdhvn", "ACGU", ""):
        assert reverse_complement(reverse_complement(sequence)) == sequence
    with pytest.raises(UserError, match="'E' is no nucleotide"):
        reverse_complement("ACE")


def test_runs_between_letters_that_name_no_base():
    assert list(certain_runs("NNacgUNNRTT")) == ["ACGT", "TT"]
    assert list(certain_runs("NNN")) == []
    assert set(module.BASES) == set("ACGT")
