"""Tasks about the world: small tables of settled facts."""

from __future__ import annotations

from .registry import Dice, Row, listed, table, task

SOURCE = "synthetic-facts"

COUNTRIES = table("""
Argentina | Buenos Aires | South America | Spanish | peso
Australia | Canberra | Oceania | English | dollar
Austria | Vienna | Europe | German | euro
Bangladesh | Dhaka | Asia | Bengali | taka
Brazil | Brasilia | South America | Portuguese | real
Bulgaria | Sofia | Europe | Bulgarian | -
Chile | Santiago | South America | Spanish | peso
China | Beijing | Asia | Mandarin Chinese | yuan
Colombia | Bogota | South America | Spanish | peso
Cuba | Havana | North America | Spanish | peso
Denmark | Copenhagen | Europe | Danish | krone
Egypt | Cairo | Africa | Arabic | pound
Estonia | Tallinn | Europe | Estonian | euro
Ethiopia | Addis Ababa | Africa | - | birr
Finland | Helsinki | Europe | - | euro
France | Paris | Europe | French | euro
Germany | Berlin | Europe | German | euro
Ghana | Accra | Africa | English | cedi
Greece | Athens | Europe | Greek | euro
Hungary | Budapest | Europe | Hungarian | forint
Iceland | Reykjavik | Europe | Icelandic | krona
India | New Delhi | Asia | - | rupee
Iran | Tehran | Asia | Persian | rial
Italy | Rome | Europe | Italian | euro
Jamaica | Kingston | North America | English | dollar
Japan | Tokyo | Asia | Japanese | yen
Jordan | Amman | Asia | Arabic | dinar
Kenya | Nairobi | Africa | - | shilling
Latvia | Riga | Europe | Latvian | euro
Lithuania | Vilnius | Europe | Lithuanian | euro
Mexico | Mexico City | North America | Spanish | peso
Mongolia | Ulaanbaatar | Asia | Mongolian | tugrik
Morocco | Rabat | Africa | - | dirham
Nepal | Kathmandu | Asia | Nepali | rupee
Nigeria | Abuja | Africa | English | naira
Norway | Oslo | Europe | Norwegian | krone
Peru | Lima | South America | - | sol
Poland | Warsaw | Europe | Polish | zloty
Portugal | Lisbon | Europe | Portuguese | euro
Romania | Bucharest | Europe | Romanian | leu
Senegal | Dakar | Africa | French | CFA franc
Slovakia | Bratislava | Europe | Slovak | euro
South Korea | Seoul | Asia | Korean | won
Spain | Madrid | Europe | Spanish | euro
Sweden | Stockholm | Europe | Swedish | krona
Thailand | Bangkok | Asia | Thai | baht
Tunisia | Tunis | Africa | Arabic | dinar
Turkey | Ankara | - | Turkish | lira
Ukraine | Kyiv | Europe | Ukrainian | hryvnia
Uruguay | Montevideo | South America | Spanish | peso
Vietnam | Hanoi | Asia | Vietnamese | dong
""")


@task("country_facts", SOURCE, 185)
def country_facts(d: Dice) -> Row:
    """Capitals, continents, languages and currencies."""
    country, capital, continent, language, money = d.pick(COUNTRIES)
    style = d.int(0, 7)
    if style == 0:
        return "capital", f"What is the capital of {country}?", "", f"The capital of {country} is {capital}."
    if style == 1:
        return (
            "which_country",
            f"{capital} is the capital of which country?",
            "",
            f"{capital} is the capital of {country}.",
        )
    if style == 2 and continent != "-":
        return "continent", f"On which continent does {country} lie?", "", f"{country} lies in {continent}."
    if style == 3 and language != "-":
        q = f"Which language does the government of {country} mainly use?"
        return "language", q, "", f"In {country} it is {language}."
    if style == 4 and money != "-":
        return "currency", "Name the currency of this country.", country, money
    if style == 5 and continent != "-":
        text = f"Country: {country}\nCapital: {capital}\nContinent: {continent}"
        return (
            "fact_sheet",
            d.pick(("Write a fact sheet with capital and continent.", "Fill in capital and continent.")),
            country,
            text,
        )
    if style == 6:
        others = d.shuffled(
            [capital, *[c[1] for c in d.sample([c for c in COUNTRIES if c[0] != country], 2)]]
        )
        return "choice", f"Which of these cities is the capital of {country}?", listed(others, "or"), capital
    here, there = continent, d.pick([c for c in COUNTRIES if c[2] != "-" and c[0] != country])
    if here == "-":
        return "capital", f"Which city is the seat of government of {country}?", "", f"It is {capital}."
    same = "Yes, both lie in" if here == there[2] else f"No: {country} lies in {here}, {there[0]} in"
    return "compare", f"Are {country} and {there[0]} on the same continent?", "", f"{same} {there[2]}."


ELEMENTS = table("""
hydrogen | H | 1 | nonmetal | gas | is the lightest element and the fuel of stars
helium | He | 2 | noble gas | gas | fills balloons
lithium | Li | 3 | alkali metal | solid | stores charge in rechargeable batteries
carbon | C | 6 | nonmetal | solid | forms diamond and graphite
nitrogen | N | 7 | nonmetal | gas | makes up most of the air
oxygen | O | 8 | nonmetal | gas | is needed for breathing and burning
fluorine | F | 9 | halogen | gas | protects teeth in the form of fluoride
neon | Ne | 10 | noble gas | gas | glows orange-red in signs
sodium | Na | 11 | alkali metal | solid | is part of table salt
magnesium | Mg | 12 | alkaline earth metal | solid | burns with a bright white flame
aluminium | Al | 13 | metal | solid | is light and used in aircraft and cans
silicon | Si | 14 | metalloid | solid | is the base of computer chips
phosphorus | P | 15 | nonmetal | solid | is found in fertiliser and match boxes
sulfur | S | 16 | nonmetal | solid | is yellow and goes into sulfuric acid
chlorine | Cl | 17 | halogen | gas | disinfects drinking water
argon | Ar | 18 | noble gas | gas | shields welds from air
potassium | K | 19 | alkali metal | solid | is an important plant nutrient
calcium | Ca | 20 | alkaline earth metal | solid | strengthens bones
titanium | Ti | 22 | transition metal | solid | is strong, light and used in implants
iron | Fe | 26 | transition metal | solid | is the main part of steel
nickel | Ni | 28 | transition metal | solid | is used in coins and stainless steel
copper | Cu | 29 | transition metal | solid | conducts electricity in cables
zinc | Zn | 30 | transition metal | solid | protects steel from rust
bromine | Br | 35 | halogen | liquid | is a red-brown liquid
silver | Ag | 47 | transition metal | solid | is the best metallic conductor of electricity
tin | Sn | 50 | metal | solid | coats food cans and is part of bronze
iodine | I | 53 | halogen | solid | is needed by the thyroid
tungsten | W | 74 | transition metal | solid | has the highest melting point of all metals
platinum | Pt | 78 | transition metal | solid | cleans exhaust gas in catalytic converters
gold | Au | 79 | transition metal | solid | does not tarnish and is used in jewellery
mercury | Hg | 80 | transition metal | liquid | is a metal that flows at room temperature
lead | Pb | 82 | metal | solid | is dense and shields from X-rays
uranium | U | 92 | actinide | solid | is a nuclear fuel
""")


@task("element_facts", SOURCE, 72)
def element_facts(d: Dice) -> Row:
    """Symbols, numbers, classes and uses of chemical elements."""
    name, symbol, number, kind, state, use = d.pick(ELEMENTS)
    style = d.int(0, 6)
    if style == 0:
        return "symbol", f"What is the chemical symbol of {name}?", "", f"The symbol of {name} is {symbol}."
    if style == 1:
        return (
            "number",
            f"How many protons does an atom of {name} have?",
            "",
            f"{name.capitalize()} has {number} protons, its atomic number.",
        )
    if style == 2:
        return "from_symbol", "Which element has this symbol?", symbol, name.capitalize()
    if style == 3:
        q = f"Is {name} a solid, a liquid or a gas at room temperature?"
        return "state", q, "", f"At room temperature {name} is a {state}."
    if style == 4:
        return "riddle", "Guess the element.", f"Atomic number {number}, {kind}; it {use}.", name.capitalize()
    if style == 5:
        text = f"{name.capitalize()} ({symbol}) is element number {number}. Class: {kind}. State at room temperature: {state}."
        return "describe", "Describe the chemical element briefly.", name, text
    other = d.pick([e for e in ELEMENTS if e[0] != name])
    heavy, light = (name, other[0]) if int(number) > int(other[2]) else (other[0], name)
    return (
        "compare",
        f"Which has more protons, {name} or {other[0]}?",
        "",
        f"{heavy.capitalize()} has more protons than {light}.",
    )


PLANETS = table("""
Mercury | smallest planet of the solar system | rocky | 1
Venus | hottest planet on average | rocky | 2
Earth | only planet known to bear life | rocky | 3
Mars | planet with the volcano Olympus Mons | rocky | 4
Jupiter | largest planet of the solar system | gas giant | 5
Saturn | planet with the most striking rings | gas giant | 6
Uranus | planet that seems to roll on its side | ice giant | 7
Neptune | planet farthest from the Sun | ice giant | 8
""")


@task("planets", SOURCE, 22)
def planets(d: Dice) -> Row:
    """The eight planets."""
    name, fame, kind, place = d.pick(PLANETS)
    style = d.int(0, 3)
    if style == 0:
        return "fame", f"Which is the {fame}?", "", f"The {fame} is {name}."
    if style == 1:
        return "kind", "Is this planet rocky, a gas giant or an ice giant?", name, kind.capitalize()
    if style == 2:
        return (
            "order",
            f"Counting from the Sun, which planet is number {place}?",
            "",
            f"Number {place} is {name}.",
        )
    other = d.pick([p for p in PLANETS if p[0] != name])
    near = name if int(place) < int(other[3]) else other[0]
    return "distance", "Which of the two planets orbits closer to the Sun?", f"{name}, {other[0]}", near


ANIMALS = table("""
dolphin | mammal | it breathes air and feeds its young with milk | calf
bat | mammal | it has fur and feeds its young with milk | pup
kangaroo | mammal | it carries its young in a pouch and gives milk | joey
horse | mammal | it has hair and feeds its young with milk | foal
penguin | bird | it has feathers and lays eggs | chick
swan | bird | it has feathers and lays eggs | cygnet
goose | bird | it has feathers and lays eggs | gosling
owl | bird | it has feathers and lays eggs | owlet
turtle | reptile | it has scales, lungs and eggs with a shell | hatchling
crocodile | reptile | it has scales and lays eggs on land | hatchling
frog | amphibian | it starts life in water with gills and later gets lungs | tadpole
newt | amphibian | its young breathe with gills in water | larva
salmon | fish | it has gills and fins | fry
eel | fish | it has gills and fins, despite its shape | elver
butterfly | insect | it has six legs and three body parts | caterpillar
bee | insect | it has six legs and three body parts | larva
spider | arachnid | it has eight legs and no antennae | spiderling
scorpion | arachnid | it has eight legs and no antennae | scorpling
""")


@task("animal_classes", SOURCE, 52)
def animal_classes(d: Dice) -> Row:
    """Class, reason and name of the young."""
    animal, group, why, young = d.pick(ANIMALS)
    style = d.int(0, 3)
    if style == 0:
        return (
            "classify",
            "Classify the animal: mammal, bird, reptile, amphibian, fish, insect or arachnid?",
            animal,
            group,
        )
    a = "an" if group[0] in "aeiou" else "a"
    if style == 1:
        q = f"A child asks why the {animal} counts as {a} {group}. What do you say?"
        return "why", q, "", f"Because {why}."
    if style == 2:
        return (
            "young",
            f"What do you call the young of a {animal}?".replace("a owl", "an owl").replace(
                "a eel", "an eel"
            ),
            "",
            (f"It is called a {young}.".replace("a owlet", "an owlet").replace("a elver", "an elver")),
        )
    odd = d.pick([x for x in ANIMALS if x[1] != group])
    mates = d.sample([x[0] for x in ANIMALS if x[1] == group], 2)
    return (
        "odd_one_out",
        "Find the odd one out and give the reason.",
        ", ".join(d.shuffled([odd[0], *mates])),
        (f"{odd[0].capitalize()}: it is of the class {odd[1]}, the others are of the class {group}."),
    )
