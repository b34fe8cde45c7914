"""Tasks about words: tables checked by hand, rules applied by code."""

from __future__ import annotations

from .registry import CITIES, NAMES, SURNAMES, Dice, Row, article, listed, money, table, task

SOURCE = "synthetic-language"

SUBJECTS = "My neighbour|Our teacher|The night nurse|Her cousin|The new baker|The tall goalkeeper|His landlady|The old sailor".split(
    "|"
)
ACTIONS = table("""
walk | walks | to work every morning
keep | keeps | bees behind the house
play | plays | the cello on Sundays
need | needs | a new pair of glasses
know | knows | the way to the station
speak | speaks | three languages
grow | grows | tomatoes on the balcony
write | writes | letters by hand
collect | collects | stamps from islands
take | takes | the early bus
""")
FRAMES = table("""
their | there | The Lopez twins left {} coats in the hall.; The players raised {} arms after the goal.; Students must bring {} own calculators.
there | their | Put the boxes over {}.; Is {} any soup left?; We have been going {} since 2015.
they're | their | I think {} arriving at noon.; My parents say {} happy with the flat.; The keys are old and {} rusty.
its | it's | The cat licked {} paw.; The company changed {} logo.; The bridge is famous for {} arches.
it's | its | I hope {} not too late.; Take a coat because {} cold outside.; She says {} her turn.
your | you're | Please hang {} jacket here.; Is this {} umbrella?; I enjoyed {} lecture on whales.
you're | your | I am glad {} feeling better.; Call me when {} ready.; If {} hungry, there is bread.
than | then | The red box is heavier {} the blue one.; Nobody sings better {} Rosa.; I would rather walk {} wait.
then | than | Boil the water, {} add the rice.; We ate and {} went for a walk.; Back {} the road was unpaved.
fewer | less | There were {} cars on the road today.; This jar holds {} cookies than that one.
too | to | This soup is {} salty.; She wants to come {}.; It was {} dark to read.
affect | effect | The weather will {} the harvest.; Noise can {} your sleep.
effect | affect | The medicine had no {} at all.; The law took {} in May.
whose | who's | Do you know {} bag this is?; That is the boy {} dog ran away.
lose | loose | Do not {} your ticket.; We may {} the match.
""")
WHY = {
    "their": "shows possession",
    "there": "points to a place or says that something exists",
    "they're": "is short for they are",
    "its": "is the possessive",
    "it's": "is short for it is",
    "your": "is the possessive",
    "you're": "is short for you are",
    "than": "makes a comparison",
    "then": "tells the order in time",
    "fewer": "goes with things that can be counted",
    "too": "means more than enough or also",
    "affect": "is the verb",
    "effect": "is the noun",
    "whose": "asks about or shows possession",
    "lose": "is the verb for not keeping or not winning",
}
FIX = (
    ("correct", "Correct the grammar of this sentence."),
    ("correct", "Fix the mistake in the sentence."),
    ("proofread", "Proofread the sentence and explain the correction."),
    ("proofread", "Find the error, correct it and say why."),
)


@task("grammar_correction", SOURCE, 150)
def grammar_correction(d: Dice) -> Row:
    """Confused words, agreement of subject and verb, a or an, double negatives."""
    kind = d.int(0, 9)
    if kind < 4:
        good, bad, frames = d.pick(FRAMES)
        frame = d.pick(frames.split("; "))
        wrong, right, why = frame.format(bad), frame.format(good), f'"{good}" {WHY[good]}'
    elif kind < 7:
        who, (many, one, rest) = d.pick(SUBJECTS), d.pick(ACTIONS)
        if d.chance(60):
            wrong, right, why = (
                f"{who} {many} {rest}.",
                f"{who} {one} {rest}.",
                f"a singular subject takes {one}",
            )
        else:
            who = f"{who} and {d.pick(NAMES)}"
            wrong, right, why = (
                f"{who} {one} {rest}.",
                f"{who} {many} {rest}.",
                f"two people together take {many}",
            )
    elif kind < 9:
        thing = d.pick(
            "umbrella orange idea elephant engineer apple island".split()
            + "banana lemon tiger castle pilot melody".split()
        )
        verb = d.pick(("saw", "drew", "wrote about", "dreamt of", "talked about"))
        good = article(thing)
        bad = f"a {thing}" if good.startswith("an ") else f"an {thing}"
        who = d.pick(NAMES)
        wrong, right = f"{who} {verb} {bad}.", f"{who} {verb} {good}."
        why = f"{thing} begins with a {'vowel' if good.startswith('an ') else 'consonant'} sound"
    else:
        who = d.pick(NAMES)
        verb, what = d.pick(
            (("say", "thing"), ("see", "body"), ("go", "where"), ("hear", "thing"), ("meet", "body"))
        )
        wrong, right = f"{who} didn't {verb} no{what}.", f"{who} didn't {verb} any{what}."
        why = "standard English uses one negative, not two"
    template, text = d.pick(FIX)
    return template, text, wrong, right if template == "correct" else f"{right}\nReason: {why}."


VERBS = table("""
begin | began | begun | the lesson on time
break | broke | broken | the world record
bring | brought | brought | sandwiches to the picnic
build | built | built | a shed near the lake
buy | bought | bought | fresh bread
catch | caught | caught | the last train
choose | chose | chosen | the smaller room
draw | drew | drawn | maps of the village
drink | drank | drunk | tea after lunch
drive | drove | driven | to the coast
eat | ate | eaten | soup on Fridays
fall | fell | fallen | behind the leaders
feel | felt | felt | tired in the evening
find | found | found | shells on the beach
fly | flew | flown | to Porto in June
forget | forgot | forgotten | the password
get | got | got | up early
give | gave | given | money to the museum
go | went | gone | to the market
hear | heard | heard | the church bells
hold | held | held | a meeting in the garden
keep | kept | kept | the receipts
leave | left | left | the office at six
lend | lent | lent | books to friends
make | made | made | candles for the fair
meet | met | met | at the old bridge
pay | paid | paid | the rent in cash
ride | rode | ridden | horses in the hills
run | ran | run | along the canal
sell | sold | sold | apples by the road
send | sent | sent | postcards home
sing | sang | sung | in a choir
sleep | slept | slept | in a tent
speak | spoke | spoken | to the manager
steal | stole | stolen | cherries from the tree
swim | swam | swum | before breakfast
take | took | taken | photographs of birds
teach | taught | taught | chess to beginners
think | thought | thought | about the offer
throw | threw | thrown | the ball over the fence
understand | understood | understood | the joke
wake | woke | woken | the baby
wear | wore | worn | boots in winter
win | won | won | most of the games
write | wrote | written | to the newspaper
plan | planned | planned | the route together
study | studied | studied | the stars
stop | stopped | stopped | at every village
carry | carried | carried | water from the well
enjoy | enjoyed | enjoyed | the quiet
""")


@task("past_tense", SOURCE, 64)
def past_tense(d: Dice) -> Row:
    """Forms of a verb, or a sentence moved to the past."""
    base, past, participle, rest = d.pick(VERBS)
    who, have = d.pick(
        (("We", "have"), ("They", "have"), ("I", "have"), ("The students", "have"), ("Our friends", "have"))
    )
    style = d.int(0, 3)
    if style == 0:
        return (
            "form",
            f'What is the past tense of the verb "{base}"?',
            "",
            f'The past tense of "{base}" is "{past}".',
        )
    if style == 1:
        return (
            "sentence",
            "Put the sentence into the simple past.",
            f"{who} {base} {rest}.",
            f"{who} {past} {rest}.",
        )
    if style == 2:
        return (
            "perfect",
            "Rewrite in the present perfect.",
            f"{who} {base} {rest}.",
            f"{who} {have} {participle} {rest}.",
        )
    return (
        "three_forms",
        "List the three principal parts of this verb.",
        f"to {base}",
        f"{base}, {past}, {participle}",
    )


PLURALS = table("""
child | children | irregular
mouse | mice | irregular
tooth | teeth | irregular
foot | feet | irregular
goose | geese | irregular
woman | women | irregular
person | people | irregular
ox | oxen | irregular
sheep | sheep | the same in both numbers
deer | deer | the same in both numbers
series | series | the same in both numbers
aircraft | aircraft | the same in both numbers
knife | knives | -fe becomes -ves
leaf | leaves | -f becomes -ves
wolf | wolves | -f becomes -ves
shelf | shelves | -f becomes -ves
loaf | loaves | -f becomes -ves
roof | roofs | just add -s, although it ends in -f
city | cities | a consonant before -y: -ies
berry | berries | a consonant before -y: -ies
factory | factories | a consonant before -y: -ies
toy | toys | a vowel before -y: just -s
monkey | monkeys | a vowel before -y: just -s
box | boxes | -x takes -es
watch | watches | -ch takes -es
dish | dishes | -sh takes -es
glass | glasses | -s takes -es
potato | potatoes | many nouns in -o take -es
hero | heroes | many nouns in -o take -es
piano | pianos | musical words in -o take -s
crisis | crises | Greek -is becomes -es
analysis | analyses | Greek -is becomes -es
cactus | cacti | Latin -us becomes -i
phenomenon | phenomena | Greek -on becomes -a
mother-in-law | mothers-in-law | the main noun takes the ending
""")


@task("plural_nouns", SOURCE, 44)
def plural_nouns(d: Dice) -> Row:
    """Plural forms with the rule."""
    one, many, rule = d.pick(PLURALS)
    if d.chance(50):
        return (
            "question",
            f'What is the plural of "{one}"?',
            "",
            f'The plural of "{one}" is "{many}" ({rule}).',
        )
    if d.chance(50):
        return "word", d.pick(("Give the plural.", "Write the plural form of the noun.")), one, many
    return "singular", "Give the singular of this plural noun.", many, one


WORDS = table("""
ancient | very old | modern
brave | courageous | cowardly
calm | peaceful | agitated
cautious | careful | reckless
generous | giving | stingy
gloomy | dismal | cheerful
huge | enormous | tiny
humble | modest | arrogant
lazy | idle | hard-working
loud | noisy | quiet
polite | courteous | rude
rapid | fast | slow
rare | uncommon | common
rigid | stiff | flexible
sincere | genuine | false
strange | odd | ordinary
sturdy | robust | fragile
tidy | neat | messy
transparent | see-through | opaque
vague | unclear | precise
wealthy | rich | poor
accept | agree to | refuse
admire | look up to | despise
begin | start | finish
conceal | hide | reveal
construct | build | demolish
expand | grow | shrink
forbid | prohibit | allow
gather | collect | scatter
improve | get better | worsen
lend | loan | borrow
praise | compliment | criticise
rescue | save | abandon
retreat | withdraw | advance
victory | triumph | defeat
ally | partner | enemy
arrival | coming | departure
expert | specialist | novice
failure | flop | success
permanent | lasting | temporary
shallow | not deep | deep
artificial | man-made | natural
compulsory | required | optional
""")


@task("synonym_antonym", SOURCE, 80)
def synonym_antonym(d: Dice) -> Row:
    """Words of similar and of opposite meaning."""
    word, same, other = d.pick(WORDS)
    style = d.int(0, 4)
    if style == 0:
        return "antonym", f'What is the opposite of "{word}"?', "", f'The opposite of "{word}" is "{other}".'
    if style == 1:
        return (
            "synonym",
            f'Give another way to say "{word}".',
            "",
            f'Another way to say "{word}" is "{same}".',
        )
    if style == 2:
        return "pair", "Name one synonym and one antonym.", word, f"Synonym: {same}\nAntonym: {other}"
    if style == 3:
        wrong = [w[1] for w in d.sample(WORDS, 3) if w[0] != word][:2]
        options = d.shuffled([same, *wrong])
        return "choice", f'Which of these means nearly the same as "{word}"?', listed(options, "or"), same
    first, second = d.shuffled([word, d.pick((same, other))])
    kind = "synonyms" if same in (first, second) else "antonyms"
    return (
        "relation",
        "Are the two expressions synonyms or antonyms?",
        f"{first} / {second}",
        kind.capitalize(),
    )


REVIEWS = table("""
hotel | the bed | was like sleeping on clouds; was clean and wide | sagged in the middle; creaked all night
hotel | the breakfast | had fresh fruit and warm bread; made us skip lunch | was cold coffee and stale toast; ran out by eight
hotel | the reception | found our lost bag within an hour; upgraded us for free | ignored us for twenty minutes; charged us twice
headset | the sound | is warm and detailed; made old albums feel new | is thin and tinny; crackles at every bass note
headset | the battery | lasts a whole week of commuting; charges in minutes | dies before lunch; never reached half of what was promised
headset | the headband | is soft even after hours; is so light I forget it | pinches after ten minutes; slips off when I bend down
restaurant | the pasta | was cooked to perfection; tasted of summer | was a salty lump; arrived lukewarm
restaurant | our waiter | knew every wine by heart; was patient with the children | forgot two dishes; rolled his eyes at a simple question
restaurant | the terrace | overlooks the harbour; was full of flowers | smelled of the bins; shook with traffic
novel | the plot | kept me up until three; twists just when you relax | wanders without a point; fell apart after chapter four
novel | the main character | is funny and brave; felt like a friend | never changes; is impossible to care about
novel | the ending | brought me to tears in the best way; ties every thread | came out of nowhere; left half the story hanging
vacuum cleaner | the motor | is quiet and strong; picks up sand with ease | wheezes on bare floors; burned out in a month
vacuum cleaner | the cable | reaches every corner; rewinds by itself | is too short for one room; tangles each time
language app | the lessons | are short and clever; stick in my memory | repeat the same five words; freeze half-way
language app | the voice exercises | caught every mistake I made; gave me confidence | never understood me; crash on my phone
yoga class | the teacher | adapts each pose to beginners; explains with humour | was late every time; talked about money all hour
yoga class | the studio | is bright and warm; smells of cedar | was freezing; had no room to stretch
""")
OPENINGS = (
    "I {got} this {x} {when}.",
    "We {got} the {x} {when}.",
    "My sister recommended the {x}, so I {got} it {when}.",
    "Second time with this {x}.",
    "After comparing many reviews I {got} this {x}.",
    "My team chose the {x} for me.",
)
CLOSINGS = {
    "Positive": (
        "I would choose it again.",
        "Worth every cent.",
        "Five stars from me.",
        "I already told my friends.",
        "Highly recommended.",
    ),
    "Negative": (
        "I want my money back.",
        "Never again.",
        "Save your money.",
        "What a disappointment.",
        "I cannot recommend it.",
    ),
    "Mixed": (
        "Good and bad in equal parts.",
        "I am of two minds.",
        "Not sure that I would return.",
        "Three stars, then.",
    ),
}
GOT = {
    "hotel": "booked",
    "restaurant": "tried",
    "yoga class": "joined",
    "language app": "downloaded",
    "novel": "read",
}


@task("sentiment", SOURCE, 250)
def sentiment(d: Dice) -> Row:
    """Reviews with an opening, two aspects and a closing."""
    product = d.pick(REVIEWS)[0]
    (_, a, good_a, bad_a), (_, b, good_b, bad_b) = d.sample([r for r in REVIEWS if r[0] == product], 2)
    label = d.pick(("Positive", "Positive", "Negative", "Negative", "Mixed"))
    one = d.pick((bad_a if label == "Negative" else good_a).split("; "))
    two = d.pick((good_b if label == "Positive" else bad_b).split("; "))
    opening = d.pick(OPENINGS).format(
        x=product,
        got=GOT.get(product, "bought"),
        when=d.pick(("in May", "last week", "in the spring", "a month ago", "last winter")),
    )
    if label == "Mixed":
        body = d.pick((f"{a} {one}, but {b} {two}.", f"{b} {two}; on the other hand, {a} {one}."))
    else:
        body = d.pick((f"{a} {one}, and {b} {two}.", f"{a} {one}. {b.capitalize()} {two}."))
    text = f"{opening} {body[0].upper()}{body[1:]} {d.pick(CLOSINGS[label])}"
    style = d.int(0, 3)
    if style == 0:
        return "label", "Classify the sentiment of the review as positive, negative or mixed.", text, label
    if style == 1:
        why = f"{a} {one}" if label != "Mixed" else f"{a} {one} while {b} {two}"
        return "explain", "What is the sentiment of this review, and why?", text, f"{label}, because {why}."
    if style == 2:
        return (
            "quoted",
            f'Is the following {product} review positive, negative or mixed? "{text}"',
            "",
            f"It is {label.lower()}: {a} {one}{f', but {b} {two}' if label == 'Mixed' else ''}.",
        )
    return (
        "aspects",
        "Judge each aspect that the reviewer mentions.",
        text,
        "\n".join(
            f"{aspect.split(' ', 1)[1].capitalize()}: {'positive' if words in good else 'negative'}"
            for aspect, words, good in ((a, one, good_a), (b, two, good_b))
        ),
    )


STORIES = (
    (
        "The {city} library opened a new {wing} on {day}. It cost {m} million euros and took {y} years to build. {name} {sur}, who "
        "runs the library, expects {n} visitors a week. Opening hours will stay the same.",
        "The {city} library has opened a {m} million euro {wing} and expects {n} visitors a week.",
    ),
    (
        "{name} {sur} started the bakery in {city} with one oven. Today it employs {y}0 people and delivers to {n} cafes. Next year a "
        "second shop will open near the station.",
        "{name} {sur}'s bakery in {city} grew from one oven to {y}0 employees and {n} cafes, and will open a second shop.",
    ),
    (
        "Heavy rain stopped the trams in {city} on {day} morning. About {n} commuters had to walk or take buses. By noon {y} of the {y2} "
        "lines ran again. The operator apologised and will refund tickets.",
        "Rain halted trams in {city} on {day}, stranding about {n} commuters; {y} of {y2} lines ran again by noon and tickets will be refunded.",
    ),
    (
        "Researchers in {city} asked {n} adults about sleep. Those who read before bed slept {m}0 minutes longer than those who used a "
        "phone. {name} {sur}, who led the survey, warns that it shows a link and not a cause.",
        "A survey of {n} adults in {city} links reading before bed to {m}0 more minutes of sleep than phone use, without proving a cause.",
    ),
    (
        "The {team} met on {day} to plan the autumn fair. {name} will rent the tents, {name2} will ask local farms for food, and everybody "
        "will hand out flyers. The budget is {n} euros. The next meeting is in {y} weeks.",
        "The {team} planned the autumn fair on a {n} euro budget: {name} rents tents, {name2} finds food, all hand out flyers.",
    ),
    (
        "{name} {sur} crossed the strait near {city} in a home-made canoe. The trip of {y2} kilometres took {y} hours. Fog hid the shore for "
        "most of the way, so a compass was the only guide.",
        "{name} {sur} paddled {y2} foggy kilometres near {city} in a home-made canoe in {y} hours, guided by compass.",
    ),
    (
        "A pilot project in {city} gave {n} households smart meters. After {y} months their power use had dropped by {m} per cent. Families "
        "with children saved the most. The city now plans to include every district.",
        "Smart meters cut power use by {m} per cent in {n} {city} households over {y} months, so the city plans to extend them.",
    ),
)


@task("summarise_paragraph", SOURCE, 95)
def summarise_paragraph(d: Dice) -> Row:
    """A short report and its gist in one sentence."""
    story, gist = d.pick(STORIES)
    name, name2 = d.sample(NAMES, 2)
    y = d.int(2, 9)
    facts = {
        "city": d.pick(CITIES),
        "wing": d.pick(("reading room", "music wing", "children's floor")),
        "m": d.int(2, 9),
        "y": y,
        "y2": y + d.int(2, 6),
        "n": d.int(150, 2950, 50),
        "name": name,
        "name2": name2,
        "sur": d.pick(SURNAMES),
        "day": d.pick(("Monday", "Tuesday", "Thursday", "Saturday")),
        "team": d.pick(("parents' council", "garden club", "village choir")),
    }
    text, short = story.format(**facts), gist.format(**facts)
    template, q = d.pick(
        (
            ("one_sentence", "Summarise the paragraph in one sentence."),
            ("one_sentence", "What is this text about? Answer in one sentence."),
            ("headline", "Condense the news item for a busy reader."),
            ("tldr", "Write a TL;DR for the text below."),
        )
    )
    return template, q, text, f"TL;DR: {short}" if template == "tldr" else short


PHRASES = table("""
Good morning. | Bonjour. | Buenos días. | Guten Morgen.
Good night. | Bonne nuit. | Buenas noches. | Gute Nacht.
Thank you very much. | Merci beaucoup. | Muchas gracias. | Vielen Dank.
See you tomorrow. | À demain. | Hasta mañana. | Bis morgen.
What is your name? | Comment vous appelez-vous ? | ¿Cómo se llama usted? | Wie heißen Sie?
How are you? | Comment allez-vous ? | ¿Cómo está usted? | Wie geht es Ihnen?
I do not understand. | Je ne comprends pas. | No entiendo. | Ich verstehe nicht.
Where is the station? | Où est la gare ? | ¿Dónde está la estación? | Wo ist der Bahnhof?
How much does it cost? | Combien ça coûte ? | ¿Cuánto cuesta? | Wie viel kostet das?
The bill, please. | L'addition, s'il vous plaît. | La cuenta, por favor. | Die Rechnung, bitte.
I am hungry. | J'ai faim. | Tengo hambre. | Ich habe Hunger.
It is raining. | Il pleut. | Está lloviendo. | Es regnet.
What time is it? | Quelle heure est-il ? | ¿Qué hora es? | Wie spät ist es?
Happy birthday! | Joyeux anniversaire ! | ¡Feliz cumpleaños! | Alles Gute zum Geburtstag!
I live in a small village. | J'habite dans un petit village. | Vivo en un pueblo pequeño. | Ich wohne in einem kleinen Dorf.
The book is on the table. | Le livre est sur la table. | El libro está sobre la mesa. | Das Buch liegt auf dem Tisch.
We have two children. | Nous avons deux enfants. | Tenemos dos hijos. | Wir haben zwei Kinder.
The train is late. | Le train est en retard. | El tren llega tarde. | Der Zug hat Verspätung.
Can you help me? | Pouvez-vous m'aider ? | ¿Puede ayudarme? | Können Sie mir helfen?
I am looking for a pharmacy. | Je cherche une pharmacie. | Busco una farmacia. | Ich suche eine Apotheke.
The water is cold. | L'eau est froide. | El agua está fría. | Das Wasser ist kalt.
My brother is a teacher. | Mon frère est professeur. | Mi hermano es profesor. | Mein Bruder ist Lehrer.
She speaks French. | Elle parle français. | Ella habla francés. | Sie spricht Französisch.
The shop is closed today. | Le magasin est fermé aujourd'hui. | La tienda está cerrada hoy. | Das Geschäft ist heute geschlossen.
I would like a coffee. | Je voudrais un café. | Quisiera un café. | Ich möchte einen Kaffee.
The sky is blue. | Le ciel est bleu. | El cielo es azul. | Der Himmel ist blau.
I have lost my key. | J'ai perdu ma clé. | He perdido mi llave. | Ich habe meinen Schlüssel verloren.
They work on Saturday. | Ils travaillent le samedi. | Trabajan los sábados. | Sie arbeiten am Samstag.
Have a good trip! | Bon voyage ! | ¡Buen viaje! | Gute Reise!
The room is too small. | La chambre est trop petite. | La habitación es demasiado pequeña. | Das Zimmer ist zu klein.
I like music. | J'aime la musique. | Me gusta la música. | Ich mag Musik.
The dog is sleeping. | Le chien dort. | El perro está durmiendo. | Der Hund schläft.
Open the window, please. | Ouvrez la fenêtre, s'il vous plaît. | Abra la ventana, por favor. | Öffnen Sie bitte das Fenster.
We are learning German. | Nous apprenons l'allemand. | Estamos aprendiendo alemán. | Wir lernen Deutsch.
""")


@task("translate_phrase", SOURCE, 90)
def translate_phrase(d: Dice) -> Row:
    """English to French, Spanish or German, and back."""
    english, *others = d.pick(PHRASES)
    pick = d.int(0, 2)
    language, foreign = ("French", "Spanish", "German")[pick], others[pick]
    style = d.int(0, 4)
    if style < 2:
        return "to_foreign", f"Translate the sentence into {language}.", english, foreign
    if style == 2:
        return "into_english", f"Translate this {language} sentence into English.", foreign, english
    if style == 3:
        return (
            "how_to_say",
            f'How do you say "{english}" in {language}?',
            "",
            f'In {language} it is "{foreign}"',
        )
    return (
        "which_language",
        "Which language is this, and what does it mean?",
        foreign,
        f'It is {language} and means "{english}"',
    )


IDIOMS = table("""
break the ice | start a friendly conversation among strangers | A short game helped to break the ice.
bite the bullet | do something unpleasant that cannot be avoided | She bit the bullet and called the dentist.
a piece of cake | something very easy | The driving test was a piece of cake.
under the weather | slightly ill | He stayed at home because he felt under the weather.
hit the nail on the head | say exactly what is right | Your comment on the budget hit the nail on the head.
once in a blue moon | very rarely | We eat out once in a blue moon.
spill the beans | reveal a secret | Who spilled the beans about the party?
cost an arm and a leg | be very expensive | The new roof cost an arm and a leg.
let the cat out of the bag | tell a secret by accident | The leaked photo let the cat out of the bag.
miss the boat | be too late for an opportunity | Sales end today, so do not miss the boat.
on thin ice | in a risky position | After two warnings he is on thin ice.
pull someone's leg | joke by telling something untrue | Relax, I was only pulling your leg.
sit on the fence | avoid taking sides | The mayor cannot sit on the fence for ever.
the last straw | the final small problem in a series | The broken printer was the last straw.
burn the midnight oil | work late into the night | They burned the midnight oil to finish the report.
call it a day | stop working | It is dark, so let us call it a day.
cut corners | do something badly to save time or money | The builders cut corners, and now the wall leaks.
get cold feet | lose courage at the last moment | He got cold feet before the jump.
kill two birds with one stone | solve two problems at once | Cycling to work kills two birds with one stone.
turn over a new leaf | begin to behave better | In January I turned over a new leaf.
a storm in a teacup | much fuss about something small | Their quarrel was a storm in a teacup.
back to square one | forced to start again | The test failed, so we are back to square one.
add insult to injury | make a bad situation worse | To add insult to injury, it began to snow.
keep an eye on | watch carefully | Please keep an eye on the soup.
""")


@task("idiom_explain", SOURCE, 46)
def idiom_explain(d: Dice) -> Row:
    """Meaning of a common idiom, with an example."""
    idiom, meaning, example = d.pick(IDIOMS)
    if d.chance(40):
        return (
            "meaning",
            f'What does the idiom "{idiom}" mean?',
            "",
            f'"{idiom.capitalize()}" means: {meaning}. Example: {example}',
        )
    if d.chance(50):
        return "find_idiom", "Which English idiom fits this meaning?", meaning, idiom
    return (
        "in_context",
        "Explain in plain words the idiom that this sentence uses.",
        example,
        f'"{idiom.capitalize()}" means: {meaning}.',
    )


@task("rewrite_politely", SOURCE, 60)
def rewrite_politely(d: Dice) -> Row:
    """Blunt messages made courteous."""
    name, kind = d.pick(NAMES), d.int(0, 4)
    day = d.pick(("today", "by Friday", "before the meeting", "this week"))
    if kind == 0:
        doc = d.pick(("the report", "the contract", "your figures", "the slides", "the invoice"))
        blunt, nice = f"Send me {doc} {day}.", f"Could you please send me {doc} {day}? Thank you in advance."
    elif kind == 1:
        thing = d.pick(("the music", "your phone", "the television", "your voice in the corridor"))
        blunt, nice = (
            f"{name}, {thing} is too loud. Stop it.",
            f"{name}, would you mind turning {thing} down a little? Thank you.",
        )
        nice = nice.replace(
            "turning your voice in the corridor down a little",
            "speaking a little more softly in the corridor",
        )
    elif kind == 2:
        thing = d.pick(("draft", "layout", "spreadsheet", "proposal", "poster"))
        blunt = f"Your {thing} is bad. Do it again."
        nice = f"Thank you for the {thing}. I think it could be stronger; would you be willing to revise it {day}?"
        blunt = blunt.replace("again", f"again {day}")
    elif kind == 3:
        what = d.pick(("come to your party", "join the call", "take on another project", "lend you the van"))
        blunt, nice = (
            f"No, I won't {what}.",
            f"Thank you for asking, but I am afraid I am not able to {what}.",
        )
    else:
        what = d.pick(
            (
                "You are late again",
                "You never answer my mails",
                "You forgot the keys",
                "You parked in my space",
            )
        )
        nice = {
            "late": "I noticed that the start has been difficult to make lately. Could we find a time that suits you better?",
            "mails": "I have not heard from you yet. Could you let me know when I may expect an answer?",
            "keys": "It seems the keys were left behind. Could you bring them next time, please?",
            "space": "I believe your car is in my space. Could you please move it when you have a moment?",
        }[next(w for w in ("late", "mails", "keys", "space") if w in what)]
        blunt, nice = f"{what}, {name}!", f"Hello {name}. {nice}"
    lead = d.pick(
        (
            "Rewrite the message politely.",
            "Make this sound more courteous.",
            "Rephrase for a professional email.",
        )
    )
    return {"Rew": "rewrite", "Mak": "soften", "Rep": "email_tone"}[lead[:3]], lead, blunt, nice


RIDDLES = table("""
What has keys but cannot open locks? | A piano.
What has hands but cannot clap? | A clock.
What gets wetter the more it dries? | A towel.
What has a neck but no head? | A bottle.
What goes up but never comes down? | Your age.
What has one eye but cannot see? | A needle.
What has many teeth but cannot bite? | A comb.
What can travel around the world while staying in a corner? | A stamp.
What has to be broken before you can use it? | An egg.
The more you take, the more you leave behind. What are they? | Footsteps.
What can you catch but not throw? | A cold.
What has cities but no houses, and rivers but no water? | A map.
What comes down but never goes up? | Rain.
What belongs to you but is used more by others? | Your name.
What kind of room has no doors or windows? | A mushroom.
What has a bed but never sleeps? | A river.
""")


@task("riddle", SOURCE, 16)
def riddle(d: Dice) -> Row:
    """Old riddles."""
    text, answer = d.pick(RIDDLES)
    return None, d.pick(("Answer the riddle.", "Can you solve this riddle?")), text, answer


MAILS = (
    "Hi {a}, the {event} moves to {date} at {time}. We meet in {place} in {city}. Please bring {thing}. Best, {b}",
    "Dear {a}, your order {order} of {thing} was shipped to {city} on {date} and costs {price}. Kind regards, {b}, {place}",
    "{a}, could you call {b} on {phone} before {date}? It is about the {event} in {city}. Thanks!",
    "Hello, my name is {b}. I booked the {event} in {city} for {date} at {time} and paid {price}. Could you confirm it to {mail}?",
    "Reminder for {a}: the {event} starts at {time} on {date}. Tickets cost {price} at {place}. Questions go to {mail}.",
)
LABELS = {
    "a": "Recipient",
    "b": "Sender",
    "event": "Event",
    "date": "Date",
    "time": "Time",
    "place": "Place",
    "city": "City",
    "thing": "Item",
    "order": "Order number",
    "price": "Price",
    "phone": "Phone",
    "mail": "Email",
}


@task("extract_entities", SOURCE, 130)
def extract_entities(d: Dice) -> Row:
    """Facts pulled out of short emails."""
    a, b = d.sample(NAMES, 2)
    full = f"{b} {d.pick(SURNAMES)}"
    values = {
        "a": a,
        "b": full,
        "event": d.pick(
            ("budget review", "pottery course", "site visit", "book club", "guided tour", "job interview")
        ),
        "date": f"{d.int(1, 28)} {d.pick(('March', 'April', 'June', 'September', 'November'))}",
        "city": d.pick(CITIES),
        "time": f"{d.int(8, 19)}:{d.pick(('00', '15', '30', '45'))}",
        "order": f"{d.pick('ABKRT')}-{d.int(10234, 98765)}",
        "place": d.pick(("the Blue Room", "Hall 3", "the Harbour Cafe", "the North Library", "Studio Nine")),
        "price": money(d.int(900, 45000, 50)),
        "thing": d.pick(("a notebook", "two garden chairs", "the signed form", "a desk lamp", "six glasses")),
        "phone": f"555-01{d.int(10, 99)}",
        "mail": f"{full.lower().replace(' ', '.')}@example.com",
    }
    mail = d.pick(MAILS)
    keys, text = [k for k in values if f"{{{k}}}" in mail], mail.format(**values)
    labels = LABELS | ({"b": "Contact"} if "call {b}" in mail else {})
    style = d.int(0, 2)
    if style == 0:
        return (
            "all_fields",
            "Extract every name, date, place and number from the email.",
            text,
            "\n".join(f"{labels[k]}: {values[k]}" for k in keys),
        )
    if style == 1:
        some = sorted(d.sample(keys[1:] if "a" in keys else keys, 2), key=keys.index)
        wanted = listed([labels[k].lower() for k in some])
        return (
            "named_fields",
            f"Find the {wanted} in this email.",
            text,
            "\n".join(f"{labels[k]}: {values[k]}" for k in some),
        )
    if "city" not in keys:
        return (
            "when",
            "When does it start, according to the message?",
            text,
            f"On {values['date']} at {values['time']}.",
        )
    return (
        "when_where",
        "Which date and which city does the message mention?",
        text,
        f"It mentions {values['date']} and {values['city']}.",
    )
