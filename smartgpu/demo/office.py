"""Tasks from working life: tickets, meetings, trips, emails, expenses and priorities."""

from __future__ import annotations

from .registry import CITIES, NAMES, SURNAMES, Dice, Row, money, plural, show, table, task

SOURCE = "synthetic-office"

TICKETS = table("""
billing | I was charged twice for {p} in {m}. | Please refund the second payment.; What happens now?; My card is with another bank now.
billing | My invoice for {p} shows the old address. | Can you issue a new one?; Our accountants need it by Friday.
billing | The discount code for {p} was not applied. | The total should be lower.; I ordered in {m}.
technical | {p} crashes when I open a large file. | I already reinstalled it.; It has been like this since {m}.; The screen goes white first.
technical | The sync between {p} and my phone stopped in {m}. | Both are up to date.; The error number is {n}.
technical | I see error {n} when I start {p}. | Restarting did not help.; My colleague sees the same.
account | I cannot log in to {p} any more. | The reset mail never arrives.; I changed my password in {m}.
account | Please change the email address of my account at {p}. | The old one closes soon.; I have proof of identity.
account | How do I add a second user to {p}? | We are a team of two.; She joins in {m}.
shipping | The parcel with {p} has not arrived. | It was due in {m}.; Tracking stopped at number {n}.
shipping | The box with {p} came open and one cable is missing. | I have photographs.; The order number is {n}.
shipping | Can I still change the delivery address for {p}? | I am moving in {m}.; The order is {n}.
feature request | I would love a dark theme for {p}. | My eyes would be grateful.; Many in our team want it.
feature request | Could {p} export to spreadsheets? | We need it for reports.; I now copy {n} lines by hand.
""")
SOFTWARE = ("PhotoDesk", "CloudNote", "BudgetPro", "MailHub", "TripPlan")
HARDWARE = ("the Aria keyboard", "the Lumen lamp", "the T5 router", "my new webcam", "the desk scanner")


@task("ticket_classification", SOURCE, 145)
def ticket_classification(d: Dice) -> Row:
    """Customer messages sorted by department."""
    kind, complaint, extras = d.pick(TICKETS)
    slots = {
        "p": d.pick(HARDWARE if kind == "shipping" else SOFTWARE),
        "m": d.pick(("January", "March", "May", "July", "October")),
        "n": d.int(1020, 9870),
    }
    complaint = complaint.format(**slots)
    text = f"{d.pick(('', '', 'Hello! ', 'Hi team, a question. ', 'Good morning. '))}{complaint[0].upper()}{complaint[1:]}"
    text += f" {d.pick(extras.split('; ')).format(**slots)}{d.pick(('', '', ' Thanks!', ' Regards, ' + d.pick(NAMES)))}"
    style = d.int(0, 2)
    if style == 0:
        return (
            "label",
            "Assign the ticket: billing, technical, account, shipping or feature request.",
            text,
            kind,
        )
    if style == 1:
        team = {"feature request": "product"}.get(kind, kind)
        reply = f"Thank you for your message. I have passed it on to our {team} team, and they will contact you within one working day."
        return (
            "route_and_reply",
            "Classify this support message and draft a one-line reply.",
            text,
            f"Category: {kind}\nReply: {reply}",
        )
    return (
        "which_team",
        "Which category fits this customer message best, and which words show it?",
        text,
        (f'{kind.capitalize()}. The key sentence is: "{complaint[0].upper()}{complaint[1:]}"'),
    )


def hour(minutes: int) -> str:
    """Time of day."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


@task("meeting_schedule", SOURCE, 58)
def meeting_schedule(d: Dice) -> Row:
    """Free slots, overlaps and time zones."""
    a, b = d.sample(NAMES, 2)
    style = d.int(0, 2)
    if style == 0:
        starts = [d.int(9 * 60, 10 * 60, 15), d.int(12 * 60, 13 * 60, 15), d.int(15 * 60, 16 * 60, 15)]
        busy = [(s, min(s + d.int(30, 105, 15), 1020)) for s in starts]
        gaps = [
            (x[1], y[0])
            for x, y in zip([(0, 540), *busy], [*busy, (1020, 0)], strict=True)
            if y[0] - x[1] >= 60
        ]
        text = "\n".join(
            f"{hour(s)}-{hour(e)} {d.pick(('team call', 'interview', 'client visit', 'review', 'training'))}"
            for s, e in busy
        )
        q = f"{a} works from 09:00 to 17:00. Find all gaps of at least one hour in this calendar."
        return "gaps", q, text, "\n".join(f"{hour(s)}-{hour(e)}" for s, e in gaps) or "There is none."
    if style == 1:
        s1, s2 = d.int(9 * 60, 13 * 60, 30), d.int(9 * 60, 13 * 60, 30)
        e1, e2 = s1 + d.int(60, 240, 30), s2 + d.int(60, 240, 30)
        low, high = max(s1, s2), min(e1, e2)
        q = f"{a} is free {hour(s1)}-{hour(e1)} and {b} {hour(s2)}-{hour(e2)}. When can they meet?"
        return (
            "overlap",
            q,
            "",
            f"Both are free from {hour(low)} to {hour(high)}."
            if low < high
            else f"{a} and {b} have no common free time.",
        )
    shift, start = d.pick((-8, -6, -5, -3, 2, 3, 5, 7)), d.int(9 * 60, 16 * 60, 30)
    there = f"{abs(shift)} hours {'ahead of' if shift > 0 else 'behind'}"
    q = f"A call starts at {hour(start)} for {a}. {b}'s clock is {there} that. What time is it for {b}?"
    return "time_zone", q, "", f"For {b} it starts at {hour((start + 60 * shift) % 1440)}."


SIGHTS = table("""
Lisbon | Belem Tower; the Alfama quarter; Sao Jorge Castle; the Tile Museum | a custard tart; a ride on tram 28
Vienna | Schoenbrunn Palace; the Belvedere; St Stephen's Cathedral; the Naschmarkt | a slice of Sachertorte; an evening at the opera
Prague | Charles Bridge; Prague Castle; the Old Town Square; Petrin Hill | a boat trip on the Vltava; dumplings with goulash
Seoul | Gyeongbokgung Palace; Bukchon village; Namsan Tower; the National Museum | street food in Myeongdong; a tea house in Insadong
Paris | the Louvre; the Eiffel Tower; Montmartre; the Musee d'Orsay | a walk along the Seine; onion soup in a bistro
Rome | the Colosseum; the Pantheon; the Vatican Museums; the Spanish Steps | gelato near Piazza Navona; an evening in Trastevere
Dublin | Trinity College; Dublin Castle; the National Gallery; Phoenix Park | live music in a pub; a walk along the Liffey
""")


@task("travel_itinerary", SOURCE, 44)
def travel_itinerary(d: Dice) -> Row:
    """Plans for a day or a weekend."""
    city, sights, treats = d.pick(SIGHTS)
    days, who = (
        d.int(1, 2),
        d.pick(
            (
                "a couple",
                "a family with teenagers",
                "an architecture student",
                "two old friends",
                "a solo traveller",
            )
        ),
    )
    stops, treat = d.sample(sights.split("; "), 2 * days), d.pick(treats.split("; "))
    lines = [
        f"Day {i + 1}: {stops[2 * i]} in the morning, {stops[2 * i + 1]} in the afternoon"
        for i in range(days)
    ]
    plan = "\n".join(lines) + f"\nEvening treat: {treat}"
    if d.chance(50):
        return "request", f"Plan {'a day' if days == 1 else 'a weekend'} in {city} for {who}.", "", plan
    return (
        "notes",
        f"Turn the notes into a plan for {who} visiting {city}.",
        f"{plural(days, 'day')}; {'; '.join(stops)}; {treat}",
        plan,
    )


PURPOSES = table("""
ask for a deadline extension for {x} | I am writing to ask whether the deadline for {x} could be moved by {n} days. {r} has taken longer than planned.
give thanks for help with {x} | Thank you very much for your help with {x}. Without your {n} hours on it, we could not have finished in time.
send an invitation to a presentation of {x} | I would like to invite you to a presentation of {x} in room {n}. It will take half an hour.
report a delay of {x} | Unfortunately {x} will be about {n} days late, because {r2}. I will keep you informed.
apologise for a mistake in {x} | I am sorry for the mistake on page {n} of {x}. A corrected version is attached.
ask for feedback on {x} | Could you please look at {x}? I would value your comments, above all on section {n}.
""")


@task("email_writing", SOURCE, 48)
def email_writing(d: Dice) -> Row:
    """Short emails for a purpose."""
    purpose, body = d.pick(PURPOSES)
    a, b = d.sample(NAMES, 2)
    sur = d.pick(SURNAMES)
    slots = {
        "x": d.pick(
            (
                "the annual report",
                "the website",
                "the safety audit",
                "the spring catalogue",
                "the training plan",
            )
        ),
        "n": d.int(2, 9),
        "r": d.pick(("The review", "Collecting the data", "The translation")),
        "r2": d.pick(("a supplier is closed", "two colleagues are ill", "the test equipment failed")),
    }
    goal, text = purpose.format(**slots), body.format(**slots)
    if d.chance(50):
        return (
            "formal",
            f"Write a short formal email to {a} {sur} to {goal}.",
            "",
            f"Dear {a} {sur},\n\n{text}\n\nKind regards,\n{b}",
        )
    return (
        "friendly",
        f"Write a friendly email from {b} to {a}.",
        f"Purpose: {goal}",
        f"Hi {a},\n\n{text}\n\nBest wishes,\n{b}",
    )


COSTS = (
    ("train ticket", 1800, 9000),
    ("hotel", 7000, 19000),
    ("lunch", 900, 2600),
    ("taxi", 1100, 4800),
    ("printing", 300, 2500),
    ("conference fee", 9000, 45000),
    ("parking", 400, 3000),
)


@task("expense_report", SOURCE, 40)
def expense_report(d: Dice) -> Row:
    """Totals and limits of expenses."""
    rows = [(name, d.int(low, high, 10)) for name, low, high in d.sample(COSTS, d.int(3, 5))]
    text = "\n".join(f"{name}: {money(cents)}" for name, cents in rows)
    total, name = sum(cents for _, cents in rows), d.pick(NAMES)
    style = d.int(0, 2)
    if style == 0:
        return (
            "total",
            f"Add up the expenses of {name}'s trip to {d.pick(CITIES)}.",
            text,
            f"Total: {money(total)}",
        )
    if style == 1:
        limit = d.int(100, 600, 50)
        verdict = (
            f"over it by {money(total - limit * 100)}"
            if total > limit * 100
            else f"within it by {money(limit * 100 - total)}"
        )
        return (
            "limit",
            f"The limit is ${limit}. Does this report keep to it?",
            text,
            f"The total is {money(total)}, {verdict}.",
        )
    top, cents = max(rows, key=lambda row: row[1])
    share = show(round(100 * cents / total))
    return (
        "largest",
        "Which item costs most, and what share of the total is it?",
        text,
        f"The {top}: {money(cents)}, about {share}%.",
    )
