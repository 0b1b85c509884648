"""What `build_emoji.py` ships: icon sets, concepts, classes, categories, splits. Hand-made and fixed.

Concepts are Unicode emoji names; case and punctuation do not matter. "name = class" gives the class another,
plainer English name.
"""

# Icon set -> (version of its npm package, SHA-256 of the tarball).
ICON_SETS = {
    "noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "emojione": ("1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "emojione-monotone": ("1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e"),
    "fluent-emoji": ("1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "fluent-emoji-flat": ("1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "fluent-emoji-high-contrast": (
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    ),
    "fxemoji": ("1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    "streamline-emojis": ("1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc"),
}
UNICODE_NAMES = (
    "unicode-emoji-json",
    "0.9.0",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
)

KEYWORDS = ("emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303")

# No share-alike: the pictures must be usable beside Apache-2.0 code.
LICENCES = {"Apache-2.0", "CC-BY-4.0", "MIT"}

# Where the origin repository is more exact than the package: Mozilla's Apache licence is for the code only.
ORIGIN_LICENCES = {"fxemoji": ("CC-BY-4.0", "https://mozilla.github.io/fxemoji/LICENSE.md")}

# Never people, smileys, symbols or flags.
GROUPS = {"Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}

# Class-incremental split. One maker's sets share drawings (noto/noto-v1, emojione/emojione-monotone and the
# fluent sets), so whole makers stand on one side: Google, EmojiOne and Microsoft train; Twitter, Mozilla
# and Streamline test. The high-contrast fluent set is left out because it is the flat one without its
# colours.
CIL_TRAIN = ("noto", "noto-v1", "emojione", "emojione-monotone", "fluent-emoji", "fluent-emoji-flat")
CIL_TEST = ("twemoji", "fxemoji", "streamline-emojis")

# Domains in their fixed order, from painted to bare outlines: each is a family of drawing styles.
DOMAINS = {
    "noto": ("noto", "noto-v1"),
    "twemoji": ("twemoji",),
    "emojione": ("emojione",),
    "fluent": ("fluent-emoji", "fluent-emoji-flat"),
    "fxemoji-streamline": ("fxemoji", "streamline-emojis"),
    "line-art": ("emojione-monotone", "fluent-emoji-high-contrast"),
}

# 100 everyday things drawn in all nine sets of CIL_TRAIN and CIL_TEST, picked by eye: no two that a person
# would mix up (taxi and car, tangerine and peach), none whose drawings disagree (Mozilla's "construction"
# is a crane).
CIL_CONCEPTS = """
monkey; dog; cat; horse; cow; pig; elephant; rabbit; chipmunk; koala; bear; panda; camel; crocodile; turtle;
snake; frog; dolphin; spouting whale = whale; octopus; snail; honeybee = bee; lady beetle = ladybug;
penguin; rose; sunflower; tulip; palm tree; cactus; maple leaf; mushroom; grapes; watermelon; lemon; pear;
cherries; strawberry; bread = loaf of bread; hamburger; french fries; pizza = slice of pizza; spaghetti;
sushi; doughnut; cookie; soft ice cream = ice cream cone; candy; hot beverage = cup of coffee; cocktail
glass = cocktail; beer mug = mug of beer; bus; ambulance; fire engine; automobile = car; tractor; delivery
truck; bicycle; sailboat; airplane; helicopter; rocket; locomotive = steam locomotive; anchor; vertical
traffic light = traffic light; ferris wheel; castle; wrench; microscope; telescope; syringe; flashlight;
magnifying glass tilted left = magnifying glass; paperclip; briefcase; credit card; money bag; wrapped gift
= gift box; balloon; door; toilet; telephone; television; open book; watch; guitar; violin; saxophone;
trumpet; artist palette = artist's palette; american football; jeans; dress; bikini; t-shirt; high-heeled
shoe; woman's boot = boot; crown; glasses; ring = diamond ring; handbag
"""

# Category -> (training concepts, test concepts). Test concepts never occur in training, in any domain;
# look-alikes (rugby and American football, laptop and desktop computer) stand on the same side. About 30 %
# of each category is test, and every domain has both.
DIL_CATEGORIES = {
    "mammal": (
        "monkey; gorilla; dog; cat; tiger; horse; cow; pig; ram; elephant; mouse; rabbit; bear",
        "wolf; goat; camel; koala; chipmunk",
    ),
    "bird": (
        "chicken; rooster; baby chick; bird; eagle; duck; owl; parrot; flamingo; hatching chick",
        "penguin; dove; swan; peacock",
    ),
    "sea animal": (
        "whale; spouting whale; fish; tropical fish; octopus; crab; shrimp; lobster; seal",
        "dolphin; blowfish; shark; squid",
    ),
    "bug": (
        "butterfly; honeybee; lady beetle; bug; mosquito; beetle; spider",
        "ant; scorpion; cockroach; fly",
    ),
    "flower": (
        "cherry blossom; rose; wilted flower; tulip; lotus; hyacinth; bouquet",
        "sunflower; blossom; hibiscus",
    ),
    "fruit": (
        (
            "grapes; melon; watermelon; tangerine; lemon; banana; red apple; green apple; peach; "
            "cherries; blueberries; mango"
        ),
        "pineapple; pear; strawberry; kiwi fruit; coconut",
    ),
    "vegetable": (
        (
            "tomato; potato; roasted sweet potato; ear of corn; bell pepper; leafy green; broccoli; "
            "garlic; onion; pea pod"
        ),
        "eggplant; carrot; cucumber; hot pepper",
    ),
    "savoury dish": (
        (
            "hamburger; pizza; hot dog; taco; burrito; stuffed flatbread; cooked rice; curry rice; "
            "spaghetti; steaming bowl; pot of food; bento box"
        ),
        "french fries; sandwich; sushi; rice ball; green salad",
    ),
    "dessert": (
        "soft ice cream; ice cream; doughnut; birthday cake; cupcake; chocolate bar; candy; custard; pie",
        "cookie; shortcake; lollipop; shaved ice",
    ),
    "drink": (
        (
            "glass of milk; hot beverage; wine glass; cocktail glass; beer mug; tumbler glass; cup with "
            "straw; beverage box; sake"
        ),
        "tropical drink; teacup without handle; bubble tea; clinking glasses",
    ),
    "building": (
        (
            "house; house with garden; hut; bank; hotel; convenience store; school; department store; "
            "factory; castle; church; office building; hindu temple"
        ),
        "japanese castle; classical building; mosque; synagogue; hospital",
    ),
    "road vehicle": (
        (
            "bus; trolleybus; ambulance; police car; taxi; automobile; sport utility vehicle; pickup "
            "truck; delivery truck; articulated lorry; racing car; motorcycle"
        ),
        "fire engine; tractor; bicycle; motor scooter; auto rickshaw",
    ),
    "train": (
        "railway car; high-speed train; bullet train; train; metro; light rail; tram",
        "locomotive; monorail; mountain railway",
    ),
    "clothing": (
        (
            "t-shirt; jeans; dress; coat; scarf; gloves; socks; bikini; woman's clothes; shorts; running "
            "shirt; lab coat"
        ),
        "kimono; necktie; one-piece swimsuit; briefs; safety vest",
    ),
    "footwear": (
        "man's shoe; running shoe; woman's sandal; hiking boot; flat shoe; ballet shoes; thong sandal",
        "high-heeled shoe; woman's boot; ice skate",
    ),
    "musical instrument": (
        "saxophone; guitar; musical keyboard; drum; accordion; long drum; maracas; harp",
        "trumpet; violin; banjo; flute",
    ),
    "sports equipment": (
        (
            "soccer ball; baseball; softball; basketball; tennis; bowling; cricket game; ice hockey; "
            "lacrosse; badminton; boxing glove; flying disc"
        ),
        "volleyball; american football; rugby football; ping pong; skis",
    ),
    "tool": (
        "hammer; axe; pick; hammer and pick; hammer and wrench; wrench; clamp; toolbox; shovel",
        "carpentry saw; screwdriver; nut and bolt; scissors",
    ),
    "stationery": (
        (
            "pencil; paintbrush; pen; crayon; memo; pushpin; round pushpin; paperclip; linked paperclips; "
            "spiral notepad; file folder"
        ),
        "black nib; fountain pen; straight ruler; triangular ruler; clipboard",
    ),
    "electronic device": (
        (
            "mobile phone; telephone; fax machine; keyboard; television; radio; video camera; camera; "
            "movie camera; joystick; video game"
        ),
        "laptop; desktop computer; printer; computer mouse; pager",
    ),
}

# Where a set's icon has another name than the emoji, or its plain name is another drawing (a face for the
# whole animal).
ICON_NAMES = {
    "fxemoji": {
        "bouquet": "bouquetofflowers",
        "camel": "dromedarycamel",
        "castle": "europeancastle",
        "cat": "catside",
        "dog": "dogside",
        "dove": "doveofpeace",
        "ear of corn": "earofmaize",
        "eggplant": "aubergine",
        "flashlight": "electrictorch",
        "fountain pen": "lowerleftfountainpen",
        "high-heeled shoe": "heels",
        "hot pepper": "chilipepper",
        "house": "housebuilding",
        "keyboard": "wiredkeyboard",
        "locomotive": "steamlocomotive",
        "magnifying glass tilted left": "leftmagnifyingglass",
        "man's shoe": "mensshoe",
        "mobile phone": "cellphone",
        "mouse": "mouseside",
        "necktie": "tie",
        "paintbrush": "lowerleftpaintbrush",
        "panda": "pandaface",
        "pen": "lowerleftpen",
        "pig": "pigside",
        "pizza": "sliceofpizza",
        "pushpin": "blackpushpin",
        "rabbit": "bunnyside",
        "running shoe": "mensrunner",
        "sake": "sakebottleandcup",
        "scissors": "blackscissors",
        "skis": "skiandskiboot",
        "spouting whale": "spurtingwhale",
        "t-shirt": "mansshirt",
        "telephone": "blacktelephone",
        "tennis": "tennisball",
        "tiger": "tigerside",
        "video camera": "handheldvideocamera",
        "wolf": "wolfface",
        "woman's boot": "boot",
        "woman's clothes": "womansshirt",
        "woman's sandal": "sandals",
        "wrapped gift": "present",
    },
    "streamline-emojis": {
        "bear": "bear-face",
        "frog": "frog-face",
        "panda": "panda-face",
        "wolf": "wolf-face",
        **{
            name: f"{name.replace(' ', '-')}-1"
            for name in (
                "bird",
                "birthday cake",
                "cactus",
                "clinking glasses",
                "doughnut",
                "ewe",
                "glasses",
                "hamburger",
                "hatching chick",
                "hot beverage",
                "melon",
                "penguin",
                "pizza",
                "ring",
                "shortcake",
                "soft ice cream",
                "strawberry",
                "sunflower",
                "tennis",
                "watermelon",
                "wrapped gift",
            )
        },
    },
}

NOTICE_TEXT = """# The emoji pictures

`pictures.zip` holds other people's drawings. They were taken from the icon sets below, as packaged for npm by
Iconify (https://github.com/iconify/icon-sets), and changed in one way: the vector drawings were rasterised to
{side} x {side} pixels on a white background and stored as WebP. A picture's folder in the archive names its
set. Names and code points of the emoji come from unicode-emoji-json (MIT,
https://github.com/muan/unicode-emoji-json, copyright (c) 2019 Mu-An Chiou), their keywords from emojilib (MIT,
https://github.com/muan/emojilib, copyright (c) 2014 Mu-An Chiou).

| Folder | Set | Package | Author | Licence |
| --- | --- | --- | --- | --- |
{rows}

CC BY 4.0: https://creativecommons.org/licenses/by/4.0/legalcode. Apache-2.0:
https://www.apache.org/licenses/LICENSE-2.0. The texts are also in the folder `LICENSES` of everclip's source.

- Noto Emoji: copyright Google Inc. Fluent Emoji: copyright (c) Microsoft Corporation.
- Twemoji: copyright Twitter, Inc and other contributors.
- FxEmojis: copyright 2015 Mozilla Foundation; its design is CC BY 4.0, its code (none is used) Apache-2.0.
- Emoji artwork provided by Emojitwo (https://github.com/EmojiTwo/emojitwo), originally released as Emojione
  2.2 (https://www.emojione.com) by Ranks.com with contributions from the Emojitwo community.
- Streamline Emojis: made by Streamline (https://github.com/webalys-hq/streamline-vectors,
  https://www.streamlinehq.com).

None of the authors endorses everclip.
"""
