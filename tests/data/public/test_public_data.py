"""Public data sets: original rows become the records they mean, unfit ones are dropped by name."""

import gzip
import json

import pytest

from rlhf_jax.data.public.preferences import LARGEST, consistent_rankings, ranks_of_pairs
from rlhf_jax.data.public.shapes import ON_HUB, SHAPES
from rlhf_jax.data.records import Comparison, Demonstration, Document, LabelledText, Message, Prompt
from rlhf_jax.data.sources import load


def user(content):
    return Message("user", content)


def robot(content):
    return Message("assistant", content)


@pytest.fixture
def read(tmp_path):
    def read(shape, record_type, *rows, split="train", options=""):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load(
            f"{shape}@jsonl:{tmp_path}/train.jsonl{options}", record_type, split=split, data_dir=""
        )

    return read


# Preferences.

HH = {
    "chosen": "\n\nHuman: Is it late?\n\nAssistant: A little.\n\nHuman: How late?"
    "\n\nAssistant:  Ten past ten.",
    "rejected": "\n\nHuman: Is it late?\n\nAssistant: A little.\n\nHuman: How late?"
    "\n\nAssistant: Go to bed!",
}
POST = {
    "id": "t3_1",
    "post": "My cat\n\nate my hat.",
    "title": "Hat?",
    "subreddit": "cats",
    "site": None,
    "article": None,
}
SUMMARIZE = {
    "info": POST,
    "summaries": [
        {"text": " Cat ate hat.", "policy": "ref", "note": None},
        {"text": " Cats.", "policy": "sup2", "note": None},
    ],
    "choice": 1,
    "worker": "w",
    "split": "train",
    "extra": {"confidence": 7},
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "1", "full_text": "Why is the sky blue?"},
    "quotes_0": {"title": [], "extract": []},
    "answer_0": "Rayleigh scattering [1].",
    "score_0": -0.5,
    "answer_1": "It reflects the sea.",
    "score_1": 0.5,
}
ULTRA = {
    "source": "evol_instruct",
    "instruction": "Name a fruit.",
    "models": ["a", "b", "c", "d"],
    "completions": [
        {
            "model": name,
            "response": name.upper(),
            "overall_score": score,
            "critique": "",
            "annotations": {},
        }
        for name, score in zip("abcd", (7.5, 9.0, 7.5, 1.0), strict=True)
    ],
}
SHP = {
    "post_id": "x",
    "domain": "askbaking_train",
    "history": "Why did my bread not rise?",
    "human_ref_A": "Old yeast.",
    "human_ref_B": "No idea.",
    "labels": 0,
    "score_A": 2,
    "score_B": 9,
    "score_ratio": 4.5,
}
QA = {
    "question": "When did it come out?",
    "passages": [
        ["Bloom", "Bloom\n\nBloom is an album.", "It came out in 2018."],
        ["Sky", "Sky is blue."],
    ],
    "prediction 1": "In 2018.",
    "prediction 2": "In May.",
    "prediction 3": "In 2017.",
    "prediction 4": "Never.",
    "preference": [1, 1, 1, 0, 1, 1],
}
UKP = {
    "id": "1_2",
    "topic": "is-tea-good-",
    "stance": "yes-very",
    "label": "a2",
    "a1": "hm",
    "a2": "Warm. <br/> Cheap.",
}
BENCH = {
    "prompt": "def double(x):\n",
    "chosen": "    return 2 * x\n",
    "chosen_model": "human",
    "rejected": "    return x * x\n",
    "rejected_model": "human",
    "subset": "hep-python",
    "id": 2,
}
UKP_QUERY = "Debate: is tea good\nSide: yes very\nGive a convincing argument."
QUERY = "SUBREDDIT: r/cats\n\nTITLE: Hat?\n\nPOST: My cat\n\nate my hat.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("shape", "row", "prompt", "responses", "ranks"),
    [
        (
            "hh",
            HH,
            (user("Is it late?"), robot("A little."), user("How late?")),
            ("Ten past ten.", "Go to bed!"),
            (1, 2),
        ),
        ("summarize", SUMMARIZE, (user(QUERY),), ("Cat ate hat.", "Cats."), (2, 1)),
        (
            "summarize",
            SUMMARIZE
            | {
                "info": {"id": "1", "post": None, "article": "It rained.", "site": "cnn"},
                "choice": 0,
            },
            (user("Article: It rained.\n\nTL;DR:"),),
            ("Cat ate hat.", "Cats."),
            (1, 2),
        ),
        (
            "webgpt",
            WEBGPT,
            (user("Why is the sky blue?"),),
            ("Rayleigh scattering [1].", "It reflects the sea."),
            (2, 1),
        ),
        ("webgpt", WEBGPT | {"score_0": 0.0, "score_1": 0.0}, None, None, (1, 1)),
        ("ultrafeedback", ULTRA, (user("Name a fruit."),), ("A", "B", "C", "D"), (2, 1, 2, 4)),
        ("shp", SHP, (user("Why did my bread not rise?"),), ("Old yeast.", "No idea."), (2, 1)),
        ("shp", SHP | {"labels": 1}, None, None, (1, 2)),
        (
            "qa_feedback",
            QA,
            (
                user(
                    "Bloom\n\nBloom is an album.\nIt came out in 2018.\n\nSky is blue."
                    "\n\nWhen did it come out?"
                ),
            ),
            ("In 2018.", "In May.", "In 2017.", "Never."),
            (1, 2, 2, 4),
        ),
        ("qa_feedback_closed", QA, (user("When did it come out?"),), None, (1, 2, 2, 4)),
        ("ukp", UKP, (user(UKP_QUERY),), ("hm", "Warm.\nCheap."), (2, 1)),
        ("ukp", UKP | {"label": "a1"}, None, None, (1, 2)),
        (
            "reward_bench",
            BENCH,
            (user("def double(x):\n"),),
            ("    return 2 * x\n", "    return x * x\n"),
            (1, 2),
        ),
        (
            "pairs",
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1},
            (user("q"),),
            ("a", "b"),
            (1, 2),
        ),
    ],
)
def test_rankings(read, shape, row, prompt, responses, ranks):
    (found,) = read(shape, Comparison, row)
    assert found.ranks == ranks
    assert prompt is None or found.messages == prompt
    assert responses is None or found.responses == responses
    assert read(shape, Prompt, row) == [Prompt(found.messages, found.metadata)]
    best = found.responses[ranks.index(1)]
    assert read(shape, Demonstration, row) == [
        Demonstration((*found.messages, robot(best)), found.metadata)
    ]


def turns(*pairs):
    return "".join(f"\n\n{speaker}: {words}" for speaker, words in pairs)


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [
        ("hh", HH | {"rejected": HH["chosen"]}, "with equal responses"),
        (
            "hh",
            {"chosen": HH["chosen"], "rejected": turns(("Human", "No?"), ("Assistant", "b"))},
            "whose sides differ",
        ),
        (
            "hh",
            {name: turns(("Human", "q"), ("Human", "q"), ("Assistant", name)) for name in HH},
            "whose speakers do not",
        ),
        (
            "hh",
            {"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "with an empty resp",
        ),
        (
            "hh",
            {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant:"},
            "with an empty response",
        ),
        ("hh", {name: "\n\nHuman: \n\nAssistant: " + name for name in HH}, "with an empty turn"),
        ("hh", {"chosen": "q", "rejected": "q"}, "that begin with no speaker"),
        ("webgpt", WEBGPT | {"answer_0": " "}, "with an empty response"),
        (
            "ultrafeedback",
            ULTRA | {"completions": ULTRA["completions"][:1]},
            "with fewer than 2 completions",
        ),
        (
            "qa_feedback",
            QA | {"preference": [1, 2, 1, 1, 1, 1]},
            "with answers that no ranking agrees with",
        ),
        ("reward_bench", BENCH | {"rejected": "\n"}, "with an empty response"),
        ("pairs", {"prompt": " ", "chosen": "a", "rejected": "b"}, "with an empty prompt"),
        (
            "dolly",
            {"instruction": "q", "context": "", "response": "", "category": "x"},
            "with an empty response",
        ),
        ("text", {"text": " \n"}, "with no text"),
    ],
)
def test_unfit_rows_are_dropped_by_name(read, capsys, shape, row, reason):
    good = {
        "hh": HH,
        "webgpt": WEBGPT,
        "ultrafeedback": ULTRA,
        "qa_feedback": QA,
        "text": {"text": "x"},
        "reward_bench": BENCH,
        "pairs": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "dolly": {"instruction": "q", "context": "", "response": "a"},
    }[shape]
    kind = next(iter(SHAPES[shape].converters))
    assert len(read(shape, kind, good, row)) == 1
    line = capsys.readouterr().out
    assert f"1 of 2 records dropped: 1 {reason}" in line
    assert line.count("\n") == 1
    with pytest.raises(ValueError, match=r"1 of 1 records dropped: 1 .*; nothing is left"):
        read(shape, kind, row)


@pytest.mark.parametrize(
    ("shape", "row", "complaint"),
    [
        (
            "hh",
            {"chosen": "x"},
            "rejected: missing field, expected 'rejected' in the row, found chosen",
        ),
        ("hh", HH | {"rejected": None}, "rejected: null, expected a string"),
        ("summarize", SUMMARIZE | {"choice": 2}, "choice: 2, expected one of 0, 1"),
        (
            "summarize",
            SUMMARIZE | {"info": 1},
            "info.post: missing field, expected 'post' in info, found int",
        ),
        ("summarize", SUMMARIZE | {"summaries": []}, "summaries: 0 of them, expected 2"),
        ("webgpt", WEBGPT | {"score_1": "high"}, "score_1: 'high', expected a number"),
        ("webgpt", WEBGPT | {"score_1": float("nan")}, "score_1: nan, expected a number"),
        (
            "qa_feedback",
            QA | {"preference": [1, 1]},
            "preference: [1, 1], expected 6 answers 0, 1 or 2",
        ),
        ("ukp", UKP | {"label": "b"}, "label: 'b', expected one of 'a1', 'a2'"),
        ("ukp", UKP | {"a1": "\ud800"}, "a1: half of a surrogate pair"),
        (
            "reward_bench",
            {name: value for name, value in BENCH.items() if name != "subset"},
            "subset: missing field",
        ),
        ("hh", [1], "chosen: missing field, expected 'chosen' in the row, found list"),
    ],
)
def test_malformed_rows_are_errors_with_their_place(read, shape, row, complaint):
    with pytest.raises(ValueError) as error:
        read(
            shape,
            Comparison,
            {
                "hh": HH,
                "summarize": SUMMARIZE,
                "webgpt": WEBGPT,
                "qa_feedback": QA,
                "ukp": UKP,
                "reward_bench": BENCH,
            }[shape],
            row,
        )
    place, _, rest = str(error.value).partition(".jsonl:2: ")
    assert place
    assert rest.startswith(complaint)


def test_rewardbench_keeps_its_subsets(read):
    (found,) = read("reward_bench", Comparison, BENCH)
    assert found.metadata == {"subset": "hep-python"}
    assert ON_HUB["allenai/reward-bench"].shape == "reward_bench"


def test_rankings_from_pairs_of_answers():
    # (1,2) (1,3) (1,4) (2,3) (2,4) (3,4); of all 3^6 answers those of the 75 weak orders of 4
    # things have ranks, and no others.
    assert ranks_of_pairs([0] * 6, num_items=4) == [1, 1, 1, 1]
    assert ranks_of_pairs([2, 2, 2, 2, 2, 2], num_items=4) == [4, 3, 2, 1]
    assert ranks_of_pairs([1, 0, 1, 2, 0, 1], num_items=4) == [1, 3, 1, 3]
    agreeing = set()
    for code in range(3**6):
        answers = [code // 3**k % 3 for k in range(6)]
        try:
            agreeing.add(tuple(ranks_of_pairs(answers, num_items=4)))
        except Exception as error:
            assert "no ranking" in str(error)  # noqa: PT017
    assert len(agreeing) == 75


def test_low_ratios_of_votes_are_dropped_on_request(read, capsys):
    rows = (SHP, SHP | {"score_ratio": 1.5})
    assert len(read("shp", Comparison, *rows)) == 2
    assert len(read("shp", Comparison, *rows, options="?min_ratio=2")) == 1
    assert "1 of 2 records dropped: 1 with a score ratio below 2" in capsys.readouterr().out


def test_pairs_of_ukp_become_rankings(read, capsys):
    def row(better, worse):
        return UKP | {"label": "a1", "a1": better, "a2": worse}

    beaten = {"A": "BCD", "B": "CD", "C": "DE", "E": "A", "F": "G"}
    rows = [row(a, b) for a, others in beaten.items() for b in others] + [
        row("X", "Y"),
        row("Y", "X"),
    ]
    found = [item.responses for item in read("ukp_rankings", Comparison, *rows)]
    # E beat A, who beat C, who beat E: no ranking holds all three, and every pair is in one.
    assert found == [("A", "B", "C", "D"), ("C", "E"), ("E", "A"), ("F", "G")]
    assert (
        "2 of 6 records dropped: 2 with a pair that was judged both ways" in capsys.readouterr().out
    )
    assert read("ukp_rankings", Comparison, *rows)[0].messages == (user(UKP_QUERY),)


def test_rankings_hold_every_judged_pair_and_no_other():
    strength = {f"a{k}": k * 7 % 20 for k in range(20)}
    judged = {
        (a, b)
        for a in strength
        for b in strength
        if strength[a] > strength[b] and (strength[a] * strength[b]) % 3
    }
    found = list(consistent_rankings(sorted(judged)))
    assert {
        (a, b) for order in found for k, a in enumerate(order) for b in order[k + 1 :]
    } == judged
    assert max(map(len, found)) == LARGEST
    assert sum(map(len, found)) < len(judged)  # passes; pairs alone would take twice their number


def test_the_original_files_of_ukp(tmp_path):
    text = '#id\tlabel\ta1\ta2\n1_2\ta1\tI said "tea".\tno <br/> tea\n3_4\ta2\tx\ty\n'
    (tmp_path / "is-tea-good-_yes-very.csv").write_text(text)
    (tmp_path / "z_no.csv").write_text("#id\tlabel\ta1\ta2\n5_6\ta1\tx\tz\n")
    found = load(f"ukp@tsv:{tmp_path}", Comparison, split="train", data_dir="")
    assert found[0] == Comparison(
        (user(UKP_QUERY),),
        ('I said "tea".', "no\ntea"),
        (1, 2),
        {"topic": "is-tea-good-", "stance": "yes-very"},
    )
    assert [item.metadata["topic"] for item in found] == ["is-tea-good-", "is-tea-good-", "z"]
    (tmp_path / "is-tea-good-_yes-very.csv").unlink()
    (tmp_path / "is-tea-good-_yes-very.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert load(f"ukp@tsv:{tmp_path}", Comparison, split="train", data_dir="") == found
    (tmp_path / "z_no.csv").write_text("#id\tlabel\ta1\ta2\n5_6\ta1\tx\n")
    with pytest.raises(ValueError, match=r"z_no\.csv:2: 3 columns, expected 4 as in the header"):
        load(f"ukp@tsv:{tmp_path}", Comparison, split="train", data_dir="")


# Demonstrations.


@pytest.mark.parametrize(
    ("shape", "row", "prompt", "response"),
    [
        (
            "dolly",
            {"instruction": "Why?", "context": "", "response": "So.", "category": "open_qa"},
            "Why?",
            "So.",
        ),
        (
            "dolly",
            {"instruction": "Why?", "context": "It is.", "response": "So.", "category": "x"},
            "Why?\n\nIt is.",
            "So.",
        ),
        (
            "alpaca",
            {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below ..."},
            "Add.\n\n1 2",
            "3",
        ),
        (
            "gsm8k",
            {"question": "1+1?", "answer": "It is <<1+1=2>>2\n#### 2"},
            "1+1?",
            "It is <<1+1=2>>2\n#### 2",
        ),
        ("tldr", {"prompt": QUERY, "label": " Cat ate hat."}, QUERY, "Cat ate hat."),
        ("reddit", POST | {"summary": "Cat ate hat."}, QUERY, "Cat ate hat."),
        (
            "webis",
            {"content": "My cat\n\n\n\nate.\n", "summary": "Cat.", "title": None},
            "My cat\n\nate.",
            "Cat.",
        ),
    ],
)
def test_demonstrations(read, shape, row, prompt, response):
    assert read(shape, Demonstration, row) == [Demonstration((user(prompt), robot(response)))]
    # A reward asks for the answer of a question, so the prompt keeps it.
    metadata = {"answer": row["answer"]} if shape == "gsm8k" else {}
    assert read(shape, Prompt, row) == [Prompt((user(prompt),), metadata)]


def message(name, parent, role, rank, **more):
    return {
        "message_id": name,
        "parent_id": parent,
        "role": role,
        "text": name,
        "rank": rank,
        "lang": "en",
        **more,
    }


OASST = [
    message("q", None, "prompter", None),
    message("gone", "q", "assistant", 0, deleted=True),
    message("late", "q", "assistant", None),
    message("bad", "q", "assistant", 1),
    message("good", "q", "assistant", 0.0),
    message("more", "good", "prompter", None),
    message("end", "more", "assistant", None),
    message("thanks", "end", "prompter", None),
    message("frage", None, "prompter", None, lang="de"),
]


def tree(name):
    replies = [tree(row["message_id"]) for row in OASST if row["parent_id"] == name]
    return {**next(row for row in OASST if row["message_id"] == name), "replies": replies}


@pytest.mark.parametrize(
    "rows", [OASST, [{"message_tree_id": name, "prompt": tree(name)} for name in ("q", "frage")]]
)
def test_trees(read, capsys, rows):
    best = (user("q"), robot("good"), user("more"), robot("end"))
    assert read("oasst", Demonstration, *rows) == [Demonstration(best)]
    assert "1 of 2 records dropped: 1 without a reply" in capsys.readouterr().out
    assert read("oasst", Comparison, *rows) == [Comparison((user("q"),), ("bad", "good"), (2, 1))]
    assert read("oasst", Prompt, *rows) == [Prompt((user("q"),)), Prompt((user("frage"),))]
    assert read("oasst", Prompt, *rows, options="?lang=de") == [Prompt((user("frage"),))]


def test_a_torn_tree_is_an_error(read):
    with pytest.raises(ValueError, match=r"train\.jsonl:1: parent_id: 'q' is not among the rows"):
        read("oasst", Demonstration, *OASST[1:])


# Text.


def test_wikitext_is_joined_to_articles(read, capsys):
    lines = [
        "",
        " = Tea = \n",
        "",
        " Tea is hot . \n",
        " = = History = = \n",
        " Old . \n",
        " = Owl = \n",
        " An owl . \n",
    ]
    found = read("wikitext", Document, *({"text": line} for line in lines))
    assert found == [Document("".join(lines[1:6])), Document("".join(lines[6:]))]
    assert capsys.readouterr().out == ""  # what stands before the first title is no document


def test_reviews(read, capsys):
    rows = (
        {"text": "Fine.<br /><br />Really fine.", "label": 1},
        {"text": "Bad.", "label": "neg"},
        {"text": "?", "label": -1},
    )
    assert read("imdb", LabelledText, *rows) == [
        LabelledText("Fine.\n\nReally fine.", "pos"),
        LabelledText("Bad.", "neg"),
    ]
    assert "1 of 3 records dropped: 1 without a label" in capsys.readouterr().out
    assert read("imdb_openings", Prompt, rows[0], options="?words=2") == [
        Prompt((user("Fine. Really"),))
    ]
    with pytest.raises(
        ValueError, match=r"option: no words, expected \?words=VALUE, which imdb_openings needs"
    ):
        read("imdb_openings", Prompt, *rows)
    with pytest.raises(ValueError, match="words: 'two', expected how many words"):
        read("imdb_openings", Prompt, *rows, options="?words=two")


def test_plain_text_is_one_document_a_file_or_a_block(tmp_path):
    (tmp_path / "a.txt").write_text("First:\nSpeak.\n\n\nAll:\nNo.\n \t\nOut.\n")
    (tmp_path / "b.txt").write_bytes("\ufefféé".encode())
    (tmp_path / "b.md").write_text("no")

    def texts(source, split="train"):
        return [document.text for document in load(source, Document, split=split, data_dir="")]

    assert texts(f"text:{tmp_path}") == ["First:\nSpeak.\n\n\nAll:\nNo.\n \t\nOut.\n", "éé"]
    assert texts(f"blocks:{tmp_path}/a.txt") == ["First:\nSpeak.", "All:\nNo.", "Out."]
    tail = f"blocks:{tmp_path}/a.txt?train=train[:67%]&validation=train[67%:]"
    assert texts(tail) == ["First:\nSpeak.", "All:\nNo."]
    assert texts(tail, "validation") == ["Out."]
    (tmp_path / "a.txt").write_bytes(b"caf\xc3\xa9\nca\xff\n")
    with pytest.raises(
        ValueError, match=r"a\.txt:2: encoding: byte 0xff at column 3, expected UTF-8"
    ):
        texts(f"text:{tmp_path}")


# Files and names.


def test_json_lists_and_gzip(tmp_path):
    (tmp_path / "dev.json").write_text(json.dumps([QA, QA | {"preference": 3}]))
    with pytest.raises(ValueError, match=r"dev\.json\[1\]: preference: int, expected a list"):
        load(f"qa_feedback@json:{tmp_path}/dev.json", Comparison, split="train", data_dir="")
    (tmp_path / "dev.json").write_text(json.dumps(QA))
    with pytest.raises(
        ValueError,
        match=r"dev\.json: dict, expected a list of objects; JSON lines are read with jsonl:",
    ):
        load(f"qa_feedback@json:{tmp_path}/dev.json", Comparison, split="train", data_dir="")
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(json.dumps(HH).encode()))
    assert len(load(f"hh@jsonl:{tmp_path}", Comparison, split="train", data_dir="")) == 1
    assert len(load(f"hh@hf:{tmp_path}", Comparison, split="train", data_dir="")) == 1
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(json.dumps(HH).encode())[:-9])
    with pytest.raises(ValueError, match=r"train\.jsonl\.gz: gzip: .*, expected a whole \.gz file"):
        load(f"hh@jsonl:{tmp_path}", Comparison, split="train", data_dir="")


def test_every_hub_name_has_a_shape():
    assert {name.shape for name in ON_HUB.values()} <= set(SHAPES)


def test_a_shape_says_what_it_holds(read):
    with pytest.raises(ValueError, match=r"imdb@jsonl:.*: holds LabelledText, expected Comparison"):
        read("imdb", Comparison, {"text": "x", "label": 1})
