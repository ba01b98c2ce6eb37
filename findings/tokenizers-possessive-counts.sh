#!/usr/bin/env bash
# A counted possessive quantifier, `\p{N}{1,3}+`, cuts text otherwise in tokenizers than in tiktoken.
#
# Versions:   tokenizers 0.23.3, tiktoken 0.14.0.
# Behaviour:  tiktoken (fancy-regex) takes `{1,3}+` for possessive: one to three digits. tokenizers (Oniguruma in Ruby's
#             syntax) takes it for the repetition of a repetition: all digits. `++`, `*+`, `?+` are possessive in both.
#             tiktoken's own pattern of cl100k_base has `\p{N}{1,3}+`, so copied into a tokenizer.json it gives other
#             ids for long numbers, without a warning. `(?>\p{N}{1,3})` means the same to both.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import tiktoken
from tokenizers import Regex, pre_tokenizers

ranks = {bytes([b]): b for b in range(256)} | {str(n).encode(): 256 + n for n in range(10, 10000)}
for pattern in (r"\p{N}{1,3}+", r"(?>\p{N}{1,3})"):
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    cut = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str("1234567")
    print(pattern, "tiktoken", [theirs.decode([i]) for i in theirs.encode("1234567")], "tokenizers", [p for p, _ in cut])
PY

"$python" -m venv "$room/env"
"$room/env/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3 tiktoken==0.14.0
"$room/env/bin/python" "$room/show.py" > "$room/seen"

cat > "$room/EXPECTED" <<'EXPECTED'
\p{N}{1,3}+ tiktoken ['123', '456', '7'] tokenizers ['1234567']
(?>\p{N}{1,3}) tiktoken ['123', '456', '7'] tokenizers ['123', '456', '7']
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
