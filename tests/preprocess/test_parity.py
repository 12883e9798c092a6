"""Host and graph give the same ids, on synthetic texts always and on real data if available."""

import functools
import itertools
import json
import random

import pytest
import tensorflow as tf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tfft.preprocess import TextInputs, tokenizer
from tfft.utils.errors import UserError

HARD = [
    "",
    " ",
    "What's the don't of it?  He'll they're 100 %",
    "Ünïcödé ÀÉÎ ﬁne ① ㎏ ſ ß İstanbul ΣΊΣΥΦΟΣ Σ",
    "e\u0302\u0301 a\u0323\u0302 s\u0337\u0321\u0322\u0318 \u0301x",
    "今天天气很好，我们去公园。 2D巅峰 ｶﾞﾊﾟ 한국어 \u1112\u1161\u11ab",
    "emoji 😀👍🏽 👨‍👩‍👧 🇩🇪 🥲🫠",
    "tabs\tand\nlines\r\nand\u00a0spaces\u2003\u3000 \u200b\u200d\ufe0f end ",
    "a\x00b \ufffd \u0085 \u2028 \u00ad",
    "[SEP] x[MASK]y <s> </s> <pad> <mask> z",
    "8888 waaaaaaaaves ooooooocean ------- 1.000,00",
    "x" * 130 + " " + "é" * 101 + " " + "好" * 120,
    "▁ ▁a b▁ c▁d",
    "http://example.org/a_b-c?d=e&f=g#h (i) [j] {k} \\ ` '' ``",
]


def random_texts(count: int, seed: int) -> list[str]:
    """Return random strings over alphabets that are difficult for tokenizers."""
    generator = random.Random(seed)
    alphabets = [
        [chr(c) for c in range(32, 127)],
        [chr(c) for c in range(0xA0, 0x250)],
        [chr(c) for c in range(0x300, 0x370)],
        [chr(c) for c in range(0x4E00, 0x4E60)],
        [chr(c) for c in range(0x1F300, 0x1FAFF)],
        list(" \t\n\r\u3000\u00a0\u2028\u200b\u200d\ufe0f\x00"),
        ["'s", "'ll", "[SEP]", "<s>", "ﬁ", "가", "ᄀ", "ᅡ", "Σ", "İ"],
    ]
    texts = []
    for _ in range(count):
        selection = generator.sample(alphabets, generator.randint(1, 4))
        texts.append(
            "".join(
                generator.choice(generator.choice(selection))
                for _ in range(generator.randint(0, 30))
            )
        )
    return texts


@functools.cache
def trained(kind: str) -> str:
    """Return a small tokenizer of a kind, trained on the hard texts."""
    corpus = HARD * 2 + random_texts(400, 5)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind.startswith("wordpiece"):
        host_tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        host_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=kind == "wordpiece")
        host_tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special)
    elif kind.startswith("bpe"):
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        host_tokenizer = Tokenizer(models.BPE())
        host_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=kind == "bpe_prefix"
        )
        host_tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=special, initial_alphabet=alphabet
        )
    else:
        special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
        host_tokenizer = Tokenizer(models.Unigram())
        host_tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Replace("``", '"'),
                normalizers.Replace("''", '"'),
                normalizers.NFKD(),
                normalizers.StripAccents(),
                normalizers.Lowercase(),
            ]
        )
        splits = [pre_tokenizers.WhitespaceSplit()] if kind == "unigram" else []
        host_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.Metaspace()]
        )
        if kind == "unigram_spaces":
            host_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=1500, special_tokens=special, unk_token="<unk>"
        )
        corpus = HARD + [text for text in corpus if text.isascii()]  # leaves characters unknown
    host_tokenizer.train_from_iterator(corpus, trainer)
    ids = host_tokenizer.token_to_id
    if kind.startswith("bpe"):
        host_tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", ids("</s>")), ("<s>", ids("<s>"))
        )
    else:
        host_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(t, ids(t)) for t in ("[CLS]", "[SEP]")],
        )
    return host_tokenizer.to_str()


KINDS = ("wordpiece", "wordpiece_cased", "bpe", "bpe_prefix", "unigram", "unigram_spaces")


def in_graph(all_inputs):
    """Return a function of texts in the graph: what the graph of each of `all_inputs` returns.

    They differ in their lengths only. What does not depend on those, the tokens of a whole text, is
    computed and traced once for all.
    """
    graphs = [inputs.graph() for inputs in all_inputs]
    tokenize = graphs[0]._ids

    def outputs(*columns):
        tokens = {column.ref(): tokenize(column) for column in columns}
        for graph in graphs:
            graph._ids = lambda text: tokens[text.ref()]
        return [graph(*columns) for graph in graphs]

    signature = [tf.TensorSpec([None], tf.string)] * len(all_inputs[0].columns)
    return tf.function(outputs, signature, autograph=False)


def assert_equal(spec, max_lengths, texts, pairs=None):
    """Assert that graph and host give equal ids and segments, for each length, row for row.

    The hard texts have words of hundreds of bytes, and all words of a batch take as many rounds as
    the longest. So they are a batch by themselves, and only some are batched with others.
    """
    all_inputs = [TextInputs(spec, length, pair=pairs is not None) for length in max_lengths]
    columns = [c for c in (texts, pairs) if c is not None]
    run = in_graph(all_inputs)
    starts = [0, *range(len(HARD), len(texts), 500), len(texts)]
    for start, end in [*itertools.pairwise(starts), (len(HARD) - 4, len(HARD) + 20)]:
        rows = [column[start:end] for column in columns]
        for inputs, outputs in zip(all_inputs, run(*map(tf.constant, rows)), strict=True):
            graph = {name: t.numpy() for name, t in outputs.items()}
            lengths = graph["padding_mask"].sum(axis=1)
            for index, (ids, segments, _) in enumerate(inputs.encode(*rows)):
                row = ascii([column[index] for column in rows])
                assert graph["token_ids"][index, : lengths[index]].tolist() == ids, row
                assert graph["segment_ids"][index, : lengths[index]].tolist() == segments, row


VARIANTS = ("wordpiece_cased", "bpe_prefix", "unigram_spaces")  # of the other kinds


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in VARIANTS else ()) for k in KINDS]
)
def test_single_texts_and_pairs(kind):
    spec = trained(kind)
    texts = HARD + random_texts(600, 1)
    assert_equal(spec, (24, 512), texts)
    pairs = random_texts(len(texts), 2)
    assert_equal(spec, (9, 16, 17), texts, pairs)  # even and odd: one text gets the odd token


def test_scores_are_rounded_as_on_the_host():
    """Check scores that the host's JSON reader rounds up, here so that "ab" is as good as a + b."""

    def spec(score, score_of_a):
        vocab = [("<unk>", 0.0), ("ab", score), ("a", score_of_a), ("b", 0.0)]
        host_tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
        host_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        return host_tokenizer.to_str()

    def read(score):
        return json.loads(Tokenizer.from_str(spec(score, -1.0)).to_str())["model"]["vocab"][1][1]

    candidates = (random.Random(seed).uniform(-12, -8) for seed in range(10_000))
    score_as_written = next(x for x in candidates if read(x) > x and read(read(x)) == read(x))
    inputs = TextInputs(spec(score_as_written, read(score_as_written)), 24)
    assert inputs.encode(["ab"])[0][0] == [1]
    assert inputs.graph()(tf.constant(["ab"]))["token_ids"].numpy().tolist() == [[1]]


def test_sampled_lines_of_real_data(real_data, vocabularies, tmp_path):
    """Check every 23rd line of all text files, for the vocabularies of BERT, GPT-2 and T5."""
    lines = real_lines(real_data)[::23]
    for spec in real_specs(vocabularies, tmp_path).values():
        assert_equal(spec, [128], lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_all_lines_of_real_data(name, real_data, vocabularies, tmp_path):
    assert_equal(real_specs(vocabularies, tmp_path)[name], [128], real_lines(real_data))


def real_lines(folder) -> list[str]:
    endings = (".tsv", ".csv", ".txt", ".jsonl", ".json", ".md", ".conll", ".annotated", ".all")
    lines: dict[str, None] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith((*endings, ".train", ".test")):
            text = path.read_text(encoding="utf-8", errors="replace")
            lines |= dict.fromkeys(text.split("\n"))
    assert len(lines) > 100_000
    return list(lines)


def real_specs(folder, tmp_path) -> dict[str, str]:
    """Return the tokenizers of the vocabularies, read from files as transformers names them."""
    files = {
        "bert": {"bert_base_uncased/vocab.txt": "vocab.txt"},
        "gpt2": {"gpt2/encoder.json": "vocab.json", "gpt2/vocab.bpe": "merges.txt"},
        "t5": {"t5/spiece.model": "spiece.model"},
    }
    specs = {}
    for name, names in files.items():
        target = tmp_path / name
        target.mkdir()
        (target / "config.json").write_text(json.dumps({"model_type": name}))
        for source, file in names.items():
            (target / file).write_bytes((folder / source).read_bytes())
        specs[name] = tokenizer.from_checkpoint(str(target))
    return specs


def test_invalid_utf8_is_replaced():
    inputs = TextInputs(trained("wordpiece"), 24)
    outputs = inputs.graph()(tf.constant([b"\xff\xfe red", b"sky"]))
    expected = inputs.batch(["\ufffd\ufffd red", "sky"])
    assert outputs["token_ids"].numpy().tolist() == expected["token_ids"].tolist()


def inputs_of(graph):
    return lambda text: graph(text)


def test_graph_survives_a_saved_model(tmp_path):
    for kind in ("wordpiece", "bpe", "unigram"):
        inputs = TextInputs(trained(kind), 24)
        module = tf.Module()
        module.graph = inputs.graph()
        signature = [tf.TensorSpec([None], tf.string)]
        module.run = tf.function(inputs_of(module.graph), signature, autograph=False)
        tf.saved_model.save(module, str(tmp_path / kind))
        outputs = tf.saved_model.load(str(tmp_path / kind)).run(tf.constant(HARD))
        assert outputs["token_ids"].numpy().tolist() == inputs.batch(HARD)["token_ids"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "WordPiece after Whitespace has no in-graph"),
        ({"normalizer": {"type": "Nmt"}}, "normalizer Nmt has no in-graph form"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(?=x)"}, "content": ""}},
            "has no in-graph form",
        ),
    ],
)
def test_host_tokenizer_without_graph_form_is_refused(change, message):
    spec = json.dumps({**json.loads(trained("wordpiece")), **change})
    with pytest.raises(UserError, match="tokenizer") as error:
        TextInputs(spec, 24).graph()
    assert message in str(error.value)


def test_max_length_must_exceed_the_special_tokens():
    with pytest.raises(UserError, match="must exceed the 2 special tokens"):
        TextInputs(trained("wordpiece"), 2)
