"""The small world of the demo model's stories: who lives there, what they own, what goes wrong and who helps.

Invariants: tables only, no code; every placeholder is one that ``demo_stories.Story`` fills. Everybody and everything
has one fixed companion fact (a name its kind, a helper its trouble, a loss its place), so that a reader who remembers
the beginning of a story can foretell the rest, and so can a small model.
"""

from __future__ import annotations

HEROES: dict[str, tuple[str, str]] = {
    "Mia": ("girl", "she"),
    "Leo": ("boy", "he"),
    "Ruby": ("fox", "she"),
    "Oscar": ("bear", "he"),
    "Daisy": ("rabbit", "she"),
    "Pip": ("mouse", "he"),
    "Luna": ("cat", "she"),
    "Max": ("dog", "he"),
    "Ember": ("dragon", "she"),
    "Bolt": ("robot", "he"),
    "Hazel": ("squirrel", "she"),
    "Hugo": ("hedgehog", "he"),
    "Anna": ("girl", "she"),
    "Tom": ("boy", "he"),
    "Finn": ("fox", "he"),
    "Rosie": ("rabbit", "she"),
    "Bruno": ("bear", "he"),
    "Lily": ("girl", "she"),
    "Sam": ("boy", "he"),
    "Willow": ("pony", "she"),
    "Felix": ("frog", "he"),
    "Greta": ("goose", "she"),
    "Nora": ("princess", "she"),
    "Arthur": ("knight", "he"),
}

HER_NAMES = (
    "Emma", "Olivia", "Sophia", "Alice", "Clara", "Ella", "Eva", "Ida", "Julia", "Laura", "Maria", "Martha",
    "Molly", "Sarah", "Sofia", "Zoe", "Amy", "Grace", "Lucy", "Jane", "Chloe", "Elena", "Irina", "Olga", "Natasha",
    "Katya", "Anya", "Svetlana", "Marina", "Xenia", "Daria", "Priya", "Anjali", "Lakshmi", "Meera", "Aisha",
    "Fatima", "Layla", "Leila", "Yasmin", "Zahra", "Amina", "Nadia", "Mei", "Yuki", "Sakura", "Hana", "Aiko",
    "Naomi", "Linh", "Mai", "Jin", "Sora", "Ingrid", "Astrid", "Freya", "Greta", "Heidi", "Elsa", "Frida", "Paula",
    "Carmen", "Lucia", "Isabel", "Camila", "Valentina", "Gabriela", "Ana", "Rosa", "Pilar", "Ines", "Chiara",
    "Giulia", "Francesca", "Bianca", "Camille", "Amelie", "Manon", "Juliette", "Claire", "Nicole", "Sylvie",
    "Agnes", "Hannah", "Rachel", "Rebecca", "Miriam", "Esther", "Ruth", "Abigail", "Emily", "Charlotte", "Victoria",
    "Elizabeth", "Kate", "Helen", "Susan", "Linda", "Mary", "Anne", "Rose", "Violet", "Ivy", "Stella", "Nina",
    "Tanya", "Vera", "Polina", "Alexandra", "Michelle", "Jessica", "Jennifer", "Ashley", "Megan", "Bella", "Mila",
    "Lena", "Lara", "Maya", "Nala", "Zuri", "Imani", "Amara", "Ada", "Edith", "Dora",
)  # fmt: skip

HIS_NAMES = (
    "Jack", "Peter", "Paul", "Henry", "Oliver", "Noah", "Lucas", "Adam", "Alex", "David", "Daniel", "George",
    "James", "John", "Karl", "Otto", "Simon", "Theo", "Victor", "Will", "Ivan", "Dmitri", "Sergei", "Alexei",
    "Boris", "Igor", "Nikolai", "Pavel", "Oleg", "Yuri", "Misha", "Arjun", "Ravi", "Rahul", "Amit", "Sanjay",
    "Vikram", "Mohammed", "Ahmed", "Ali", "Omar", "Hassan", "Yusuf", "Karim", "Tariq", "Wei", "Chen", "Li", "Hiro",
    "Kenji", "Takeshi", "Ren", "Kai", "Minh", "Joon", "Lars", "Erik", "Sven", "Olaf", "Hans", "Fritz", "Emil",
    "Anton", "Jonas", "Carlos", "Diego", "Pablo", "Luis", "Miguel", "Jose", "Juan", "Pedro", "Antonio", "Marco",
    "Luca", "Matteo", "Giovanni", "Pierre", "Louis", "Jean", "Michel", "Andre", "Luc", "Hugues", "Marcel", "Isaac",
    "Jacob", "Samuel", "Benjamin", "Joseph", "Aaron", "Ethan", "Michael", "William", "Robert", "Richard", "Thomas",
    "Charles", "Edward", "Frank", "Mark", "Steve", "Mike", "Bob", "Bill", "Joe", "Nick", "Chris", "Matt", "Josh",
    "Ryan", "Kevin", "Brian", "Eric", "Scott", "Jason", "Justin", "Tyler", "Kofi", "Kwame", "Jabari", "Zuberi",
    "Tim", "Jim", "Rob", "Ted", "Ned", "Gus", "Ralph", "Walter", "Albert", "Arnold", "Felipe",
)  # fmt: skip

# Invented names: beginning, vowel, a sound between, vowel, an end. Nobody has seen them: they must be copied.
BEGINNINGS = (
    "B", "C", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "W", "Y", "Z", "X", "Br", "Ch",
    "Cl", "Cr", "Dr", "Fl", "Fr", "Gr", "Kr", "Pl", "Qu", "Sh", "Sk", "St", "Th", "Tr", "Zh",
)  # fmt: skip
VOWELS = ("a", "a", "e", "e", "i", "i", "o", "o", "u", "y", "ai", "ea", "ee", "ia", "io", "oo", "ou")
BETWEEN = (
    "b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "x", "z", "bb", "br", "ck", "dr", "ff", "ll", "lm",
    "mb", "nd", "ng", "nk", "nn", "rb", "rl", "rn", "rt", "ss", "st", "th", "tt", "xt", "zz",
)  # fmt: skip
ENDINGS = ("n", "r", "s", "l", "x", "k", "m", "d", "t", "th", "ck", "nd", "ng", "z")

KINDS = (
    "girl", "boy", "fox", "bear", "rabbit", "mouse", "cat", "dog", "dragon", "robot", "squirrel", "hedgehog",
    "pony", "frog", "goose", "princess", "knight", "owl", "wizard", "pirate", "farmer", "sailor",
)  # fmt: skip

TRAITS = {
    "curious": "a question can open any door",
    "kind": "a kind heart is never alone",
    "brave": "even small feet can walk a long road",
    "clever": "a good idea is stronger than a strong arm",
    "cheerful": "a happy song makes every road shorter",
    "patient": "good things come to those who wait",
    "gentle": "a soft voice can calm a storm",
}

HOMES = {
    "a little house by the sea": ("beach", "grandmother"),
    "a hollow tree in the forest": ("forest", "mother"),
    "a cottage on a green hill": ("meadow", "grandfather"),
    "a quiet village by the river": ("river bank", "father"),
    "an old farm behind the mill": ("orchard", "aunt"),
    "a tall tower near the mountains": ("mountain path", "uncle"),
    "a castle with a hundred windows": ("garden", "brother"),
}

FOODS = ("bread", "honey cake", "apples", "berries", "cheese", "nuts")

# Each helper: with its article, what it suffers when the hero meets it, how it thanks.
HELPERS = {
    "owl": ("an old owl", "was too tired to look for food"),
    "squirrel": ("a red squirrel", "had lost all of its winter food"),
    "otter": ("a young otter", "was hungry after a long swim"),
    "beaver": ("a busy beaver", "had worked all night without a meal"),
    "toad": ("a fat toad", "had not eaten for three days"),
    "spider": ("a tiny spider", "was too weak to weave its web"),
    "crow": ("a black crow", "had a sore wing and could not fly to its dinner"),
    "goat": ("a white goat", "had lost its field and found no grass to eat"),
    "bat": ("a small bat", "had slept through dinner"),
    "mole": ("a shy mole", "could not find anything to eat"),
    "hare": ("a grey hare", "was cold and hungry"),
    "wren": ("a little wren", "had given all its food to its children"),
}

# What happens to a treasure: where, how, what the hero tries in vain (two ways), which helper does what.
LOSSES = {
    "tree": {
        "event": "Then a strong wind came. It took the {O} and carried it to the top of a very tall tree.",
        "tries": (
            "{N} tried to climb the tree, but the branches were too thin.",
            "{N} threw sticks at the branch, but it was too high.",
        ),
        "helpers": {
            "owl": "The owl spread its wide wings, flew up to the top of the tree and came back with the {O}.",
            "squirrel": "The squirrel ran up the trunk, jumped from branch to branch and came down with the {O}.",
        },
    },
    "river": {
        "event": "Then {N} slipped on a wet stone. The {O} fell into the river, and the water carried it away.",
        "tries": (
            "{N} ran along the bank, but the river was too fast.",
            "{N} reached out with a long stick, but it was too short.",
        ),
        "helpers": {
            "otter": "The otter dived into the cold water, swam like an arrow and brought back the {O}.",
            "beaver": "The beaver built a small dam of sticks and mud, and soon the {O} floated back to the bank.",
        },
    },
    "well": {
        "event": "Then {N} leaned over the old well to look inside. The {O} fell down into the dark with a splash.",
        "tries": (
            "{N} reached down as far as {she} could, but the well was too deep.",
            "{N} let down a bucket, but it always came up empty.",
        ),
        "helpers": {
            "toad": "The toad jumped into the well, found the {O} under the water and sat with it in the bucket.",
            "spider": "The spider wove a long silver thread, let it down into the well and pulled up the {O}.",
        },
    },
    "magpie": {
        "event": "Then a magpie saw how pretty the {O} was. It took the {O} and flew to its nest on the high rock.",
        "tries": (
            "{N} called after the magpie, but the magpie only laughed.",
            "{N} tried to climb the rock, but it was too steep.",
        ),
        "helpers": {
            "crow": "The crow flew up to the nest, gave the magpie a shiny button and came back with the {O}.",
            "goat": "The goat climbed the steep rock, spoke a stern word to the magpie and brought back the {O}.",
        },
    },
    "cave": {
        "event": "Then {N} stumbled on the hill. The {O} rolled down, faster and faster, into a deep dark cave.",
        "tries": (
            "{N} went three steps into the cave, but it was too dark to see.",
            "{N} called into the cave, but only an echo came back.",
        ),
        "helpers": {
            "bat": "The bat was not afraid of the dark. It flew into the cave and came out with the {O}.",
            "mole": "The mole knew every tunnel under the hill. It went into the cave and pushed out the {O}.",
        },
    },
    "thorns": {
        "event": "Then a cold storm came from the north. It blew the {O} deep into a bush of sharp thorns.",
        "tries": (
            "{N} put a hand between the thorns, but they were too sharp.",
            "{N} shook the bush, but the thorns held on tight.",
        ),
        "helpers": {
            "hare": "The hare dug a little path under the thorns and pulled out the {O}.",
            "wren": "The wren slipped between the thorns, for it was so small, and pushed out the {O}.",
        },
    },
}

# Each treasure: with its article, what its owner does with it, what may happen to it, and how it saves the next day.
TREASURES = {
    "red kite": {
        "a": "a red kite",
        "play": "let it dance in the wind",
        "losses": ("tree", "thorns"),
        "alarm": "{F} had gone out in a small boat and was lost in the fog",
        "deed": "{N} ran to the top of the hill and let the {O} fly high above the fog",
        "end": "{F} saw the {O} in the sky and knew the way home",
    },
    "silver key": {
        "a": "a silver key",
        "play": "look for the door that it could open",
        "losses": ("well", "magpie"),
        "alarm": "{F} was locked in the old tower, and the door was too strong to break",
        "deed": "{N} put the {O} into the lock and turned it three times",
        "end": "the door opened, and {F} was free",
    },
    "wooden boat": {
        "a": "a wooden boat",
        "play": "let it sail on the water",
        "losses": ("river", "cave"),
        "alarm": "{F} was very ill, and the only doctor lived on the other side of the lake",
        "deed": "{N} put a letter into the {O} and let the wind blow it across the lake",
        "end": "the doctor read the letter, came at once and made {F} well again",
    },
    "blue lantern": {
        "a": "a blue lantern",
        "play": "watch its light on the wall",
        "losses": ("cave", "well"),
        "alarm": "{F} had not come home from the forest, and the night was as black as ink",
        "deed": "{N} lit the {O} and walked between the dark trees, step by step",
        "end": "{F} saw the blue light from far away and ran to meet it",
    },
    "golden bell": {
        "a": "a golden bell",
        "play": "listen to its clear sound",
        "losses": ("magpie", "river"),
        "alarm": "{F} had found a hungry wolf near the sheep, and nobody heard the cry for help",
        "deed": "{N} rang the {O} as loud as {she} could, again and again",
        "end": "the wolf was so afraid of the sound that it ran away and never came back",
    },
    "music box": {
        "a": "a music box",
        "play": "dance to its soft song",
        "losses": ("well", "tree"),
        "alarm": "{F} had a baby brother who cried and cried and could not sleep",
        "deed": "{N} opened the {O}, and a soft song filled the room",
        "end": "the baby closed its eyes, smiled and fell asleep",
    },
    "old map": {
        "a": "an old map",
        "play": "follow its lines with one finger",
        "losses": ("thorns", "magpie"),
        "alarm": "{F} wanted to visit the king, but nobody knew the way through the mountains",
        "deed": "{N} opened the {O} and found a secret path behind the waterfall",
        "end": "{F} reached the castle before dark, and the king gave them a feast",
    },
    "magic seed": {
        "a": "a magic seed",
        "play": "wonder what would grow from it",
        "losses": ("river", "thorns"),
        "alarm": "{F} had no fruit left for the winter, and the garden was empty",
        "deed": "{N} planted the {O} in the garden and gave it a cup of water",
        "end": "a tree grew up in one night, and it was full of golden pears for {F}",
    },
    "warm blanket": {
        "a": "a warm blanket",
        "play": "build a tent with it",
        "losses": ("tree", "cave"),
        "alarm": "{F} had fallen into the icy pond and could not stop shaking",
        "deed": "{N} put the {O} around {F} and made a cup of hot tea",
        "end": "{F} was soon warm and dry and laughed again",
    },
    "little drum": {
        "a": "a little drum",
        "play": "march around the house with it",
        "losses": ("cave", "magpie"),
        "alarm": "{F} was afraid of the thunder and hid under the bed",
        "deed": "{N} played the {O} in time with the thunder, until it sounded like a song",
        "end": "{F} came out from under the bed and danced to the song of the storm",
    },
}
