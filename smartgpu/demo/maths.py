"""Tasks about numbers: every answer is computed, with exact fractions where decimals would round."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction
from itertools import product
from math import comb, gcd

from .registry import CITIES, NAMES, Dice, Row, article, ask, equals, listed, money, plural, show, table, task

SOURCE = "synthetic-math"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
WARES = "notebooks|mugs|candles|scarves|light bulbs|water bottles|picture frames|house plants|tea towels|puzzles".split(
    "|"
)
PROBLEM_LEADS = (
    "Solve this word problem and show each step.",
    "Work through the following problem, then state the result.",
    "Help a ten-year-old solve this problem.",
    "Read the problem and explain how you get the answer.",
)


def shopping(d: Dice) -> tuple[str, str, str]:
    """Change from a note."""
    n, price = d.int(2, 9), d.int(85, 990, 5)
    total = n * price
    note = next(x for x in (1000, 2000, 5000, 10000) if x >= total)
    ware, name = d.pick(WARES), d.pick(NAMES)
    q = f"{name} buys {n} {ware} at {money(price)} each and pays with {money(note)}. How much change is due?"
    steps = (
        f"{n} x {money(price)} = {money(total)}, and {money(note)} - {money(total)} = {money(note - total)}."
    )
    return q, steps, money(note - total)


def sharing(d: Dice) -> tuple[str, str, str]:
    """Division with remainder."""
    people, thing = (
        d.int(3, 12),
        d.pick("marbles stickers apples coins postcards walnuts crayons seashells".split()),
    )
    n = d.int(people + 5, people * 15)
    each, left = divmod(n, people)
    q = d.pick(
        (
            f"{d.pick(NAMES)} shares {n} {thing} equally among {people} children. "
            "How many does each child get, and how many are left over?",
            f"A teacher has {n} {thing} to split evenly between {people} tables. What does each table get, and what remains?",
        )
    )
    return q, f"{n} = {people} x {each} + {left}.", f"{each} each, with {left} left over"


def saving(d: Dice) -> tuple[str, str, str]:
    """Weeks until a goal."""
    goal, weekly = d.int(120, 1500, 10), d.int(15, 90, 5)
    thing = d.pick(
        ("bicycle", "guitar", "tablet", "tent", "camera", "sewing machine", "telescope", "coffee machine")
    )
    weeks = -(-goal // weekly)
    q = (
        f"{d.pick(NAMES)} wants a {thing} that costs ${goal:,} and puts aside ${weekly} a week. "
        "After how many full weeks is there enough money?"
    )
    steps = f"${goal:,} / ${weekly} {equals(Fraction(goal, weekly))}, so {weeks} weekly payments (${weeks * weekly:,}) are needed."
    return q, steps, plural(weeks, "week")


def seats(d: Dice) -> tuple[str, str, str]:
    """Rows, columns and a part taken away."""
    rows, cols = d.int(6, 28), d.int(8, 30)
    taken = d.int(10, rows * cols - 5)
    hall, seat, gone = d.pick(
        (
            ("theatre", "seats", "sold"),
            ("car park", "spaces", "occupied"),
            ("orchard", "trees", "already pruned"),
            ("lecture hall", "chairs", "reserved"),
            ("warehouse", "shelves", "full"),
        )
    )
    q = f"The {hall} has {rows} rows of {cols} {seat}. {taken} {seat} are {gone}. How many are not?"
    return (
        q,
        f"{rows} x {cols} = {rows * cols:,}, and {rows * cols:,} - {taken} = {rows * cols - taken:,}.",
        f"{rows * cols - taken:,}",
    )


def ages(d: Dice) -> tuple[str, str, str]:
    """Sum and difference."""
    young, gap = d.int(4, 40), d.int(2, 25)
    a, b = d.sample(NAMES, 2)
    total = 2 * young + gap
    q = f"{a} is {plural(gap, 'year')} older than {b}, and together they are {total} years old. How old is each of them?"
    steps = f"Without the gap both would share {total} - {gap} = {2 * young} years, so {b} is {2 * young} / 2 = {young}."
    return q, steps, f"{a} is {young + gap} and {b} is {young}"


def travel(d: Dice) -> tuple[str, str, str]:
    """Distance from speed, or an average speed."""
    who, low, high = d.pick(
        (("train", 80, 220), ("ferry", 20, 45), ("cyclist", 14, 32), ("lorry", 50, 85), ("hiker", 3, 6))
    )
    v, half = d.int(low, high), d.int(3, 12)
    hours = Fraction(half, 2)
    if d.chance(50):
        q = f"A {who} moves at a steady {v} km/h for {show(hours)} hours. What distance is covered?"
        return (
            q,
            f"Distance = speed x time = {v} x {show(hours)} = {show(v * hours)} km.",
            f"{show(v * hours)} km",
        )
    w = d.int(low, high)
    mean = (v * hours + w) / (hours + 1)
    q = f"A {who} goes {show(hours)} hours at {v} km/h and then one hour at {w} km/h. What is the average speed?"
    steps = f"The distance is {show(v * hours)} + {w} = {show(v * hours + w)} km in {show(hours + 1)} hours."
    return q, steps, f"{equals(mean).removeprefix('= ').removeprefix('is ')} km/h"


def packing(d: Dice) -> tuple[str, str, str]:
    """Rounding up to whole containers."""
    thing, box, size = d.pick(
        (
            ("eggs", "carton", 12),
            ("books", "crate", 24),
            ("guests", "minibus", 16),
            ("bottles", "case", 6),
            ("tiles", "pack", 15),
            ("tennis balls", "tube", 4),
            ("passengers", "train carriage", 52),
            ("candles", "box", 10),
            ("photographs", "album page", 8),
        )
    )
    need = d.int(3, 30)
    n = need * size - d.int(1, size - 1)
    q = f"Each {box} holds {size} {thing}. How many {box}s are needed for {n} {thing}?"
    return (
        q,
        f"{n} / {size} {equals(Fraction(n, size))}, which must be rounded up to {need}.",
        f"{need} {box}s",
    )


def clock(d: Dice) -> tuple[str, str, str]:
    """End time of an event."""
    start, length = d.int(7 * 60, 20 * 60, 5), d.int(25, 175)
    event = d.pick("film concert workshop lecture rehearsal match flight webinar".split())
    end = start + length
    at, to = f"{start // 60:02d}:{start % 60:02d}", f"{end // 60:02d}:{end % 60:02d}"
    q = f"The {event} begins at {at} and lasts {length} minutes. When does it end?"
    parts = listed([plural(n, unit) for n, unit in ((length // 60, "hour"), (length % 60, "minute")) if n])
    return q, f"Counting {parts} on from {at} gives {to}.", to


def fractions(d: Dice) -> tuple[str, str, str]:
    """Sum, difference or product of two fractions."""
    x, y = d.int(2, 9), d.int(2, 9)
    a, b = sorted((Fraction(d.int(1, x - 1), x), Fraction(d.int(1, y - 1), y)), reverse=True)
    sign, value, word = d.pick((("+", a + b, "sum"), ("-", a - b, "difference"), ("x", a * b, "product")))
    where = d.pick(
        ("for a sewing pattern", "while halving a recipe", "on a worksheet", "for a woodworking plan")
    )
    q = f"{d.pick(NAMES)} has to find {a} {sign} {b} {where}. What is the {word} in lowest terms?"
    low = a.denominator * b.denominator // gcd(a.denominator, b.denominator)
    if sign == "x":
        steps = f"Multiply tops and bottoms: {a.numerator * b.numerator}/{a.denominator * b.denominator}, then reduce."
    else:
        steps = f"Over the common denominator {low} this is {int(a * low)}/{low} {sign} {int(b * low)}/{low}."
    return q, steps, str(value)


def plain(d: Dice) -> tuple[str, str, str]:
    """A calculation of two operations; the product comes first."""
    a, b, c = d.int(12, 99), d.int(3, 29), d.int(10, 36)
    if d.chance(33):
        return f"Evaluate ({a} + {b}) x {c}.", f"The bracket is {a} + {b} = {a + b}.", f"{(a + b) * c:,}"
    first, ab = f"Multiplication comes first: {a} x {b} = {a * b:,}.", a * b
    if d.chance(50):
        return f"What is {a} x {b} - {c}?", first, f"{ab - c:,}"
    return f"Compute {c} + {a} x {b}.", first, f"{ab + c:,}"


@task("arithmetic_word_problem", SOURCE, 340)
def word_problem(d: Dice) -> Row:
    """One of ten kinds of story."""
    kind = d.pick((shopping, sharing, saving, seats, ages, travel, packing, clock, fractions, plain))
    return ask(d, PROBLEM_LEADS, *kind(d))


UNITS = table("""
kilometres | miles | 1/1.609344 | 3 | 900 | the signpost on the trail; the odometer of the hire car; the route of the charity ride
miles | kilometres | 1.609344 | 2 | 600 | the road trip; the commute to the office; the marathon training plan
kilograms | pounds | 1/0.45359237 | 2 | 120 | the airline's luggage limit; the sack of rice; the barbell
pounds | kilograms | 0.45359237 | 3 | 260 | the parcel; the Thanksgiving turkey; the dog at the vet
inches | centimetres | 2.54 | 4 | 96 | the television screen; the picture frame; the roll of ribbon
feet | metres | 0.3048 | 5 | 400 | the sailing boat; the ceiling; the climbing wall
yards | metres | 0.9144 | 10 | 500 | the bolt of fabric; the football pitch; the driveway
litres | US gallons | 1/3.785411784 | 5 | 300 | the fish tank; the car's fuel tank; the rain barrel
US cups | millilitres | 236.5882365 | 1 | 12 | the soup recipe; the pancake batter; the cold brew jug
ounces | grams | 28.349523125 | 2 | 64 | the bar of chocolate; the letter on the scale; the ball of yarn
acres | hectares | 0.40468564224 | 2 | 800 | the farm for sale; the nature reserve; the vineyard
knots | kilometres per hour | 1.852 | 5 | 60 | the coastguard's boat; the wind forecast; the ferry
metres per second | kilometres per hour | 3.6 | 2 | 70 | the sprinter; the gust of wind; the drone
hours | minutes | 60 | 2 | 48 | the night shift; the online course; the battery test
days | hours | 24 | 2 | 45 | the space mission; the conference; the sea voyage
gigabytes | megabytes | 1000 | 2 | 128 | the phone plan; the video file; the backup
kilowatt hours | megajoules | 3.6 | 2 | 400 | the electricity bill; the heat pump; the solar battery
stone | kilograms | 6.35029318 | 5 | 20 | the old bathroom scale; the boxer; the bag of coal
square metres | square feet | 1/0.09290304 | 12 | 250 | the flat in the advert; the studio; the roof terrace
""")
UNIT_LEADS = (
    "Convert the quantity to the unit asked for.",
    "Change the unit and round to two decimals.",
    "A tourist needs this in a familiar unit.",
)


@task("unit_conversion", SOURCE, 230)
def unit_conversion(d: Dice) -> Row:
    """Lengths, weights, volumes, speeds and temperatures."""
    if d.chance(12):
        degrees, place = d.int(-20, 40), d.pick(CITIES)
        f = Fraction(degrees * 9, 5) + 32
        if d.chance(50):
            q = f"The forecast for {place} says {degrees} degrees Celsius. What is that in Fahrenheit?"
            return ask(d, UNIT_LEADS, q, f"F = C x 9/5 + 32 = {show(f)}.", f"{show(f)} degrees Fahrenheit")
        degrees = d.int(5, 110)
        c, where = (
            Fraction((degrees - 32) * 5, 9),
            d.pick(("the greenhouse", "the hotel pool", "the server room", "the attic")),
        )
        q = f"A thermometer in {where} reads {degrees} degrees Fahrenheit. How warm is that in Celsius?"
        return ask(d, UNIT_LEADS, q, f"(F - 32) x 5/9 {equals(c)}.", f"{show(c)} degrees Celsius")
    source, target, rate, low, high, things = d.pick(UNITS)
    factor = 1 / Fraction(rate[2:]) if rate.startswith("1/") else Fraction(rate)
    n, thing = d.int(int(low), int(high)), d.pick(things.split("; "))
    result = show(n * factor)
    given = equals(n * factor)
    steps = f"Multiply the {source} by {show(factor, 5)}: {n} x {show(factor, 5)} {given}."
    style = d.int(0, 3)
    if style == 0:
        return "imperative", f"Convert {n} {source} to {target}.", "", f"{n} {source} {given} {target}."
    if style == 1:
        q = f"How many {target} are {n} {source}?"
        return (
            "how_many",
            q,
            "",
            f"{n} {source} {given.replace('=', 'are').replace('is', 'are')} {target}. {steps}",
        )
    if style == 2:
        text = f"My notes say {n} {source} for {thing}, so plan accordingly."
        return (
            "note",
            f"Rewrite the note with {target} instead of {source}.",
            text,
            text.replace(f"{n} {source}", f"{result} {target}"),
        )
    return ask(
        d,
        UNIT_LEADS,
        f"For {thing}, I read {n} {source}. What is that in {target}?",
        steps,
        f"{result} {target}",
    )


PERCENT_LEADS = (
    "Work out the percentage problem.",
    "Explain this calculation to a customer.",
    "Show how to get the figure.",
)


@task("percentage", SOURCE, 170)
def percentage(d: Dice) -> Row:
    """Discounts, tips, shares, changes, reverse prices and interest."""
    p, name = d.int(5, 60, 5), d.pick(NAMES)
    price = d.int(1200, 24000, 100)
    part, kind = Fraction(price * p, 100), d.int(0, 6)
    if kind == 0:
        thing = d.pick(("coat", "desk lamp", "pair of boots", "suitcase", "rug", "blender", "keyboard"))
        q = f"{article(thing).capitalize()} costs {money(price)} and is reduced by {p}%. What is the sale price?"
        steps, answer = f"{p}% of {money(price)} is {money(int(part))}.", money(price - int(part))
    elif kind == 1:
        tip = d.pick((10, 12, 15, 18, 20))
        part = price * tip // 100
        q = f"{name} leaves a {tip}% tip on a restaurant bill of {money(price)}. How much is paid in all?"
        steps, answer = f"The tip is {money(part)}.", money(price + part)
    elif kind == 2:
        whole, group, did = (
            d.int(40, 400, 20),
            *d.pick(
                (
                    ("members", "voted yes"),
                    ("employees", "cycle to work"),
                    ("students", "passed the test"),
                    ("visitors", "bought a guidebook"),
                    ("parcels", "arrived late"),
                    ("seedlings", "survived the frost"),
                )
            ),
        )
        some = whole * p // 100
        q = f"{some} of {whole} {group} {did}. What percentage is that?"
        steps, answer = (
            f"{some} / {whole} = {show(Fraction(some, whole), 4)}.",
            f"{show(Fraction(some * 100, whole))}%",
        )
    elif kind == 3:
        old, thing = (
            d.int(80, 900, 20),
            d.pick(("rent", "subscriber count", "water level in litres", "weekly step goal")),
        )
        new = old + old * p // 100
        q = f"The {thing} rose from {old} to {new}. By what percentage did it grow?"
        steps, answer = (
            f"The rise is {new - old}, and {new - old} / {old} = {show(Fraction(new - old, old), 4)}.",
            "",
        )
        answer = f"{show(Fraction((new - old) * 100, old))}%"
    elif kind == 4:
        full = d.int(20, 400, 20)
        thing = d.pick(("jacket", "printer", "armchair", "concert ticket"))
        now = full * 100 * (100 - p) // 100
        q = f"After a {p}% discount {article(thing)} costs {money(now)}. What was the price before?"
        steps, answer = (
            f"{money(now)} is {100 - p}% of it, so divide by {show(Fraction(100 - p, 100))}.",
            money(full * 100),
        )
    elif kind == 5:
        rate, years, sum_ = d.int(1, 6), d.int(2, 9), d.int(500, 9000, 500)
        q = f"{name} lends ${sum_:,} at {rate}% simple interest a year. How much interest is due after {years} years?"
        steps, answer = (
            f"{sum_:,} x {rate}/100 x {years} = {sum_ * rate * years // 100:,}.",
            f"${sum_ * rate * years // 100:,}",
        )
    else:
        rate, sum_ = d.pick((2, 3, 4, 5, 10)), d.int(1000, 9000, 1000)
        final = Fraction(sum_ * (100 + rate) ** 2, 100)
        q = f"A deposit of ${sum_:,} earns {rate}% compound interest a year. What is it worth after two years?"
        steps, answer = f"{sum_:,} x {show(Fraction(100 + rate, 100))}^2.", money(int(final))
    return ask(d, PERCENT_LEADS, q, steps, answer)


SHAPE_LEADS = (
    "Solve the geometry problem; name the formula.",
    "Find the measure asked for.",
    "Draw it in your mind, then compute.",
)


@task("geometry", SOURCE, 120)
def geometry(d: Dice) -> Row:
    """Areas, volumes, angles and right triangles."""
    a, b, c, kind = d.int(3, 30), d.int(4, 40), d.int(2, 25), d.int(0, 8)
    pi = Fraction("3.14159265358979")
    if kind == 0:
        thing = d.pick(("vegetable bed", "dance floor", "bedroom", "car park", "paddock"))
        q = f"A rectangular {thing} measures {a} m by {b} m. What is its area?"
        return ask(d, SHAPE_LEADS, q, f"Area = length x width = {a} x {b}.", f"{a * b:,} square metres")
    if kind == 1:
        thing = d.pick(("playground", "orchard", "field", "courtyard"))
        q = f"How much fence goes around a rectangular {thing} of {a} m by {b} m?"
        return ask(d, SHAPE_LEADS, q, f"Perimeter = 2 x ({a} + {b}).", f"{2 * (a + b)} m")
    if kind == 2:
        q = f"A triangular {d.pick(('sail', 'flag', 'road sign'))} has a base of {a} cm and a height of {b} cm. What is its area?"
        return ask(
            d,
            SHAPE_LEADS,
            q,
            f"Area = base x height / 2 = {a} x {b} / 2.",
            f"{show(Fraction(a * b, 2))} square centimetres",
        )
    if kind == 3:
        q = f"A round {d.pick(('pond', 'tablecloth', 'carpet', 'trampoline'))} has a radius of {c} m. Find its area to two decimals."
        return ask(
            d, SHAPE_LEADS, q, f"Area = pi x r^2 = pi x {c * c}.", f"about {show(pi * c * c)} square metres"
        )
    if kind == 4:
        q = f"A cylindrical {d.pick(('tin', 'vase', 'candle'))} has radius {c} cm and height {b} cm. What is its volume, to two decimals?"
        return ask(
            d,
            SHAPE_LEADS,
            q,
            f"Volume = pi x r^2 x h = pi x {c * c} x {b}.",
            f"about {show(pi * c * c * b)} cubic centimetres",
        )
    if kind == 5:
        q = f"A {d.pick(('shoe box', 'fish tank', 'wooden crate'))} is {a} cm by {b} cm by {c} cm. How many cubic centimetres does it hold?"
        return ask(d, SHAPE_LEADS, q, f"Volume = {a} x {b} x {c}.", f"{a * b * c:,} cubic centimetres")
    if kind == 6:
        (x, y, z), k = d.pick(((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29))), d.int(1, 6)
        x, y, z = x * k, y * k, z * k
        q = d.pick(
            (
                f"The legs of a right triangle are {x} cm and {y} cm. How long is the hypotenuse?",
                f"A ship sails {x} km north and then {y} km east. How far is it from the harbour in a straight line?",
            )
        )
        unit = "cm" if "cm" in q else "km"
        return ask(
            d, SHAPE_LEADS, q, f"By Pythagoras, {x}^2 + {y}^2 = {x * x + y * y:,} = {z}^2.", f"{z} {unit}"
        )
    if kind == 7:
        x, y = d.int(20, 80), d.int(25, 90)
        q = f"Two angles of a triangle are {x} and {y} degrees. How large is the third?"
        return ask(
            d, SHAPE_LEADS, q, f"The three add up to 180 degrees: 180 - {x} - {y}.", f"{180 - x - y} degrees"
        )
    n, word = d.pick(
        ((5, "pentagon"), (6, "hexagon"), (8, "octagon"), (9, "nonagon"), (10, "decagon"), (12, "dodecagon"))
    )
    q = f"What is each interior angle of a regular {word}?"
    return ask(
        d, SHAPE_LEADS, q, f"(n - 2) x 180 / n with n = {n}.", f"{show(Fraction((n - 2) * 180, n))} degrees"
    )


def roman(n: int) -> str:
    """The number in Roman numerals."""
    out = ""
    for value, sign in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        "M CM D CD C XC L XL X IX V IV I".split(),
        strict=True,
    ):
        out, n = out + sign * (n // value), n % value
    return out


@task("roman_numerals", SOURCE, 60)
def roman_numerals(d: Dice) -> Row:
    """Both directions."""
    n = d.pick((d.int(4, 99), d.int(100, 3999), d.int(1600, 2030)))
    place = d.pick(
        (
            "the cornerstone of a town hall",
            "the last frame of a film",
            "an old map",
            "a sundial",
            "a bronze medal",
        )
    )
    style = d.int(0, 3)
    if style == 0:
        return "to_roman", f"Write {n} in Roman numerals.", "", f"{n} is {roman(n)} in Roman numerals."
    if style == 1:
        return "to_arabic", "Convert the Roman numeral to an ordinary number.", roman(n), str(n)
    if style == 2:
        return (
            "inscription",
            f"On {place} it says {roman(n)}. Which number is that?",
            "",
            f"{roman(n)} stands for {n}.",
        )
    return "to_roman_input", "Give the Roman numeral for this number.", str(n), roman(n)


@task("base_conversion", SOURCE, 62)
def base_conversion(d: Dice) -> Row:
    """Decimal, binary, octal and hexadecimal."""
    n = d.int(17, 1023)
    (a, x), (b, y) = d.sample(
        (("decimal", f"{n}"), ("binary", f"{n:b}"), ("hexadecimal", f"{n:X}"), ("octal", f"{n:o}")), 2
    )
    if d.chance(40):
        return "imperative", f"Convert the {a} number {x} to {b}.", "", f"{x} in {a} is {y} in {b}."
    if d.chance(40):
        return "input_only", f"Rewrite this {a} number in {b}.", x, y
    return (
        "question",
        f"A program prints {x} in {a}. What would it print in {b}?",
        "",
        f"It would print {y}, because both are {n}.",
    )


CHANCE_LEADS = (
    "What is the probability? Give a fraction in lowest terms.",
    "Compute the chance and explain it briefly.",
)


@task("probability", SOURCE, 76)
def probability(d: Dice) -> Row:
    """Balls, dice, coins, cards and raffles, by counting."""
    kind, (a, b) = d.int(0, 5), d.sample(("red", "blue", "green", "white", "yellow"), 2)
    n, m = d.int(2, 11), d.int(2, 11)
    if kind == 0:
        what = d.pick(("bag", "jar", "box")), d.pick(("marbles", "buttons", "balls"))
        q = f"A {what[0]} holds {n} {a} and {m} {b} {what[1]}. One is drawn at random. What is the probability that it is {a}?"
        return ask(d, CHANCE_LEADS, q, f"{n} of {n + m} {what[1]} are {a}.", str(Fraction(n, n + m)))
    if kind == 1:
        q = f"From {n} {a} and {m} {b} socks two are taken without looking. How likely is it that both are {a}?"
        steps = f"The chance is {n}/{n + m} x {n - 1}/{n + m - 1}."
        return ask(d, CHANCE_LEADS, q, steps, str(Fraction(n * (n - 1), (n + m) * (n + m - 1))))
    if kind == 2:
        total = d.int(3, 12)
        ways = sum(x + y == total for x, y in product(range(1, 7), repeat=2))
        q = f"Two dice are rolled. What is the probability that the sum is {total}?"
        return ask(
            d, CHANCE_LEADS, q, f"{ways} of the 36 outcomes add up to {total}.", str(Fraction(ways, 36))
        )
    if kind == 3:
        flips, heads = d.int(3, 6), d.int(1, 3)
        ways = comb(flips, heads)
        q = f"A fair coin is tossed {flips} times. What is the probability of exactly {plural(heads, 'head')}?"
        return ask(d, CHANCE_LEADS, q, f"{ways} of {2**flips} sequences fit.", str(Fraction(ways, 2**flips)))
    if kind == 4:
        card, count = d.pick(
            (("a heart", 13), ("a king", 4), ("a red card", 26), ("a picture card (jack, queen or king)", 12))
        )
        q = f"One card is drawn from a standard deck of 52. How likely is {card}?"
        return ask(d, CHANCE_LEADS, q, f"{count} of the 52 cards qualify.", str(Fraction(count, 52)))
    sold, mine = d.int(40, 300, 20), d.int(2, 15)
    q = f"{d.pick(NAMES)} holds {mine} of the {sold} tickets in a raffle with one prize. What is the chance of losing?"
    return ask(d, CHANCE_LEADS, q, f"{sold - mine} of {sold} tickets lose.", str(Fraction(sold - mine, sold)))


SOLVE_LEADS = ("Solve this algebra exercise.", "Find the unknown.", "Isolate the variable step by step.")


@task("linear_equation", SOURCE, 78)
def linear_equation(d: Dice) -> Row:
    """One unknown on one or both sides, two unknowns, proportions."""
    v, x, a, b = d.pick("xyntk"), d.int(-9, 15), d.int(2, 9), d.int(1, 30)
    kind = d.int(0, 3)
    if kind == 0:
        q = f"{a}{v} + {b} = {a * x + b}"
        return ask(
            d,
            SOLVE_LEADS,
            f"Solve for {v}: {q}",
            f"Subtract {b}: {a}{v} = {a * x}. Divide by {a}.",
            f"{v} = {x}",
        )
    if kind == 1:
        c = a + d.int(1, 6)
        q = f"{c}{v} - {b} = {a}{v} + {(c - a) * x - b}".replace("+ -", "- ")
        return ask(
            d, SOLVE_LEADS, f"Find {v} if {q}.", f"Collect terms: {c - a}{v} = {(c - a) * x}.", f"{v} = {x}"
        )
    if kind == 2:
        y, x = d.int(1, 20), d.int(1, 20) + 20
        q = f"Two numbers add up to {x + y} and differ by {x - y}. What are they?"
        return ask(d, SOLVE_LEADS, q, f"The larger is ({x + y} + {x - y}) / 2 = {x}.", f"{x} and {y}")
    x = abs(x) + 2
    q = f"If {a} {d.pick(('pens', 'tiles', 'lemons', 'bolts'))} cost {a * x} cents, what do {b + 1} cost?"
    return ask(d, SOLVE_LEADS, q, f"One costs {a * x} / {a} = {x} cents.", f"{(b + 1) * x} cents")


PHYSICS = table("""
force needed for | F = m x a | newtons | a {thing} of {a} kg accelerated at {b} m/s^2 | 8-60 | 1-6 | trolley; sledge; go-kart; wheelbarrow
momentum of | p = m x v | kg m/s | a {thing} of {a} kg moving at {b} m/s | 5-40 | 2-9 | dog; kayak; scooter; suitcase on a belt
work done on | W = F x d | joules | a {thing} pushed {b} m with a force of {a} N | 60-400 | 2-25 | wardrobe; pallet; stalled car; piano
voltage across | V = I x R | volts | a {thing} of {b} ohms that carries {a} A | 2-9 | 3-25 | heating coil; resistor; motor winding
electric power of | P = V x I | watts | a {thing} that draws {b} A at {a} V | 12-24 | 1-9 | lamp; pump; cool box; water heater
speed of | v = f x wavelength | m/s | a {thing} of {a} Hz with a wavelength of {b} m | 2-6 | 1-5 | water wave; wave on a rope; wave on a spring
weight of | W = m x g, with g = 9.8 m/s^2 | newtons | a {thing} with a mass of {a} kg on Earth | 6-30 | 2-3 | rucksack; calf; bicycle; stove
kinetic energy of | E = m x v^2 / 2 | joules | a {thing} of {a} kg moving at {b} m/s | 3-40 | 2-12 | drone; dog; trolley; scooter
density of | rho = m / V | kg per cubic metre | {thing} if {b} cubic metres of it weigh {a} kg | 600-960 | 2-3 | cork; packed snow; pressed straw
pressure of | p = F / A | pascals | a {thing} that presses with {a} N on {b} square metres | 90-900 | 2-9 | crate; sandbag wall; water tank
average speed of | v = d / t | m/s | a {thing} that covers {a} m in {b} s | 20-90 | 8-25 | pigeon; tram; squirrel; toy car
power of | P = W / t | watts | a {thing} that does {a} J of work in {b} s | 200-900 | 4-25 | winch; small crane; climber; donkey
""")


@task("physics_formula", SOURCE, 74)
def physics_formula(d: Dice) -> Row:
    """One formula from school, applied."""
    quantity, formula, unit, setting, *spans, things = d.pick(PHYSICS)
    a, b = (d.int(*map(int, span.split("-"))) for span in spans)
    value = Fraction(a, b) if " / " in formula else Fraction(a * b)
    value = (
        Fraction(a * b * b, 2) if "^2 / 2" in formula else Fraction(a * 98, 10) if "9.8" in formula else value
    )
    setting = setting.format(thing=d.pick(things.split("; ")), a=a, b=b)
    answer = f"{'' if (value * 100).denominator == 1 else 'about '}{show(value)} {unit}"
    q = d.pick((f"Calculate the {quantity} {setting}.", f"What is the {quantity} {setting}?"))
    return ask(
        d,
        ("Apply the right formula.", "Solve the physics exercise with units."),
        q,
        f"Use {formula}.",
        answer,
    )


def long_date(day: dt.date) -> str:
    """4 March 2025"""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


@task("date_arithmetic", SOURCE, 150)
def date_arithmetic(d: Dice) -> Row:
    """Adding days, differences, weekdays, leap years."""
    day, n, kind = dt.date(2019, 1, 1) + dt.timedelta(d.int(0, 3650)), d.int(9, 200), d.int(0, 5)
    then, name = day + dt.timedelta(n), d.pick(NAMES)
    if kind == 0:
        thing, ends = d.pick(
            (
                ("invoice", "is due"),
                ("visa", "expires"),
                ("parking permit", "runs out"),
                ("library loan", "must be returned"),
                ("trial subscription", "ends"),
            )
        )
        q = f"{article(thing).capitalize()} dated {long_date(day)} {ends} {n} days later. On which date is that?"
        return "deadline", q, "", f"{n} days after {long_date(day)} is {long_date(then)}."
    if kind == 1:
        event = d.pick(
            ("the wedding", "the marathon", "the product launch", "the exam", "the holiday", "moving day")
        )
        q = f"Today is {long_date(day)} and {event} is on {long_date(then)}. How many days are left?"
        return "countdown", q, "", f"There are {n} days left until {long_date(then)}."
    if kind == 2:
        return "weekday", "Name the day of the week of this date.", long_date(day), DAYS[day.weekday()]
    if kind == 3:
        day -= dt.timedelta(11000)
        q = f"{name} was born on {long_date(day)}. Which day of the week was it?"
        return "birthday", q, "", f"{long_date(day)} was a {DAYS[day.weekday()]}."
    if kind == 4:
        year = d.pick((1600, 1700, 1800, 1900, 2000, 2100, 2200)) if d.chance(20) else d.int(1904, 2060)
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        why = f"divisible by {400 if year % 400 == 0 else 4}" if leap else "not divisible by 4"
        why = "a century that is not divisible by 400" if not leap and year % 100 == 0 else why
        why += " and not by 100" if leap and year % 400 else ""
        return (
            "leap_year",
            f"Is {year} a leap year?",
            "",
            f"{'Yes' if leap else 'No'}, because {year} is {why}.",
        )
    return (
        "iso",
        f"Subtract {n} days from the date and write it as year-month-day.",
        then.isoformat(),
        day.isoformat(),
    )


@task("statistics_summary", SOURCE, 52)
def statistics_summary(d: Dice) -> Row:
    """Mean, median, range of a short list."""
    what, low, high = d.pick(
        (
            ("daily temperatures in degrees", 9, 31),
            ("quiz scores", 3, 20),
            ("waiting times in minutes", 2, 45),
            ("goals per season", 4, 38),
            ("pages read per day", 8, 60),
            ("shoe sizes", 35, 46),
            ("parcels per hour", 12, 70),
        )
    )
    data = [d.int(low, high) for _ in range(d.int(5, 9))]
    half, ranked = len(data) // 2, sorted(data)
    median = Fraction(ranked[half]) if len(data) % 2 else Fraction(ranked[half - 1] + ranked[half], 2)
    mean, spread = Fraction(sum(data), len(data)), max(data) - min(data)
    text = ", ".join(map(str, data))
    style = d.int(0, 3)
    if style == 0:
        return (
            "all",
            f"Summarise these {what} by mean (to two decimals), median and range.",
            text,
            f"Mean: {show(mean)}\nMedian: {show(median)}\nRange: {spread}",
        )
    if style == 1:
        steps = f"In order they are {', '.join(map(str, ranked))}, so the median is {show(median)}."
        return "median", f"What is the median of the {what} below?", text, steps
    if style == 2:
        q = f"{d.pick(NAMES)} noted these {what}: {text}. What is the average?"
        return "mean", q, "", f"The sum is {sum(data)}, and {sum(data)} / {len(data)} {equals(mean)}."
    return (
        "range",
        f"Find the smallest value, the largest value and the range of these {what}.",
        text,
        (f"Smallest {min(data)}, largest {max(data)}, range {max(data)} - {min(data)} = {spread}."),
    )


RECIPES = table("""
pancakes | 4 | 250 g flour; 500 ml milk; 3 eggs; 40 g butter
tomato soup | 6 | 1200 g tomatoes; 2 onions; 750 ml stock; 30 ml olive oil
lentil curry | 4 | 300 g red lentils; 400 ml coconut milk; 2 carrots; 15 g curry powder
guacamole | 3 | 3 avocados; 1 lime; 60 g tomatoes; 10 g coriander
oat cookies | 12 | 180 g oats; 120 g butter; 90 g sugar; 1 egg
rice pudding | 5 | 150 g rice; 1000 ml milk; 75 g sugar; 5 g cinnamon
potato salad | 8 | 1600 g potatoes; 200 g yoghurt; 4 pickles; 20 ml vinegar
""")


@task("recipe_scaling", SOURCE, 48)
def recipe_scaling(d: Dice) -> Row:
    """Ingredients for another number of servings."""
    dish, serves, parts = d.pick(RECIPES)
    counts = [int(part.split()[0]) for part in parts.split("; ") if part.split()[1] not in ("g", "ml")]
    want = d.pick(
        [n for n in range(2, 31) if n != int(serves) and all(n * c * 4 % int(serves) == 0 for c in counts)]
    )
    scaled = []
    for part in parts.split("; "):
        amount, rest = part.split(" ", 1)
        number = Fraction(int(amount) * want, int(serves))
        unit = rest.split()[0] in ("g", "ml")
        text = show(number, 0 if unit and number > 20 else 2)
        if not unit:
            rest = rest.removesuffix("s") if number <= 1 else rest if rest.endswith("s") else rest + "s"
            text = f"{int(number) or ''} {number % 1 or ''}".strip()
        scaled.append(f"{text} {rest}")
    given = listed(parts.split("; "))
    if d.chance(50):
        q = f"Scale this recipe for {dish} from {serves} to {want} servings."
        return "scale", q, parts.replace("; ", "\n"), "\n".join(scaled)
    q = f"{d.pick(NAMES)} makes {dish} for {want} people. The recipe for {serves} needs {given}. How much of each is needed?"
    return "cook", q, "", f"Multiply everything by {want}/{serves}: {listed(scaled)}."
