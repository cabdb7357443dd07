"""Sentences over a closed vocabulary, made from templates: the demo voice's training data, and held-out ones to judge.

The voice cannot pronounce words outside `VOCABULARY` reliably.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

SLOTS: dict[str, str] = {
    "digit": "one two three four five six seven eight nine",
    "teen": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    "minute": "five ten fifteen twenty twenty-five thirty forty forty-five fifty",
    "order": "first second third fourth fifth sixth seventh eighth ninth tenth last next",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
    "when": "today tomorrow tonight now later soon again",
    "part": "morning afternoon evening night",
    "season": "spring summer autumn winter",
    "name": "Anna Peter Mary John David Sarah Emma Thomas Laura Daniel Maria Robert Alice James Helen Paul Julia Henry",
    "city": "London Paris Boston Berlin Rome Madrid Vienna Tokyo Chicago Dublin Oslo Cairo Denver Sydney Toronto",
    "title": "Mister Doctor Professor Captain",
    "person": (
        "man woman child boy girl teacher doctor driver farmer nurse student friend neighbor brother sister mother "
        "father writer singer painter cook pilot sailor manager lawyer"
    ),
    "people": "people children friends students parents teachers neighbors guests workers women men",
    "animal": "dog cat horse bird fish cow sheep rabbit mouse lion bear",
    "food": (
        "bread cheese soup rice salad cake fruit butter honey sugar salt pepper chicken pasta pizza chocolate meat corn"
    ),
    "drink": "water tea coffee milk juice wine beer lemonade",
    "thing": (
        "book letter table chair lamp window door phone clock picture map ticket key bag box bottle cup plate knife "
        "pencil camera radio computer bicycle ball coat hat shirt umbrella basket mirror blanket suitcase newspaper"
    ),
    "things": (
        "books letters tables chairs windows doors phones pictures maps tickets keys bags boxes bottles cups plates "
        "flowers shoes apples oranges stones trees stars questions answers messages songs stories"
    ),
    "place": (
        "station airport hospital museum library school office hotel restaurant market bridge garden park kitchen "
        "church theater bank harbor village river beach forest lake mountain island farm factory square tower city"
    ),
    "room": "kitchen garden office bedroom hall living-room basement attic",
    "vehicle": "train bus car boat ship plane taxi truck",
    "adj": (
        "small large old new young beautiful quiet noisy warm cold dark bright heavy light long short round wide "
        "narrow empty full clean dirty soft hard simple strange famous modern wooden expensive cheap pretty "
        "lovely broken"
    ),
    "color": "red blue green yellow white black brown orange purple gray golden silver",
    "feeling": "happy sad tired hungry thirsty angry afraid busy ready late early sick sorry glad sure surprised calm",
    "weather": "sunny cloudy rainy windy foggy stormy cold warm hot cool dry wet",
    "sky": "rain snow wind sunshine fog thunder",
    "adverb": "slowly quickly quietly carefully often always never sometimes usually suddenly gently really",
    "went": "walked ran drove traveled returned moved hurried",
    "did": "opened closed bought sold found lost carried painted cleaned painted broke fixed sent brought borrowed",
    "do": "open close buy sell find carry paint clean break fix send bring borrow move",
    "saw": "saw heard watched met helped visited called followed remembered thanked invited",
    "like": "like love want need prefer enjoy",
    "likes": "likes loves wants needs prefers enjoys",
    "say": "said thought believed knew hoped heard",
    "work": "work study live wait sleep play travel cook read write swim dance sing walk run talk listen",
    "where": "here there outside inside upstairs downstairs at_home at_school at_work",
    "subject": "mathematics history music science English French German Spanish geography art",
    "device": "server computer phone speaker radio camera machine screen",
    "topic": "weather price time answer result problem message music voice question story number address plan",
    "pronoun": "I you we they",
    "one": "he she",
    "poss": "my your his her our their",
}

_NUMBER = "{digit}|{teen}|{tens}|{tens} {digit}"
SLOTS_OF: dict[str, str] = {
    "number": _NUMBER,
    "hour": "{digit}|ten|eleven|twelve",
    "clock": "{hour} o'clock|{hour} {minute}|half past {hour}|a quarter past {hour}|a quarter to {hour}|noon|midnight",
    "price": "{number} dollars|{number} euros|{digit} hundred dollars|{digit} thousand euros|{number} cents",
    "date": "the {order} of {month}|{month} {teen}|{month} {digit}|{day} the {order}",
    "noun": (
        "the {adj} {thing}|a {adj} {thing}|the {thing}|{poss} {thing}|the {color} {thing}|this {thing}|that {thing}"
    ),
    "who": "the {person}|{name}|{poss} {person}|{title} {name}|the {adj} {person}",
    "many": "{number} {things}|many {things}|some {things}|a few {things}|all the {things}|no {things}",
    "at": "in the {place}|at the {place}|near the {place}|in {city}|behind the {place}|in front of the {place}",
}
"""Slots composed of other slots; bars separate the choices."""

TEMPLATES: tuple[str, ...] = (
    "Hello.",
    "Good {part}, {name}.",
    "Hello, {name}, how are you {when}?",
    "Good {part}, and welcome to {city}.",
    "Hello, my name is {name}.",
    "Welcome, {title} {name}.",
    "Thank you very much, {name}.",
    "You are welcome.",
    "Goodbye, see you {when}.",
    "See you on {day}.",
    "Nice to meet you, {title} {name}.",
    "Yes, please.",
    "No, thank you.",
    "Yes, that is right.",
    "No, that is wrong.",
    "I am sorry, I did not hear you.",
    "Excuse me, where is the {place}?",
    "How can I help you {when}?",
    "What can I do for you?",
    "Please wait a moment.",
    "One moment, please.",
    "Can you say that again, please?",
    "Please speak more {adverb}.",
    "The number is {digit} {digit} {digit} {digit}.",
    "Please call {digit} {digit} {digit}, {digit} {digit} {digit} {digit}.",
    "The {vehicle} to {city} leaves at {clock}.",
    "The next {vehicle} to {city} leaves in {number} minutes.",
    "The {vehicle} from {city} arrives at {clock}.",
    "The {vehicle} is {number} minutes late.",
    "It is {clock}.",
    "It is {clock} in the {part}.",
    "The time is now {clock}.",
    "Your appointment is on {day} at {clock}.",
    "Your appointment with {title} {name} is on {date}.",
    "The meeting starts at {clock} and ends at {clock}.",
    "The {place} opens at {clock} and closes at {clock}.",
    "The {place} is closed on {day}.",
    "We will meet again on {day}.",
    "We meet at {clock} {at}.",
    "I will call you back at {clock}.",
    "I will call you {when}.",
    "{name} will call you on {day} {part}.",
    "Please turn left at the {place}.",
    "Turn right after the {place}, then go straight.",
    "Go straight for {number} meters, then turn left.",
    "The {place} is on the left side.",
    "The {place} is about {number} kilometers from here.",
    "It takes {number} minutes to the {place}.",
    "The weather in {city} is {weather} {when}.",
    "The weather is {weather} and {weather}.",
    "It will be {weather} in {city} on {day}.",
    "Tomorrow will be {weather} with some {sky}.",
    "There will be {sky} in the {part}.",
    "The temperature is {number} degrees.",
    "It is {weather} {when}, about {number} degrees.",
    "In {season}, it is often {weather} in {city}.",
    "The {adj} {place} is {weather} in {month}.",
    "A {thing} costs {price}.",
    "The {adj} {thing} costs {price}.",
    "That will be {price}, please.",
    "The price of the {thing} is {price}.",
    "I would like {number} {things}, please.",
    "I would like some {food} and a cup of {drink}.",
    "Would you like {drink} or {drink}?",
    "Can I have a glass of {drink}, please?",
    "We have {food}, {food} and {food}.",
    "There is no {food} in the {room}.",
    "{name} {likes} {food} with {food}.",
    "My {person} {likes} {drink} in the {part}.",
    "Please bring {many} and a bottle of {drink}.",
    "{who} {did} {noun}.",
    "{who} {did} {noun} on {day}.",
    "{who} {adverb} {did} {noun}.",
    "{who} {did} {many} {at}.",
    "{who} {saw} {who} {at}.",
    "{who} {saw} {who} on {day} {part}.",
    "{who} {went} to the {place}.",
    "{who} {went} {adverb} to the {adj} {place}.",
    "{one} {went} to {city} with {poss} {person}.",
    "The {person} {went} from {city} to {city} by {vehicle}.",
    "{who} {say} that the {thing} was {adj}.",
    "{who} {say} that {pronoun} were {feeling}.",
    "{pronoun} are {feeling} and {feeling}.",
    "{pronoun} are very {feeling} {when}.",
    "{who} is {feeling} because the {thing} is {adj}.",
    "{who} was {feeling} but {name} was {feeling}.",
    "{pronoun} {like} to {work} in the {part}.",
    "{pronoun} {like} {noun} very much.",
    "{pronoun} will {do} {noun} {when}.",
    "{pronoun} can {do} {noun} in the {room}.",
    "{pronoun} must not {do} {noun}.",
    "{pronoun} have {many} in the {room}.",
    "There are {many} in the {room}.",
    "There are {many} on the table.",
    "There is a {adj} {thing} under the {thing}.",
    "The {thing} is on the {thing}, next to the {thing}.",
    "The {adj} {animal} sleeps under the {thing}.",
    "The {animal} and the {animal} live on the {place}.",
    "A {color} {animal} ran over the {adj} {place}.",
    "{name} has a {color} {animal} and {number} {things}.",
    "The {things} are {color} and {color}.",
    "The {color} {thing} is {adj}, but the {color} one is {adj}.",
    "Do you {like} {food} or {food}?",
    "Do you want to {work} {at}?",
    "Where is {noun}?",
    "Where are {poss} {things}?",
    "When does the {vehicle} leave?",
    "When will {who} be {where}?",
    "Why is {who} so {feeling}?",
    "Who {did} {noun}?",
    "What is the {topic}?",
    "How many {things} do you {like}?",
    "How much is the {adj} {thing}?",
    "Can you {do} {noun}, please?",
    "Could you {do} {noun} for me?",
    "Please {do} {noun}.",
    "Please {do} {noun} and {do} {noun}.",
    "Do not {do} {noun}.",
    "Let us {work} {at} {when}.",
    "The {people} {work} {at}.",
    "Many {people} {work} in {city}.",
    "Some {people} {like} {food}, others {like} {food}.",
    "{number} {people} were waiting {at}.",
    "{who} is waiting {where}.",
    "{who} is reading a {thing} in the {room}.",
    "{who} is a {person} and lives in {city}.",
    "{name} and {name} study {subject} in {city}.",
    "{name} is good at {subject}, but not at {subject}.",
    "{one} teaches {subject} at the {adj} school.",
    "{who} was born on {date}.",
    "{who} will be {number} years old in {month}.",
    "In {month}, {name} {went} to {city}.",
    "On {day}, {who} {saw} {who}.",
    "The {order} {thing} is {color}.",
    "This is the {order} {topic}.",
    "Here is the {topic} for {when}.",
    "The {topic} is {adj}.",
    "I do not know the {topic}.",
    "The {device} is ready.",
    "The {device} speaks {adverb}.",
    "This voice speaks at once, to many people.",
    "The voice is clear and the {device} is {adj}.",
    "The {device} starts in {number} seconds.",
    "You can hear me {when}.",
    "You have {number} new messages.",
    "You have a new message from {name}.",
    "The message from {name} is {number} minutes old.",
    "Please leave a message after the {order} {part}.",
    "If it is {weather} {when}, {pronoun} will {work} {where}.",
    "When the {sky} came, {who} {did} the {thing}.",
    "After the {sky}, the {place} was {adj} and {adj}.",
    "The small boat crossed the quiet lake.",
    "She opened the window and listened to the {sky}.",
    "The {adj} {place} {at} is {adj}.",
    "Everything is {adj} {when}.",
    "Nothing is {adj} {at}.",
    "{number} and {number} make {number}.",
    "From {digit} to {digit} there are {digit} numbers.",
    "Today is {day}, {date}.",
    "My birthday is on {date}.",
)

_SLOT = re.compile(r"\{(\w+)\}")
STRINGS = 0.12  # share of sentences that are random words, so that words are learnt in any position
LOWER = 0.25  # share without capitals


def _fill(template: str, rng: random.Random) -> str:
    def choose(slot: re.Match[str]) -> str:
        name = slot[1]
        if name in SLOTS_OF:
            return _fill(rng.choice(SLOTS_OF[name].split("|")), rng)
        return rng.choice(SLOTS[name].split()).replace("_", " ")

    return _SLOT.sub(choose, template)


def _plain_words() -> list[str]:
    text = " ".join([*SLOTS.values(), *SLOTS_OF.values(), *TEMPLATES])
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", _SLOT.sub(" ", text).replace("_", " "))
    return sorted(set(words), key=lambda word: (word.lower(), word))


WORDS = _plain_words()
"""Every word, in the templates' spelling."""

VOCABULARY = frozenset(word.lower() for word in WORDS)
"""Lower-case words on which the voice is trained."""


def _string(rng: random.Random) -> str:
    words = [rng.choice(WORDS).lower() for _ in range(rng.randint(2, 7))]
    return " ".join(words).capitalize() + rng.choice(".. ?")


def sentences(seed: int) -> Iterator[str]:
    """Yield sentences without end or repetition; the first ones use each template once."""
    rng = random.Random(seed)
    seen: set[str] = set()
    templates = list(TEMPLATES)
    while True:
        if templates:
            text = _fill(templates.pop(), rng)
        else:
            text = _string(rng) if rng.random() < STRINGS else _fill(rng.choice(TEMPLATES), rng)
        text = text.strip()
        text = text[0].upper() + text[1:]
        if rng.random() < LOWER:
            text = text.lower()
        if text not in seen:
            seen.add(text)
            yield text


def words(text: str) -> list[str]:
    """Split a text into lower-case words, also at hyphens."""
    return re.findall(r"[a-z']+", text.lower())


SEED = 0
TAUGHT = 12_000
"""Number of sentences of `SEED` in the training data."""


def held_out(count: int, trained: int = TAUGHT, seed: int = SEED) -> list[str]:
    """Return sentences that are not among the first `trained` ones of `seed`."""
    taught = {text.lower() for text, _ in zip(sentences(seed), range(trained), strict=False)}
    rng = random.Random(seed + 1)
    found: list[str] = []
    while len(found) < count:
        text = _fill(rng.choice(TEMPLATES), rng)
        text = text[0].upper() + text[1:]
        if text.lower() not in taught and text not in found and len(words(text)) >= 4:
            found.append(text)
    return found
