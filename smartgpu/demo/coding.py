"""Tasks about code and data formats: SQL, Python, regular expressions, shell, strings, JSON and CSV."""

from __future__ import annotations

import json
import re

from .registry import CITIES, NAMES, SURNAMES, Dice, Row, listed, table, task

SOURCE = "synthetic-code"

SCHEMAS = {
    "employees": "employees(id, name, department, salary, hired)",
    "orders": "orders(id, customer, product, quantity, price, ordered)",
    "books": "books(id, title, author, genre, year, pages)",
    "flights": "flights(id, origin, destination, minutes, seats)",
}
FIELDS = table("""
employees | name | department | salary | employees | Sales; Legal; Research; Support | 30000 | 90000
orders | product | customer | quantity | orders | Novak; Berg; Ito; Costa | 2 | 60
books | title | genre | pages | books | poetry; history; travel; science | 90 | 800
flights | id | origin | minutes | flights | Oslo; Lima; Seoul; Vienna | 45 | 600
""")
QUERIES = table("""
Show the {show} and the {num} of all {what} where the {num} is above {n}. | SELECT {show}, {num} FROM {t} WHERE {num} > {n};
List every column of the {what} whose {group} is {v}. | SELECT * FROM {t} WHERE {group} = '{v}';
How many {what} are there for each {group}? | SELECT {group}, COUNT(*) FROM {t} GROUP BY {group};
What is the average {num} of the {what} per {group}? | SELECT {group}, AVG({num}) FROM {t} GROUP BY {group};
Return the {k} {what} with the highest {num}. | SELECT * FROM {t} ORDER BY {num} DESC LIMIT {k};
Which values of {group} occur at least {k} times? | SELECT {group} FROM {t} GROUP BY {group} HAVING COUNT(*) >= {k};
Delete the {what} whose {num} is below {n}. | DELETE FROM {t} WHERE {num} < {n};
Set the {num} to {n} in the row of {t} with id {k}. | UPDATE {t} SET {num} = {n} WHERE id = {k};
List the different values of {group} in alphabetical order. | SELECT DISTINCT {group} FROM {t} ORDER BY {group};
What is the total {num} of the {what} whose {group} is {v}? | SELECT SUM({num}) FROM {t} WHERE {group} = '{v}';
Find the {show} of the {what} whose {num} is above the average. | SELECT {show} FROM {t} WHERE {num} > (SELECT AVG({num}) FROM {t});
Count the {what} whose {group} is not {v}. | SELECT COUNT(*) FROM {t} WHERE {group} <> '{v}';
""")


@task("sql_query", SOURCE, 88)
def sql_query(d: Dice) -> Row:
    """A question about one table and the query that answers it."""
    t, show, group, num, what, values, low, high = d.pick(FIELDS)
    step = 500 if int(high) > 9999 else 5
    slots = {
        "t": t,
        "show": show,
        "group": group,
        "num": num,
        "what": what,
        "v": d.pick(values.split("; ")),
        "n": d.int(int(low), int(high), step),
        "k": d.int(2, 12),
    }
    ask, query = (text.format(**slots) for text in d.pick(QUERIES))
    if d.chance(50):
        return (
            "schema_input",
            ask.replace("?", "? Answer with SQL.") if ask.endswith("?") else f"Write SQL: {ask}",
            SCHEMAS[t],
            query,
        )
    return "question_input", f"Given the table {SCHEMAS[t]}, write a SQL query.", ask, query


FUNCTIONS = table("""
returns the largest of three numbers | def largest(a, b, c):;    return max(a, b, c)
counts the vowels in a string | def count_vowels(text):;    return sum(c in "aeiou" for c in text.lower())
tells whether a word is a palindrome | def is_palindrome(word):;    word = word.lower();    return word == word[::-1]
returns the factorial of n | def factorial(n):;    result = 1;    for i in range(2, n + 1):;        result *= i;    return result
removes duplicates but keeps the order | def unique(items):;    return list(dict.fromkeys(items))
flattens a list of lists | def flatten(rows):;    return [x for row in rows for x in row]
counts how often each word occurs | def word_counts(text):;    counts = {};    for w in text.split():;        counts[w] = counts.get(w, 0) + 1;    return counts
returns the greatest common divisor | def gcd(a, b):;    while b:;        a, b = b, a % b;    return a
checks whether n is prime | def is_prime(n):;    return n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))
swaps the keys and values of a dictionary | def invert(d):;    return {v: k for k, v in d.items()}
splits a list into chunks of size n | def chunks(items, n):;    return [items[i:i + n] for i in range(0, len(items), n)]
adds up the digits of a positive integer | def digit_sum(n):;    return sum(int(c) for c in str(n))
converts Celsius to Fahrenheit | def to_fahrenheit(c):;    return c * 9 / 5 + 32
returns the longest word of a sentence | def longest_word(text):;    return max(text.split(), key=len)
finds the second largest distinct number | def second_largest(xs):;    return sorted(set(xs))[-2]
""")


@task("python_function", SOURCE, 28)
def python_function(d: Dice) -> Row:
    """Small functions written out."""
    what, code = d.pick(FUNCTIONS)
    code = code.replace(";", "\n")
    if d.chance(60):
        return "write", f"Write a Python function that {what}.", "", code
    return "explain", "What does this Python function do?", code, f"It {what}."


SNIPPETS = (
    lambda d, a, b, w, xs: (
        f"print({a} // {b}, {a} % {b})",
        f"{a // b} {a % b}",
        "// is floor division and % is the remainder",
    ),
    lambda d, a, b, w, xs: (
        f"xs = {xs}\nprint(xs[1:4])",
        str(xs[1:4]),
        "a slice takes the items at index 1, 2 and 3",
    ),
    lambda d, a, b, w, xs: (
        f"xs = {xs}\nprint(sum(x for x in xs if x % 2 == 0))",
        str(sum(x for x in xs if x % 2 == 0)),
        "only even numbers are added",
    ),
    lambda d, a, b, w, xs: (
        f'word = "{w}"\nprint(word[::-1].upper())',
        w[::-1].upper(),
        "a step of -1 reverses the string",
    ),
    lambda d, a, b, w, xs: (
        f'print("-".join("{w}"[:{b}]))',
        "-".join(w[:b]),
        "join puts a hyphen between the letters",
    ),
    lambda d, a, b, w, xs: (
        f"total = 0\nfor i in range({b}, {a}, {b}):\n    total += i\nprint(total)",
        str(sum(range(b, a, b))),
        "range leaves out its end",
    ),
    lambda d, a, b, w, xs: (
        f"xs = {xs}\nxs.sort(reverse=True)\nprint(xs[0], xs[-1])",
        f"{max(xs)} {min(xs)}",
        "after sorting, the largest comes first and the smallest last",
    ),
    lambda d, a, b, w, xs: (
        f'd = {{"{w}": {a}}}\nprint(d.get("{w}", 0) + d.get("missing", {b}))',
        str(a + b),
        "get returns its second argument for a key that is absent",
    ),
    lambda d, a, b, w, xs: (
        f"print([x * {b} for x in range({b + 2})])",
        str([x * b for x in range(b + 2)]),
        "the list starts at 0",
    ),
    lambda d, a, b, w, xs: (
        f'print(len(set("{w}")))',
        str(len(set(w))),
        "a set keeps each different letter once",
    ),
    lambda d, a, b, w, xs: (
        f"a, b = {a}, {b}\na, b = b, a + b\nprint(a, b)",
        f"{b} {a + b}",
        "the right side is evaluated first",
    ),
)
CODE_WORDS = "python lantern pepper bottle harvest winter saddle mirror coffee banana guitar planet".split()


@task("python_output", SOURCE, 84)
def python_output(d: Dice) -> Row:
    """What a few lines of Python print."""
    code, out, why = d.pick(SNIPPETS)(
        d, d.int(11, 60), d.int(2, 6), d.pick(CODE_WORDS), [d.int(1, 40) for _ in range(6)]
    )
    style = d.int(0, 2)
    if style == 0:
        return "output_only", "State the exact output of this Python code.", code, out
    if style == 1:
        return (
            "explain",
            "What does this Python code print, and why?",
            code,
            f"It prints {out}, because {why}.",
        )
    return "predict", f"{d.pick(NAMES)} runs the script below. What appears on the screen?", code, out


PATTERNS = table(r"""
^\d{4}$ | exactly four digits and nothing else | 2024 | 20245
^[A-Z][a-z]+$ | one capital letter followed by small letters | Lisbon | lisbon
colou?r | color or colour, because the u is optional | colour | cooler
^\s*# | a line whose first visible character is a hash sign | # a comment | chapter #1
\bcat\b | the word cat, not cat inside another word | a cat sat | concatenate
^[^@\s]+@[^@\s]+$ | something, one at sign, something, without spaces: a rough email check | ana@example.com | ana.example.com
^(?:red;green;blue)$ | one of the three words red, green and blue | green | greenish
\d+(?:\.\d+)? | a whole number or a decimal number | 3.14 | pi
^#[0-9a-fA-F]{6}$ | a hash sign and six hexadecimal digits, such as a web colour | #1e90ff | #xyz123
^.{8,}$ | at least eight characters of any kind | longenough | short
(\w)\1 | the same word character twice in a row | letter | water
^(?!.*\d).+$ | a line without any digit | no numbers | room 7
""")


@task("regex_explain", SOURCE, 33)
def regex_explain(d: Dice) -> Row:
    """Patterns, what they match and what they do not."""
    pattern, meaning, good, bad = d.pick(PATTERNS)
    pattern, style = pattern.replace(";", "|"), d.int(0, 2)
    if style == 0:
        return (
            "explain",
            "Explain this regular expression in plain English.",
            pattern,
            f"It matches {meaning}.",
        )
    if style == 1:
        return "write", f"Write a regular expression that matches {meaning}.", "", pattern
    q = "For this regular expression give a text that it finds and one that it does not."
    return "examples", q, pattern, f"It finds: {good}\nIt does not find: {bad}"


SHELL = table("""
list all files in {d}, hidden ones too | ls -a {d} | -a includes names that start with a dot
show the last {n} lines of {f} | tail -n {n} {f} | -n sets the number of lines
show the first {n} lines of {f} | head -n {n} {f} | -n sets the number of lines
count the lines in {f} | wc -l {f} | -l counts lines
find lines with the word {w} in {f}, in either case | grep -i {w} {f} | -i ignores case
search for {w} in all files below {d} | grep -r {w} {d} | -r goes into subfolders
create the folder {d}/{w} together with missing parents | mkdir -p {d}/{w} | -p creates parents
copy the folder {d} to backup with everything in it | cp -r {d} backup | -r copies recursively
rename {f} to {w}.old | mv {f} {w}.old | mv both moves and renames
show how much space {d} takes, in readable units | du -sh {d} | -s sums up and -h prints readable units
make the script {w}.sh executable | chmod +x {w}.sh | +x adds the right to execute
pack {d} into a compressed archive {w}.tar.gz | tar -czf {w}.tar.gz {d} | c creates, z compresses, f names the file
sort {f} and drop repeated lines | sort -u {f} | -u keeps each line once
find files below {d} larger than {n} MB | find {d} -type f -size +{n}M | -size +{n}M means more than that many mebibytes
replace every {w} in {f} by draft and print the result | sed 's/{w}/draft/g' {f} | g replaces all matches on a line
print the second column of the comma-separated file {f} | cut -d, -f2 {f} | -d sets the separator and -f the field
""")


@task("shell_command", SOURCE, 56)
def shell_command(d: Dice) -> Row:
    """Common commands of a Unix shell."""
    slots = {
        "d": d.pick(("logs", "photos", "src", "reports")),
        "f": d.pick(("access.log", "notes.txt", "sales.csv", "todo.md")),
        "n": d.pick((5, 10, 20, 50)),
        "w": d.pick(("error", "invoice", "deploy", "summary")),
    }
    what, command, why = (text.format(**slots) for text in d.pick(SHELL))
    style = d.int(0, 2)
    if style == 0:
        return "how_to", f"Which shell command do I use to {what}?", "", f"Use `{command}`; {why}."
    if style == 1:
        return "command_only", "Write one Unix command for this job.", what, command
    return "explain", "Explain what this command does.", command, f"It is the command to {what}: {why}."


REVIEW = table("""
def add(item, items=[]):^    items.append(item)^    return items | The default list is shared between calls; use None and create the list inside.
try:^    load()^except:^    pass | A bare except hides every error, even Ctrl-C; catch the exception you expect and log it.
if x == None:^    x = 0 | Compare with None by identity: `if x is None`.
for i in range(len(names)):^    print(names[i]) | Iterate over the list itself: `for name in names`.
f = open("data.txt")^text = f.read() | The file is never closed; use `with open("data.txt") as f`.
query = "SELECT * FROM users WHERE name = '" + name + "'" | The input goes into the SQL text, so it can be injected; pass it as a parameter.
password = "hunter2"^connect(password) | A secret does not belong in the source; read it from the environment.
if price == 0.1 + 0.2:^    print("equal") | Floats are rarely exactly equal; use math.isclose or Decimal for money.
result = ""^for part in parts:^    result += part | Repeated += copies the string each time; use "".join(parts).
for key in d:^    if d[key] < 0:^        del d[key] | A dictionary must not change while it is iterated; loop over list(d).
def area(w, h):^    print(w * h) | The function prints instead of returning, so the result cannot be reused.
if is_open == True:^    close() | Comparing with True is redundant; write `if is_open`.
time.sleep(86400) | The bare number is hard to read; name it, for example SECONDS_PER_DAY.
list = [1, 2, 3] | The name hides the built-in type list; choose another name.
assert user.is_admin, "no access" | Assertions vanish under python -O; raise an exception for access control.
""")


@task("code_review_hint", SOURCE, 15)
def code_review_hint(d: Dice) -> Row:
    """One weakness of a Python snippet and its remedy."""
    code, hint = d.pick(REVIEW)
    template, q = d.pick(
        (
            ("review", "Review this Python code and name its main problem."),
            ("improve", "How could this code be improved?"),
        )
    )
    return template, q, code.replace("^", "\n"), hint


TITLES = (
    "the garden behind the station|a quiet evening in the mountains|how to bake bread at home|letters from a distant island|"
    "seven bridges and one river|the clockmaker and the storm|a short history of paper|under the old walnut tree|"
    "night trains across the desert|what the lighthouse keeper saw|nine lessons from a small farm|colours of the northern sky"
).split("|")
STRING_OPS = (
    ("reverse_words", "Reverse the order of the words.", lambda s: " ".join(s.split()[::-1])),
    (
        "title_case",
        "Capitalise the first letter of each word.",
        lambda s: " ".join(w.capitalize() for w in s.split()),
    ),
    ("snake_case", "Turn the phrase into snake_case.", lambda s: s.lower().replace(" ", "_")),
    (
        "camel_case",
        "Write the phrase in camelCase.",
        lambda s: s[0].lower() + "".join(w.capitalize() for w in s.split())[1:],
    ),
    ("upper", "Convert the text to capital letters.", str.upper),
    (
        "initials",
        "Form an acronym from the first letters of the words.",
        lambda s: "".join(w[0] for w in s.split()).upper(),
    ),
    ("count_words", "How many words does the text have?", lambda s: str(len(s.split()))),
    ("count_letters", "Count the letters without the spaces.", lambda s: str(len(s.replace(" ", "")))),
    (
        "longest_word",
        "Which word is the longest? Take the first if there are several.",
        lambda s: max(s.split(), key=len),
    ),
    (
        "vowels_out",
        "Remove every vowel (a, e, i, o, u) from the text.",
        lambda s: " ".join(re.sub("[aeiou]", "", s, flags=re.I).split()),
    ),
    ("every_second", "Keep every second word, starting with the first.", lambda s: " ".join(s.split()[::2])),
    ("slug", "Make a URL slug: lower case, with hyphens.", lambda s: s.lower().replace(" ", "-")),
)


@task("string_manipulation", SOURCE, 76)
def string_manipulation(d: Dice) -> Row:
    """Transformations of a phrase, done by code."""
    name, instruction, apply = d.pick(STRING_OPS)
    text = d.pick(TITLES)
    text = text if d.chance(60) else f"{d.pick(NAMES)} and {text}"
    return name, instruction, text, apply(text)


THINGS = "walnut anchor ribbon candle tunnel basket orchid pepper violin magnet helmet lantern cushion bucket engine compass".split()


@task("sort_list", SOURCE, 64)
def sort_list(d: Dice) -> Row:
    """Numbers, words, names, dates and records put in order."""
    kind, n = d.int(0, 5), d.int(5, 8)
    if kind == 0:
        xs = d.sample(range(-40, 99), n)
        return (
            "ascending",
            "Sort the numbers from smallest to largest.",
            ", ".join(map(str, xs)),
            ", ".join(map(str, sorted(xs))),
        )
    if kind == 1:
        xs = [f"{d.int(1, 99)}.{d.int(10, 98)}" for _ in range(n)]
        text = ", ".join(sorted(xs, key=float, reverse=True))
        return "descending", "Order these prices from highest to lowest.", ", ".join(xs), text
    if kind == 2:
        xs = d.sample(THINGS, n)
        return "alphabetical", "Put the words in alphabetical order.", ", ".join(xs), ", ".join(sorted(xs))
    if kind == 3:
        xs = d.sample(CITIES + NAMES, n)
        q = "Sort by length, shortest first; equal lengths stay in the given order."
        return "by_length", q, ", ".join(xs), ", ".join(sorted(xs, key=len))
    if kind == 4:
        xs = [f"{d.int(1990, 2025)}-{d.int(1, 12):02d}-{d.int(1, 28):02d}" for _ in range(n)]
        return (
            "dates",
            "List these dates from the latest to the earliest.",
            "\n".join(xs),
            "\n".join(sorted(xs, reverse=True)),
        )
    people = [f"{a} {b}" for a, b in zip(d.sample(NAMES, n), d.sample(SURNAMES, n), strict=True)]
    text = "\n".join(sorted(people, key=lambda p: p.split()[1]))
    return (
        "surnames",
        f"{d.pick(NAMES)} keeps this guest list. Sort it by last name.",
        "\n".join(people),
        text,
    )


@task("json_formatting", SOURCE, 60)
def json_formatting(d: Dice) -> Row:
    """Facts from a sentence as JSON, values read from JSON."""
    name, city = f"{d.pick(NAMES)} {d.pick(SURNAMES)}", d.pick(CITIES)
    kind = d.int(0, 3)
    if kind == 0:
        age, job = d.int(21, 67), d.pick(("carpenter", "dentist", "translator", "pilot", "gardener", "nurse"))
        data, text = (
            {"name": name, "age": age, "job": job, "city": city},
            f"{name}, {age}, works as a {job} in {city}.",
        )
    elif kind == 1:
        item, n, stock = d.pick(THINGS), d.int(3, 90), d.chance(60)
        data = {"product": item, "price": n, "in_stock": stock}
        text = f"The {item} costs {n} dollars and is {'' if stock else 'not '}in stock."
    elif kind == 2:
        tags = d.sample(("music", "sport", "food", "travel", "art", "film"), 3)
        data, text = {"user": name, "interests": tags}, f"{name} is interested in {listed(tags)}."
    else:
        low = d.int(-5, 18)
        high, sky = low + d.int(3, 12), d.pick(("sunny", "cloudy", "rainy", "foggy"))
        data = {"city": city, "weather": {"sky": sky, "low": low, "high": high}}
        text = f"{city} will be {sky} with a low of {low} and a high of {high} degrees."
    keys = listed(list(data))
    if d.chance(60):
        return (
            "to_json",
            f"Turn the sentence into a JSON object with the keys {keys}.",
            text,
            json.dumps(data),
        )
    if d.chance(50):
        return (
            "pretty",
            "Format this JSON with an indent of two spaces.",
            json.dumps(data, separators=(",", ":")),
            json.dumps(data, indent=2),
        )
    return "to_sentence", "Describe the JSON object in one English sentence.", json.dumps(data), text


@task("csv_to_table", SOURCE, 30)
def csv_to_table(d: Dice) -> Row:
    """CSV to a Markdown table, or the total of a column."""
    head, low, high = d.pick(
        (("city,visitors", 200, 9000), ("item,stock", 0, 80), ("player,points", 3, 40), ("room,area", 9, 60))
    )
    first = {
        "city": CITIES,
        "item": THINGS,
        "player": NAMES,
        "room": ("kitchen", "hall", "office", "attic", "cellar", "studio"),
    }
    rows = [(name, d.int(low, high)) for name in d.sample(first[head.split(",")[0]], d.int(3, 5))]
    text = "\n".join([head, *(f"{a},{b}" for a, b in rows)])
    a, b = head.split(",")
    if d.chance(60):
        lines = [f"| {a} | {b} |", "| --- | --- |", *(f"| {x} | {y} |" for x, y in rows)]
        return "markdown", "Convert the CSV data to a Markdown table.", text, "\n".join(lines)
    total = sum(y for _, y in rows)
    return (
        "total",
        f"Add up the column {b} of this CSV file.",
        text,
        f"The total is {total}: {' + '.join(str(y) for _, y in rows)}.",
    )
