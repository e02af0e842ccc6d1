"""Word lists shared by the generators, and made-up words; knows no skill."""

from __future__ import annotations

from random import Random

NAMES = """Tom Anna Ben Lily Max Mia Sam Lucy Jack Emma Leo Nora Paul Sara Tim Eva Dan Ida Finn Ruby Oscar Clara Hugo
Alice Peter Mary John Kate David Laura Mark Julia Adam Sofia Noah Olivia Liam Ella Omar Aisha Yuki Chen Ravi Priya Carlos
Maria Ivan Olga Lars Greta Pedro Lina Ali Zara Felix Rosa George Helen Frank Grace Henry Irene Kevin Linda Nina Victor""".split()
CITIES = """Paris London Berlin Rome Madrid Tokyo Oslo Lima Cairo Vienna Prague Dublin Athens Lisbon Moscow Delhi Beijing
Seoul Boston Chicago Seattle Denver Miami Dallas Austin Toronto Sydney Munich Hamburg Milan Naples Venice Geneva Zurich
Lyon Nice Porto Bergen Osaka Kyoto Mumbai Dubai Nairobi Lagos Quito Bogota Havana Warsaw Helsinki Stockholm Amsterdam
Brussels Budapest Istanbul Bangkok Singapore Jakarta Melbourne Montreal Vancouver Houston Phoenix Atlanta""".split()
ANIMALS = """fox dog cat bear rabbit horse cow pig duck owl mouse frog bird goat sheep lion tiger wolf hen bee fish
turtle snake monkey elephant squirrel deer hedgehog penguin whale goose donkey camel zebra crow swan""".split()
THINGS = """hat ball book lamp cup key box bell kite boat shoe coat spoon chair table clock stone ring coin map rope
drum doll cake apple flower leaf basket candle mirror pencil pillow blanket bottle bucket button brush card carpet chain
cloth comb door fan feather flag fork glass glove guitar hammer jar kettle knife ladder letter lock mat nail needle net
paint paper pen phone piano picture pipe plate pot purse radio scarf shelf shirt soap sock star stick string sword tent
ticket towel toy train tray truck umbrella vase violin wagon wheel whistle window""".split()
PLACES = """garden forest river hill park kitchen school barn beach market house bridge lake field cave tower village
meadow library street""".split()
FOODS = """apple bread cheese soup rice pizza salad cake pasta egg banana orange pear plum honey milk tea coffee juice
butter carrot potato tomato onion bean corn fish meat pie cookie""".split()
ADJECTIVES = """red blue green yellow black white brown small big old new soft hard shiny round long short warm cold
heavy light dark bright clean dirty happy sad quiet loud fast slow kind brave clever tiny huge thin thick wet dry sweet
sour fresh strong weak empty full golden silver pink purple gray wooden""".split()
COLOURS = "red blue green yellow black white brown pink purple orange gray".split()
VERBS = """get set add find make open close read write send show list check start stop create delete update move copy
play book order buy sell count search save load print call turn convert compute fetch change remove rename schedule cancel
track share lock unlock measure record plan pick clean fix sort merge split export import upload download""".split()
NOUNS = """file user order note task event report image song video page message email alarm timer room light door price
stock flight hotel ticket table recipe route weather temperature number list group team project invoice account card payment
product item box package label folder document backup server device sensor camera battery window playlist album movie
contact meeting reminder calendar date city country language word sentence color shape score game player level map garden
plant animal book letter bill contract customer discount job machine photo printer query record review room row schedule
sample shop signal speed station store street student system tax taxi test text train trip unit vehicle visit wallet""".split()
FIELDS = """name age city color size count price title weight date day year id type code status owner level width height
length speed room floor number amount total unit email phone street country language author topic score rank team brand
model kind shape label group source target start end limit""".split()
COMMON = """time year people way day man thing woman life child world hand part place week case point number night water
side house head father mother area money story month lot study word business issue friend hour line end member law car
city name president team minute idea body back parent face level office door health person art war history party result
change morning reason research girl guy moment air teacher force education foot boy age policy music market sense nation
plan college interest death experience effect use class control care field development role effort rate heart drug show
leader light voice wife police mind price report decision son view town road arm action season society tax director
position player record paper space ground event matter center couple project activity table need court oil situation cost
industry figure street image phone data picture practice piece land product doctor wall patient worker news test movie
north love step energy summer tree hill window rain snow wind sun moon star sea sand ice fire cloud storm""".split()
SYLLABLES = """ba be bi bo bu da de di do du fa fe fi fo ga ge go gu ha he hi ho ka ke ki ko ku la le li lo lu ma me mi
mo mu na ne ni no nu pa pe pi po pu ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi wo ya yo za ze zi
zo zu bar den fin gol han jor kel lam min nor pol ran sel tor van wex zan""".split()


EVERY = sorted({*ANIMALS, *THINGS, *PLACES, *FOODS, *ADJECTIVES, *VERBS, *NOUNS, *FIELDS, *COMMON, *NAMES, *CITIES})


def made_up(rng: Random) -> str:
    """A word that means nothing, so that it can only be copied."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


def any_word(rng: Random) -> str:
    """A common word or, one time in four, a made-up one."""
    if rng.random() < 0.25:
        return made_up(rng)
    return rng.choice(rng.choice((ANIMALS, THINGS, COMMON, COMMON, FOODS, ADJECTIVES, NOUNS)))


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word
