#!/usr/bin/env bash
# `max_token_length` of tokenizers' BPE trainer is one more than the length of the longest token.
#
# Version:    tokenizers 0.23.3.
# Behaviour:  BpeTrainer(max_token_length=n) learns tokens of at most n - 1 letters, but for 1 and 2, which both give
#             pairs. For tokens of up to n letters (n from 2 on) pass n + 1.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import random

from tokenizers import Tokenizer, models, trainers

text = "".join(random.Random(0).choices("ACGT", k=30000))
chunks = [text[start : start + 1000] for start in range(0, len(text), 1000)]
for most in (1, 2, 3, 4, 5, 8):
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=3000, max_token_length=most, show_progress=False)
    tokenizer.train_from_iterator(chunks, trainer)
    print("max_token_length", most, "longest token", max(map(len, tokenizer.get_vocab())))
PY

"$python" -m venv "$room/env"
"$room/env/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3
"$room/env/bin/python" "$room/show.py" > "$room/seen"

cat > "$room/EXPECTED" <<'EXPECTED'
max_token_length 1 longest token 2
max_token_length 2 longest token 2
max_token_length 3 longest token 2
max_token_length 4 longest token 3
max_token_length 5 longest token 4
max_token_length 8 longest token 7
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
