"""Which pictures are the default concepts, in which order, and what they are called.

Knows: a hand-picked order (clear, visually distinct, short names, spread over sub-groups) and clean names where the
dictionary's label is clumsy or says something else than the picture shows.
Does not know: pictures, shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_PREFERRED = """
    dog, red apple, bus, key, soccer ball, hamburger, house, guitar, sunflower, airplane, umbrella, crown,
    cat, banana, bicycle, hammer, teddy bear, pizza, castle, drum, cactus, sailboat, camera, t-shirt,
    penguin, strawberry, train, bell, basketball, doughnut, tent, trumpet, mushroom, rocket, light bulb, top
    hat, cow, carrot, taxi, scissors, trophy, hot dog, moai, violin, tulip, helicopter, candle, backpack,
    pig, grapes, ambulance, magnet, kite, birthday cake, ferris wheel, saxophone, palm tree, anchor, laptop,
    jeans, frog, pineapple, tractor, axe, bowling, cookie, church, microphone, rose, balloon, telephone,
    running shoe, elephant, lemon, motorcycle, wrench, game die, popcorn, volcano, radio, Christmas tree,
    hourglass done, envelope, dress, crab, watermelon, fire engine, ladder, yo-yo, croissant, fountain,
    accordion, maple leaf, alarm clock, pencil, ring, butterfly, broccoli, police car, bucket, wrapped gift,
    lollipop, snowman, battery, four leaf clover, parachute, television, high-heeled shoe, snake, cherries,
    ship, bed, boxing glove, ice cream, rainbow, headphone, cherry blossom, crescent moon, open book,
    glasses, owl, pear, racing car, chair, baseball, taco, star, maracas, seedling, satellite, pushpin,
    necktie, octopus, tomato, tram car, toilet, american football, sushi, cloud, banjo, lotus, fire,
    microscope, gloves, turtle, eggplant, kick scooter, door, bullseye, pancakes, sun, flute, bouquet,
    snowflake, telescope, lipstick, whale, peach, pickup truck, bathtub, magic wand, egg, comet, long drum,
    evergreen tree, thermometer, paintbrush, duck, potato, delivery truck, toothbrush, slot machine, cheese
    wedge, droplet, musical note, hibiscus, compass, paperclip, scarf, ticket, kiwi fruit, speedboat, broom,
    puzzle piece, pretzel, globe with meridians, loudspeaker, fallen leaf, watch, clipboard, socks, lion,
    onion, canoe, fire extinguisher, crystal ball, waffle, mountain, musical keyboard, deciduous tree,
    stopwatch, scroll, purse, tiger, garlic, roller skate, shopping cart, joystick, bacon, desert island,
    level slider, herb, coin, ledger, lab coat, horse, ear of corn, skateboard, mirror, video game,
    sandwich, stadium, megaphone, spiral shell, money bag, newspaper, kimono, rabbit, hot pepper, luggage,
    soap, chess pawn, fried shrimp, factory, bell with slash, feather, credit card, memo, bikini, giraffe,
    avocado, oil drum, sponge, nesting dolls, dumpling, hospital, postal horn, honeybee, gem stone,
    briefcase, coat, monkey, coconut, stop sign, razor, spade suit, rice ball, school, control knobs,
    spider, pill, calendar, graduation cap, panda, cucumber, fuel pump, safety pin, mirror ball, bento box,
    hut, studio microphone, snail, syringe, package, sunglasses, fox, peanuts, wheel, basket, piñata,
    shortcake, circus tent, lady beetle, stethoscope, locked, handbag, parrot, olive, locomotive, window,
    framed picture, cupcake, carousel horse, abacus, scorpion, test tube, gear, shorts, flamingo, bell
    pepper, flying saucer, mouse trap, artist palette, candy, roller coaster, printer, ant, dna,
    screwdriver, military helmet, shark, mango, metro, plunger, yarn, honey pot, brick, keyboard, beetle,
    shield, bomb, goggles, dolphin, tangerine, minibus, thread, chopsticks, rock, computer mouse, worm,
    boomerang, toolbox, swan, melon, monorail, elevator, fishing pole, teapot, wood, floppy disk, bat, bow
    and arrow, chains, man’s shoe
"""

PREFERRED: tuple[str, ...] = tuple(" ".join(_PREFERRED.split()).split(", "))
"""Labels of `emojibase-data`, most suitable first."""

RENAMED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "red apple": ("apple", "苹果"),
        "t-shirt": ("shirt", "T恤"),
        "moai": ("stone head", "石像"),
        "bowling": ("bowling ball", "保龄球"),
        "game die": ("dice", "骰子"),
        "hourglass done": ("hourglass", "沙漏"),
        "wrapped gift": ("gift", "礼物"),
        "four leaf clover": ("clover", "四叶草"),
        "high-heeled shoe": ("high heel", "高跟鞋"),
        "running shoe": ("sneaker", "跑鞋"),
        "fire engine": ("fire truck", "消防车"),
        "police car": ("police car", "警车"),
        "crescent moon": ("moon", "月亮"),
        "cherry blossom": ("cherry blossom", "樱花"),
        "tram car": ("tram", "电车"),
        "tram": ("tram front", "路面电车"),
        "american football": ("football", "橄榄球"),
        "cheese wedge": ("cheese", "奶酪"),
        "kiwi fruit": ("kiwi", "猕猴桃"),
        "ear of corn": ("corn", "玉米"),
        "globe with meridians": ("globe", "地球仪"),
        "musical keyboard": ("piano", "钢琴"),
        "spiral shell": ("shell", "海螺"),
        "honeybee": ("bee", "蜜蜂"),
        "lady beetle": ("ladybug", "瓢虫"),
        "gem stone": ("diamond", "宝石"),
        "mobile phone": ("phone", "手机"),
        "headphone": ("headphones", "耳机"),
        "glasses": ("glasses", "眼镜"),
        "crab": ("crab", "螃蟹"),
        "spoon": ("spoon", "勺子"),
        "turtle": ("turtle", "乌龟"),
        "garlic": ("garlic", "大蒜"),
        "ginger root": ("ginger", "生姜"),
        "soap": ("soap", "肥皂"),
        "basket": ("basket", "篮子"),
        "bucket": ("bucket", "水桶"),
        "jar": ("jar", "罐子"),
        "pie": ("pie", "馅饼"),
        "candy": ("candy", "糖果"),
        "honey pot": ("honey", "蜂蜜"),
        "castle": ("castle", "城堡"),
        "locked": ("lock", "锁"),
        "unlocked": ("open lock", "打开的锁"),
        "books": ("books", "一摞书"),
        "open book": ("open book", "打开的书"),
        "closed book": ("red book", "红色的书"),
        "green book": ("green book", "绿色的书"),
        "blue book": ("blue book", "蓝色的书"),
        "orange book": ("orange book", "橙色的书"),
        "steaming bowl": ("noodles", "面条"),
        "hot beverage": ("coffee", "咖啡"),
        "teacup without handle": ("green tea", "热茶"),
        "beer mug": ("beer", "啤酒"),
        "clinking beer mugs": ("two beers", "两杯啤酒"),
        "clinking glasses": ("champagne", "碰杯"),
        "glass of milk": ("milk", "牛奶"),
        "wine glass": ("wine", "葡萄酒"),
        "cocktail glass": ("cocktail", "鸡尾酒"),
        "postbox": ("mailbox", "邮筒"),
        "wastebasket": ("trash can", "垃圾桶"),
        "automobile": ("car", "汽车"),
        "sport utility vehicle": ("jeep", "越野车"),
        "articulated lorry": ("truck", "卡车"),
        "delivery truck": ("van", "货车"),
        "pickup truck": ("pickup", "皮卡"),
        "optical disk": ("cd", "光盘"),
        "dvd": ("dvd", "影碟"),
        "dna": ("dna", "基因"),
        "performing arts": ("masks", "面具"),
        "magnifying glass tilted left": ("magnifier", "放大镜"),
        "red paper lantern": ("lantern", "红灯笼"),
        "snowman": ("snowman", "雪人"),
        "snowman without snow": ("plain snowman", "无雪的雪人"),
        "piñata": ("pinata", "彩罐"),
        "droplet": ("drop", "水滴"),
        "water wave": ("wave", "海浪"),
        "umbrella": ("umbrella", "雨伞"),
        "umbrella with rain drops": ("rain umbrella", "雨中的伞"),
        "umbrella on ground": ("beach umbrella", "阳伞"),
        "goal net": ("goal", "球门"),
        "flying disc": ("frisbee", "飞盘"),
        "bullseye": ("target", "靶子"),
        "adhesive bandage": ("bandage", "创可贴"),
        "drop of blood": ("blood", "血滴"),
        "oil drum": ("barrel", "油桶"),
        "one-piece swimsuit": ("swimsuit", "泳衣"),
        "thong sandal": ("flip flop", "人字拖"),
        "hiking boot": ("boot", "登山鞋"),
        "billed cap": ("cap", "鸭舌帽"),
        "graduation cap": ("student cap", "学士帽"),
        "rescue worker’s helmet": ("helmet", "头盔"),
        "man’s shoe": ("shoe", "皮鞋"),
        "studio microphone": ("old microphone", "老式麦克风"),
        "computer mouse": ("computer mouse", "鼠标"),
        "black bird": ("crow", "乌鸦"),
        "baby chick": ("chick", "小鸡"),
        "front-facing baby chick": ("front chick", "正面小鸡"),
        "hatching chick": ("hatching chick", "破壳小鸡"),
        "two-hump camel": ("two-hump camel", "双峰骆驼"),
        "llama": ("llama", "羊驼"),
        "cockroach": ("cockroach", "蟑螂"),
        "bug": ("caterpillar", "毛毛虫"),
        "sauropod": ("dinosaur", "恐龙"),
        "french fries": ("fries", "薯条"),
        "baguette bread": ("baguette", "法棍"),
        "soft ice cream": ("soft ice", "圆筒冰激凌"),
        "level slider": ("slider", "滑块"),
        "flag in hole": ("golf hole", "高尔夫球洞"),
        "running shirt": ("running shirt", "运动背心"),
        "building construction": ("building site", "工地"),
        "construction": ("road barrier", "路障"),
        "fork and knife": ("cutlery", "刀叉"),
        "bow and arrow": ("bow", "弓箭"),
        "nut and bolt": ("bolt", "螺栓"),
        "carpentry saw": ("saw", "锯子"),
        "hot pepper": ("chili", "辣椒"),
        "fish cake with swirl": ("fish cake", "鱼板"),
    }
)
"""emojibase label -> (English name, Chinese name)."""

_NO_ARTICLE = """
    bacon beans beer blood blueberries books bread briefs broccoli bubbles butter chains champagne cheese
    cherries chopsticks coffee coral corn cutlery dna falafel fire fireworks fog fondue fries garlic ginger
    glasses gloves goggles grapes headphones honey houses ice jeans lotion luggage maracas masks milk money
    noodles pancakes peanuts popcorn rice sake salt sand scissors shorts skis soap socks sparkles sunglasses
    sushi thread wine wood yarn
"""

NO_ARTICLE: frozenset[str] = frozenset(_NO_ARTICLE.split())
"""Plurals and substances: names that take no article."""
