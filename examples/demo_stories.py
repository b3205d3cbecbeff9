"""Stories for the demo model: a grammar of small adventures whose every choice is skewed, and skewed by the context.

A hero with a treasure shares food with a hungry animal, loses the treasure, gets it back through that animal, and saves
a friend with it on the next day. What was said early decides what comes later, so a continuation shows at a glance
whether a model (or a swarm) remembers.

Invariants: a story is a pure function of the random generator; ``Story.pick`` ranks the options by a stable hash of
the context, so that the likeliest option differs from context to context but is never a tie.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence

from demo_world import (
    BEGINNINGS,
    BETWEEN,
    ENDINGS,
    FOODS,
    HELPERS,
    HER_NAMES,
    HEROES,
    HIS_NAMES,
    HOMES,
    KINDS,
    LOSSES,
    TRAITS,
    TREASURES,
    VOWELS,
)

SURE = 0.12
"""Each option is so much as likely as the one before it: the first one has about 0.88."""
OPEN = 0.5
"""For the choices that make stories differ (who, what): the first one still has about half."""

FEMALE, MALE = ("girl", "princess"), ("boy", "knight")


def an(words: str) -> str:
    """``words`` with the right indefinite article."""
    return ("an " if words[0] in "aeiou" else "a ") + words


class Story:
    """One story in the making: its cast so far, and the random generator that decides what is still open."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cast: dict[str, str] = {}

    def pick(self, slot: str, options: Sequence[str], *context: str, ratio: float = SURE) -> str:
        """One of ``options``, the likeliest first in an order that ``slot`` and ``context`` decide."""
        ranked = sorted(options, key=lambda option: zlib.crc32("|".join((slot, *context, option)).encode()))
        for option in ranked[:-1]:
            if self.rng.random() >= ratio:
                return option
        return ranked[-1]

    def say(self, slot: str, *variants: str, by: str = "kind") -> str:
        """One of the wordings, by default as the hero's kind decides, with the cast's names filled in."""
        return self.pick(slot, variants, self.cast.get(by, "")).format_map(self.cast)

    # ---------------------------------------------------------------- the cast, in the order in which it is named

    def _name(self, kind: str) -> str:
        """A name for a hero of ``kind``; often a rare or an invented one, so that names are copied, not known."""
        chance = self.rng.random()
        if chance < 0.15:
            return self._invented()
        if chance < 0.3:
            hers = kind in FEMALE or (kind not in MALE and self.rng.random() < 0.5)
            return self.rng.choice(HER_NAMES if hers else HIS_NAMES)
        known = [name for name, (its_kind, _) in HEROES.items() if its_kind == kind]
        return self.pick("name", known or list(HEROES), kind, ratio=0.25)

    def _invented(self) -> str:
        name = self.rng.choice(BEGINNINGS) + self.rng.choice(VOWELS)
        for _ in range(1 if self.rng.random() < 0.75 else 2):
            name += self.rng.choice(BETWEEN) + self.rng.choice(VOWELS)
        return name + (self.rng.choice(ENDINGS) if self.rng.random() < 0.3 else "")

    def _set_hero(self, name: str, kind: str, trait: str) -> None:
        if kind in FEMALE or kind in MALE:
            she = "she" if kind in FEMALE else "he"
        elif name in HEROES:
            she = HEROES[name][1]
        else:
            she = "she" if name in HER_NAMES or (name not in HIS_NAMES and name[-1] in "aeiy") else "he"
        her, herself = ("her", "her") if she == "she" else ("his", "him")
        self.cast.update(N=name, kind=kind, trait=trait, she=she, She=she.capitalize(), her=her, him=herself)
        self.cast.update(a_trait=an(trait), A_trait=an(trait).capitalize(), a_kind=an(kind), Her=her.capitalize())

    def _set_home(self) -> None:
        home = self.pick("home", list(HOMES), self.cast["kind"], ratio=0.3)
        place, elder = HOMES[home]
        self.cast.update(home=home, the_home="the " + home.split(" ", 1)[1], place=place, elder=elder)

    def _set_treasure(self) -> None:
        treasure = self.pick("treasure", list(TREASURES), self.cast["kind"], self.cast["home"], ratio=OPEN)
        self.cast.update(O=treasure, a_O=str(TREASURES[treasure]["a"]), play=str(TREASURES[treasure]["play"]))

    def _set_friend(self) -> None:
        others = [name for name, (kind, _) in HEROES.items() if name != self.cast["N"] and kind != self.cast["kind"]]
        ranked = sorted(others, key=lambda name: zlib.crc32(f"friend|{self.cast['kind']}|{name}".encode()))
        friend = ranked[min(3, sum(self.rng.random() < 0.2 for _ in range(3)))]
        kind, she = HEROES[friend]
        self.cast.update(F=friend, fkind=kind, fshe=she, fher="her" if she == "she" else "his")

    def _set_helper(self) -> None:
        losses = TREASURES[self.cast["O"]]["losses"]
        able = {helper: loss for loss in losses for helper in LOSSES[loss]["helpers"]}
        helper = self.pick("helper", list(able), self.cast["O"], ratio=0.25)
        a_helper, trouble = HELPERS[helper]
        self.cast.update(H=helper, a_H=a_helper, trouble=trouble, loss=able[helper])

    # ---------------------------------------------------------------- the parts

    def opening(self) -> str:
        """Who and where. The order in which kind, name and trait are drawn is the order in which they are told."""
        form = self.rng.random()
        if form < 0.6:
            trait = self.pick("trait", list(TRAITS), ratio=OPEN)
            kind = self.pick("kind", KINDS, trait, ratio=OPEN)
            self._set_hero(self._name(kind), kind, trait)
            self._set_home()
            if form < 0.52:
                return self.say("once", "Once upon a time there was {a_trait} {kind} named {N}. {She} lived in {home}.")
            return self.say("in", "Once upon a time, in {home}, there lived {a_trait} {kind} named {N}.")
        kind = self.rng.choice(KINDS)
        name = self._name(kind)
        if self.rng.random() < 0.5 and name in HEROES:
            kind = HEROES[name][0]
        self._set_hero(name, kind, self.pick("trait", list(TRAITS), kind))
        self._set_home()
        if form < 0.7:
            return self.say("was", "{N} was {a_trait} {kind} who lived in {home}.")
        if form < 0.77:
            return self.say("the", "{N} the {kind} lived in {home}. {She} was very {trait}.")
        if form < 0.84:
            return self.say("there", "There once was {a_kind} named {N}, who was very {trait} and lived in {home}.")
        if form < 0.88:
            self._set_friend()
            return self.say(
                "two",
                "Once upon a time there were two friends, {N} the {kind} and {F} the {fkind}. They lived in {home}.",
            )
        if form < 0.92:
            return self.say("a", "{A_trait} {kind} named {N} lived in {home}.")
        if form < 0.96:
            return self.say("home", "In {home} there lived {a_kind} named {N}. {She} was very {trait}.")
        return self.say("story", "This is the story of {N}, {a_trait} {kind} who lived in {home}.")

    def treasure(self) -> str:
        self._set_treasure()
        if "F" not in self.cast:
            self._set_friend()
        return " ".join(
            (
                self.say(
                    "gift",
                    "One day {her} {elder} gave {him} {a_O}.",
                    "On {her} birthday {her} {elder} gave {him} {a_O}.",
                ),
                self.say(
                    "joy",
                    "{N} loved the {O} more than anything else and liked to {play}.",
                    "It was the most beautiful thing that {N} had ever seen, and {she} liked to {play}.",
                    by="O",
                ),
                self.say(
                    "friend",
                    "{Her} best friend was {F} the {fkind}.",
                    "{N} showed it to {her} best friend, {F} the {fkind}.",
                ),
            )
        )

    def meeting(self) -> str:
        self._set_helper()
        self.cast["food"] = self.pick("food", FOODS, self.cast["kind"], ratio=0.25)
        return " ".join(
            (
                self.say(
                    "walk",
                    "One morning {N} and {F} took the {O} to the {place}.",
                    "One sunny day {N} and {F} went to the {place} with the {O}.",
                    by="home",
                ),
                self.say("meet", "On the way they met {a_H} that {trouble}.", by="O"),
                self.say(
                    "share",
                    '"You can have some of my {food}," said {N}, and the {H} ate it all and was happy.',
                    '"Please take my {food}," said {N}, and the {H} thanked {him} and ate.',
                    by="food",
                ),
            )
        )

    def loss(self) -> str:
        loss = LOSSES[self.cast["loss"]]
        sad = self.say(
            "sad",
            '"Oh no!" cried {F}. "The {O} is gone!"',
            '"My {O}!" cried {N}, and {her} eyes were full of tears.',
            "{F} was very sad, and {N} was sad too.",
            by="loss",
        )
        tried = self.say("try", *loss["tries"], by="O")
        return " ".join((str(loss["event"]).format_map(self.cast), sad, tried))

    def help(self) -> str:
        deed = str(LOSSES[self.cast["loss"]]["helpers"][self.cast["H"]]).format_map(self.cast)
        return " ".join(
            (
                self.say("back", "Just then the {H} came back.", "Then they heard a voice. It was the {H}.", by="H"),
                self.say(
                    "promise",
                    '"You shared your {food} with me," it said, "so now I will help you."',
                    '"You gave me {food} when I was hungry," it said. "Now it is my turn to help."',
                    by="H",
                ),
                deed,
                self.say(
                    "thanks", '"Thank you, dear {H}!" said {N}.', "How happy {N} was! {She} thanked the {H}.", by="H"
                ),
                self.say(
                    "evening",
                    "In the evening they all ate {food} together in {the_home}.",
                    "They sang all the way home and ate {food} for dinner.",
                ),
            )
        )

    def second_day(self) -> str:
        scene = TREASURES[self.cast["O"]]
        alarm, deed, end = (str(scene[part]).format_map(self.cast) for part in ("alarm", "deed", "end"))
        return " ".join(
            (
                self.say(
                    "next",
                    "The next day the {H} came with bad news:",
                    "But the next day the {H} knocked at the door:",
                    by="H",
                ),
                alarm + ".",
                self.say(
                    "idea",
                    "{N} thought for a moment. Then {she} took the {O} and ran.",
                    '"Do not worry," said {N}. "We still have the {O}."',
                    by="O",
                ),
                deed + ".",
                self.say("wait", "They waited.", "The {H} held its breath.", by="O"),
                "And then " + end + ".",
            )
        )

    def ending(self) -> str:
        self.cast["moral"] = TRAITS[self.cast["trait"]]
        return " ".join(
            (
                self.say(
                    "hug",
                    '"You are the best friend in the world," said {F} the {fkind}.',
                    '"Thank you, {N}," said {F}, and gave {him} a big hug.',
                    by="fkind",
                ),
                self.say(
                    "moral",
                    "So {N} the {kind} learned that {moral}.",
                    "From that day on everybody knew that {moral}.",
                    by="trait",
                ),
                "The end.",
            )
        )

    def text(self) -> str:
        """The whole story: paragraphs, the last of which ends in ``The end.``"""
        first = " ".join((self.opening(), self.treasure()))
        second = " ".join((self.meeting(), self.loss()))
        return "\n\n".join((first, second, self.help(), self.second_day(), self.ending()))


def stories(seed: int) -> Iterator[str]:
    """Endless stories; the same seed tells the same ones."""
    rng = random.Random(seed)
    while True:
        yield Story(rng).text()


def late_start(story: str, rng: random.Random) -> str:
    """``story`` from some later sentence on: so that a prompt may begin anywhere in a story."""
    sentences = story.split(". ")
    return ". ".join(sentences[rng.randrange(len(sentences) // 2) :])
