"""Toy inputs of the retrofit studies: small enough for seconds, and the same whenever they are made."""

import gzip
import json

import torch

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("s", "e"), ("se", "a"), ("Ġ", "sea"), ("Ġ", "Ġ"), ("a", "n")]


MANY = [f"{n} the river runs; der Fluss läuft; def river(n): return n" for n in range(40)]
"""Texts of several languages and code, for one tokenizer."""


def write(path, rows):
    """Write lines, or JSON lines, compressed."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def save_word_model(path, *, tied=False, start="bos_token", **settings):
    """Save a tiny model whose tokenizer has words of two to four letters, and a token that starts texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from mintage.models import tiny_causal_lm

    names = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for pair in MERGES:
        names["".join(pair)] = len(names)
    inner = Tokenizer(models.BPE(names, MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", **{start: "<s>"})
    tokenizer.save_pretrained(path)
    settings = {"max_position_embeddings": 4096, "initializer_range": 0.2, **settings}
    tiny_causal_lm(vocab_size=len(tokenizer), tie_word_embeddings=tied, **settings).save_pretrained(path)
    return str(path)


def write_zett(folder):
    """Write English to read and to learn from, and German."""
    text = "Die Verordnung regelt die Verteilung der Verantwortung in den Verwaltungen. " * 4
    write(folder / "xquad.jsonl.gz", [{"lang": "de", "par": n, "context": f"{n} {text}"} for n in range(8)])
    for name in ("wikitext2_test_head", "wikitext2_valid"):
        lines = [f" {name} {n} the river runs through the town to the sea . " * 4 + "\n" for n in range(8)]
        write(folder / f"{name}.txt.gz", lines)


def disturb(net):
    """Give an untrained hypernetwork something to say."""
    torch.manual_seed(3)
    head = net.output_projection[1]
    torch.nn.init.normal_(head.weight, std=0.2)
    torch.nn.init.normal_(head.bias, std=0.2)


def write_hypernetwork(path, folder):
    """Write an untrained hypernetwork of the model in `folder`, in the place of the one that ships."""
    from mintage.models import load_causal_lm
    from mintage.retrofit.core.embeddings import Parts
    from mintage.retrofit.core.hypernetwork import Hypernetwork, HypernetworkShape
    from mintage.retrofit.core.token_bytes import TokenBytes

    lm = load_causal_lm(folder, dtype="float32")
    source = Parts(lm.model, TokenBytes(lm.tokenizer))
    shape = HypernetworkShape(vocabulary=len(source.input), width=32, tied=True, hidden=16, inner=16, layers=1, heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = Hypernetwork(shape)
        disturb(net)
    net.bind(source, {"model": folder}).save(path / "zett-smollm2.safetensors")


def write_exact_bytes(folder):
    """Write prose to cut, and two tasks of code."""
    text = "the sea and then the other sea, and another: the end of the sea " * 5
    write(folder / "wikitext2_test_head.txt.gz", [f" {number} {text} \n" for number in range(3)])
    task = {
        "prompt": 'def one(x):\n    """Return x."""\n',
        "canonical_solution": "    y = x\n    return y\n",
        "test": "def check(f):\n    assert f(3) == 3\n",
        "entry_point": "one",
    }
    write(folder / "humaneval.jsonl.gz", [{"task_id": f"HumanEval/{number}", **task} for number in range(2)])


def write_dynamic_tokens(folder):
    """Write German and prose to merge, words of many languages, and pairs of sentences with scores."""
    text = "Die Verordnung regelt die Verteilung der Verantwortung in den Verwaltungen. " * 40
    write(folder / "xquad.jsonl.gz", [{"lang": "de", "par": n, "context": f"{n} {text}"} for n in range(3)])
    words = [{"lang": "deu", "text": f"Wort{n} und Satz{n} stehen hier", "eng": "word"} for n in range(30)]
    write(folder / "tatoeba_parallel.jsonl.gz", words)
    pairs = [(f"a plane number {n} flies", f"a number {n % 5} of planes", n % 6) for n in range(40)]
    write(
        folder / "sts.jsonl.gz",
        [{"set": "stsb", "split": "dev", "s1": a, "s2": b, "score": s} for a, b, s in pairs],
    )
    lines = [f" The river {n} runs through the town and out to the sea , they say . " * 12 + "\n" for n in range(9)]
    write(folder / "wikitext2_test_head.txt.gz", lines)


def small_encoder(folder):
    """Make a sentence encoder over the tokens of a model."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    return BertModel(config).eval(), tokenizer


def save_small_composer(shape_kind, composer_kind):
    """Make a composer that says something."""
    torch.manual_seed(4)
    net = composer_kind(shape_kind(width=32, hidden=16, heads=2, inner=16, tied=False, scale=float(torch.tensor(0.2))))
    for head in (net.input, net.output):
        torch.nn.init.normal_(head.weight, std=0.3)
    return net.eval()


def draw(arm, said, *columns):
    """Draw what a measurement of an arm might be, from its name and what else is said."""
    import hashlib

    name = type(arm).__name__
    digest = hashlib.sha256(f"{name} {said}".encode()).digest()
    share = {"ByteLM": 0.7, "TokenHealing": 0.5, "PlainContinuation": 0.2}.get(name, 0.3)
    hard = hashlib.sha256(said.encode()).digest()[0] / 255
    drawn = {
        "bits": 8 + 6 * hard - 4 * share + digest[0] / 255,
        "right": float(digest[1] / 255 < share),
        "right of some": float(digest[1] / 255 < share),
        "failed": float(digest[2] / 255 < 0.3),
        "first": 1.0 + digest[3] % 3,
        "forwards": 1.0 + digest[4] / 2550,
        "same": float(digest[5] / 255 < share),
        "passes": float(digest[6] / 255 < share),
    }
    return {name: drawn[name] for name in columns or drawn}
