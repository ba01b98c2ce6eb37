#!/usr/bin/env bash
# tokenizers' Precompiled normalizer, which stands for a SentencePiece model's table of characters, is not that table.
#
# Versions:   tokenizers 0.23.3, sentencepiece 0.2.3.
# Behaviour:  sentencepiece replaces the longest key of its table from left to right. Precompiled reads a grapheme at
#             once: if it has fewer than 6 bytes, the shortest key that it begins with replaces all of it (marks are
#             lost), else every character is replaced by itself (nothing is composed). So the same text gets other ids
#             in every tokenizer.json that is made of such a model (T5, XLM-R): half-width kana, decomposed Korean,
#             letters in lower case (nmt_nfkc_cf) with a mark that has no composed form, \r\n.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import io
import sys

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers

print("tokenizers", sys.argv[1], "sentencepiece", sentencepiece.__version__)
texts = {"nmt_nfkc": ["\uff76\uff9e", "\u1112\u1161\u11ab", "\u2460\u0301", "\r\n"], "nmt_nfkc_cf": ["T\u0303"]}
for rule, some in texts.items():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words and more words"] * 9), model_writer=out, vocab_size=20, model_type="char",
        hard_vocab_limit=False, minloglevel=2, normalization_rule_name=rule, add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )
    table = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue()).normalizer_spec.precompiled_charsmap
    theirs, here = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()), normalizers.Precompiled(table)
    for text in some:
        print(rule, ascii(text), "table", ascii(theirs.normalize(text)), "Precompiled", ascii(here.normalize_str(text)))
PY

"$python" -m venv "$room/env"
"$room/env/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.3 protobuf
"$room/env/bin/python" "$room/show.py" 0.23.3 > "$room/seen"

cat > "$room/EXPECTED" <<'EXPECTED'
tokenizers 0.23.3 sentencepiece 0.2.3
nmt_nfkc '\uff76\uff9e' table '\u30ac' Precompiled '\u30ab\u3099'
nmt_nfkc '\u1112\u1161\u11ab' table '\ud55c' Precompiled '\u1112\u1161\u11ab'
nmt_nfkc '\u2460\u0301' table '1\u0301' Precompiled '1'
nmt_nfkc '\r\n' table '\u2581\u2581' Precompiled ' '
nmt_nfkc_cf 'T\u0303' table 't\u0303' Precompiled 't'
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
