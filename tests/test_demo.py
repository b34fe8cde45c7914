"""The demo pool: counts, fields, determinism, and answers that are worked out again here by other means."""

from __future__ import annotations

import contextlib
import datetime as dt
import difflib
import hashlib
import io
import itertools
import json
import re
import sqlite3
import statistics
from collections import Counter, defaultdict

import pytest

from smartgpu import demo

SHA256 = "3dd9f5346b598259b66d327773f57d134ae40b567e6dd40534d06523f9d9f11a"
FIELDS = {
    "id": int,
    "task": str,
    "template": (str, type(None)),
    "instruction": str,
    "input": str,
    "output": str,
    "score": float,
    "source": str,
}
SOURCES = {"synthetic-math", "synthetic-language", "synthetic-code", "synthetic-facts", "synthetic-office"}
MONTHS = "January February March April May June July August September October November December".split()


@pytest.fixture(scope="module")
def rows():
    return demo.demo_rows()


@pytest.fixture(scope="module")
def good(rows):
    """Rows with a sound answer, by task."""
    by_task = defaultdict(list)
    for row in rows:
        if row["score"] > 2.5:
            by_task[row["task"]].append(row)
    return by_task


def question(row):
    return row["instruction"], row["input"]


def answer(row):
    """What an output of `ask` ends with."""
    return re.sub(r".*(?:The answer is|Answer:) (.*)\.$", r"\1", row["output"], flags=re.S)


def test_counts(rows):
    distinct = sum(task.rows for task in demo.TASKS.values())
    assert len(demo.TASKS) >= 30 and distinct >= 3000
    assert len(rows) == distinct + demo.EXACT + demo.NEAR
    assert len({question(row) for row in rows}) == distinct + demo.NEAR
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert {row["source"] for row in rows} == SOURCES


def test_fields(rows):
    for row in rows:
        assert list(row) == list(FIELDS)
        assert all(isinstance(row[field], kind) for field, kind in FIELDS.items())
        assert 0 <= row["score"] <= 5 and row["score"] == round(row["score"], 1)
        assert re.fullmatch(r"[a-z_]+", row["task"]) and row["instruction"] and row["output"]
        assert row["source"] == demo.TASKS[row["task"]].source


def test_poor_answers_have_low_scores(rows):
    poor = [row for row in rows if row["score"] <= 2.5]
    assert 0.04 < len(poor) / len(rows) < 0.08
    assert len({row["score"] for row in rows}) > 20


def test_exact_and_near_copies(rows):
    whole = Counter(json.dumps({k: v for k, v in row.items() if k != "id"}) for row in rows)
    assert sum(n - 1 for n in whole.values()) == demo.EXACT
    siblings, near = defaultdict(set), 0
    for row in rows:
        siblings[row["task"], row["input"], row["output"]].add(row["instruction"])
    for texts in siblings.values():
        ratios = [difflib.SequenceMatcher(None, a, b).ratio() for a in texts for b in texts if a < b]
        near += sum(ratio > 0.7 for ratio in ratios)
    assert near >= 0.9 * demo.NEAR


def test_sizes_are_uneven_and_tasks_mixed(rows):
    sizes = sorted(Counter(row["task"] for row in rows).values())
    assert sizes[0] < 25 and sizes[-1] > 300 and statistics.mean(sizes) > 1.2 * statistics.median(sizes)
    assert sum(a["task"] == b["task"] for a, b in itertools.pairwise(rows)) < 0.08 * len(rows)
    wordings = defaultdict(set)
    for row in rows:
        wordings[row["task"]].add(row["template"])
    assert sum(len(names) >= 3 for names in wordings.values()) >= 25
    assert any(names == {None} for names in wordings.values())


def test_text_is_readable(rows):
    shown = [(row["instruction"], row["input"], row["output"]) for row in rows]
    filler = re.compile(r"\btext \d+\b|lorem|\bTODO\b|\bNone\b|\{[a-z0-9]*\}|\\n|\ufffd|Fraction\(", re.I)
    for (instruction, text, output), row in zip(shown, rows, strict=True):
        for part in (instruction, text, output):
            part.encode("utf-8")
            assert part == part.strip() or row["score"] <= 2.5, part
            assert all(c.isprintable() or c == "\n" for c in part), part
            code = row["source"] == "synthetic-code" or row["score"] <= 2.5  # or an answer from there
            assert code or not filler.search(part) or "There is none" in part, part
            assert "  " not in (re.sub(r"\n +", "\n", part) if code else part) or row["score"] <= 2.5, part
        assert len(instruction) < 400 and len(text) < 600 and len(output) < 600


def test_same_bytes_everywhere(tmp_path):
    path = demo.write_demo(tmp_path / "pool.jsonl")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    assert [p.name for p in tmp_path.iterdir()] == ["pool.jsonl"]
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == demo.demo_rows(0)


def test_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "pool.jsonl").mkdir()
    with pytest.raises(OSError):
        demo.write_demo(tmp_path / "pool.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["pool.jsonl"]


@pytest.mark.parametrize("seed", [1, 2, 2**40])
def test_other_seeds(rows, seed):
    other = demo.demo_rows(seed)
    assert len(other) == len(rows) and other != rows
    assert Counter(r["task"] for r in other).keys() == Counter(r["task"] for r in rows).keys()


# Answers, worked out again.


def test_plain_arithmetic(good):
    checked = 0
    for row in good["arithmetic_word_problem"]:
        found = re.search(
            r"(?:What is|Compute|Evaluate) ([\d ()x+-]+)[?.]", row["instruction"] + " " + row["input"]
        )
        if found:
            checked += 1
            assert answer(row).replace(",", "") == str(eval(found[1].replace("x", "*"))), row
    assert checked > 20


def test_change_and_tickets(good):
    checked = 0
    for row in good["arithmetic_word_problem"]:
        text = row["instruction"] + " " + row["input"]
        found = re.search(r"buys (\d+) .* at \$([\d.]+) each and pays with \$(\d+\.\d\d)", text)
        if found:
            checked += 1
            assert answer(row) == f"${float(found[3]) - int(found[1]) * float(found[2]):.2f}", row
        found = re.search(r"(?:begins) at (\d+):(\d+) and lasts (\d+)", text)
        if found:
            hours, minutes, length = map(int, found.groups())
            end = dt.datetime(2024, 1, 1, hours, minutes) + dt.timedelta(minutes=length)
            assert answer(row) == f"{end:%H:%M}", row
    assert checked > 15


def test_unit_conversion(good):
    known = {
        ("miles", "kilometres"): 1.609344,
        ("kilometres", "miles"): 0.621371192,
        ("inches", "centimetres"): 2.54,
        ("pounds", "kilograms"): 0.45359237,
        ("kilograms", "pounds"): 2.20462262,
        ("days", "hours"): 24,
        ("ounces", "grams"): 28.3495231,
        ("litres", "US gallons"): 0.264172052,
        ("knots", "kilometres per hour"): 1.852,
    }
    checked = 0
    for row in good["unit_conversion"]:
        found = re.match(
            r"([\d,]+) ([a-zA-Z ]+?) (?:is|are|=)(?: about)? ([\d.,]+) ([a-zA-Z ]+)\.", row["output"]
        )
        if found and (found[2], found[4]) in known:
            checked += 1
            value = int(found[1].replace(",", "")) * known[found[2], found[4]]
            assert float(found[3].replace(",", "")) == pytest.approx(value, abs=0.0051), row
    assert checked > 30


def test_roman_numerals(good):
    values = dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000), strict=True))
    for row in good["roman_numerals"]:
        text = " ".join(row[k] for k in ("instruction", "input", "output"))
        numeral = next(w for w in re.findall(r"\b[IVXLCDM]+\b", text) if w != "I")
        signs = [values[c] for c in numeral]
        number = sum(-a if a < b else a for a, b in zip(signs, [*signs[1:], 0], strict=True))
        assert re.search(rf"\b{number}\b", text), row


def test_number_bases(good):
    base = {"decimal": 10, "binary": 2, "octal": 8, "hexadecimal": 16}
    for row in good["base_conversion"]:
        if row["template"] == "imperative":
            x, a, y, b = re.match(r"(\w+) in (\w+) is (\w+) in (\w+)\.", row["output"]).groups()
            assert int(x, base[a]) == int(y, base[b]), row


def test_dates(good):
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

    def dates(text):
        found = re.findall(rf"(\d+) ({'|'.join(MONTHS)}) (\d+)", text)
        return [dt.date(int(y), MONTHS.index(m) + 1, int(d)) for d, m, y in found]

    for row in good["date_arithmetic"]:
        text, out = row["instruction"] + " " + row["input"], row["output"]
        if row["template"] == "deadline":
            assert dates(out)[1] - dates(text)[0] == dt.timedelta(
                int(re.search(r"(\d+) days later", text)[1])
            ), row
        elif row["template"] == "countdown":
            assert (dates(text)[1] - dates(text)[0]).days == int(re.search(r"are (\d+) days", out)[1]), row
        elif row["template"] in ("weekday", "birthday"):
            assert days[dates(text)[0].weekday()] in out, row
        elif row["template"] == "iso":
            back = dt.timedelta(int(re.search(r"(\d+) days", text)[1]))
            assert dt.date.fromisoformat(row["input"]) - back == dt.date.fromisoformat(out), row
        else:
            year = int(re.search(r"\d{4}", text)[0])
            with contextlib.suppress(ValueError):
                assert dt.date(year, 2, 29) and out.startswith("Yes"), row
                continue
            assert out.startswith("No"), row


def test_sorting(good):
    for row in good["sort_list"]:
        split = "\n" if "\n" in row["input"] else ", "
        before, after = row["input"].split(split), row["output"].split(split)
        assert sorted(before) == sorted(after), row
        key = {
            "ascending": int,
            "descending": lambda x: -float(x),
            "by_length": len,
            "surnames": lambda p: p.split()[-1],
            "alphabetical": str,
            "dates": lambda x: -dt.date.fromisoformat(x).toordinal(),
        }[row["template"]]
        keys = [key(x) for x in after]
        assert keys == sorted(keys), row


def test_statistics(good):
    for row in good["statistics_summary"]:
        data = [int(x) for x in re.findall(r"\d+", row["input"] or row["instruction"])]
        number = float(re.findall(r"-?\d+(?:\.\d+)?", row["output"])[0 if row["template"] == "all" else -1])
        if row["template"] in ("all", "mean"):
            assert number == pytest.approx(statistics.mean(data), abs=0.0051), row
        elif row["template"] == "median":
            assert number == statistics.median(data), row
        else:
            assert number == max(data) - min(data), row


def test_queries_run(good):
    for row in good["sql_query"]:
        schema = re.search(r"\w+\(id, [\w, ]+\)", row["instruction"] + "\n" + row["input"])[0]
        database = sqlite3.connect(":memory:")
        database.execute(f"CREATE TABLE {schema}")
        database.execute(row["output"])
        database.close()


def test_python_runs(good):
    for row in good["python_output"]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(row["input"], {})
        said = row["output"].removeprefix("It prints ") if row["template"] == "explain" else row["output"]
        expected = printed.getvalue().strip()
        assert (
            said.startswith(f"{expected}, because") if row["template"] == "explain" else said == expected
        ), row
    for row in good["python_function"]:
        compile(row["input"] or row["output"], "demo", "exec")


def test_patterns_match(good):
    checked = 0
    for row in good["regex_explain"]:
        if row["template"] == "examples":
            checked += 1
            hit, miss = re.match(r"It finds: (.*)\nIt does not find: (.*)", row["output"]).groups()
            assert re.search(row["input"], hit) and not re.search(row["input"], miss), row
    assert checked > 5


def test_json_parses(good):
    for row in good["json_formatting"]:
        if row["template"] == "to_sentence":
            assert all(
                str(v) in row["output"] for v in json.loads(row["input"]).values() if isinstance(v, str)
            ), row
        else:
            data = json.loads(row["output"])
            assert row["template"] != "pretty" or data == json.loads(row["input"])


def test_probability_of_dice(good):
    for row in good["probability"]:
        found = re.search(r"sum is (\d+)", row["instruction"] + row["input"])
        if found:
            top, bottom = map(int, answer(row).split("/"))
            ways = [(a, b) for a in range(1, 7) for b in range(1, 7) if a + b == int(found[1])]
            assert top * 36 == bottom * len(ways), row


def test_equations(good):
    checked, side = 0, r"([\dxyntk +-]+)"
    for row in good["linear_equation"]:
        text = row["input"] or row["instruction"]
        found = re.search(rf"(?:for \w:|if) {side} = {side}\.?$", text)
        result = re.search(r"([xyntk]) = (-?\d+)\.?$", row["output"])
        if found and result:
            checked += 1
            left, right = (
                eval(re.sub(r"(\d+)[xyntk]", rf"\1*({result[2]})", text)) for text in found.groups()
            )
            assert left == right, row
    assert checked > 10


def test_expenses_add_up(good):
    for row in good["expense_report"]:
        cents = [int(x.replace(".", "").replace(",", "")) for x in re.findall(r"\$([\d.,]+\d)", row["input"])]
        if row["template"] == "total":
            assert row["output"] == f"Total: ${sum(cents) / 100:,.2f}", row
