"""Classes of COCO 2017 and of COCO-Stuff, by their ids.

Sources: github.com/nightrome/cocostuff (labels.txt, README.md: the eleven without annotations);
github.com/cocodataset/panopticapi (panoptic_coco_categories.json).
"""

_LABELS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket,
bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror, dining table, window,
desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""

_NAMES = {
    number: name.strip() for number, name in enumerate(_LABELS.replace("\n", " ").split(","), 1)
}
_LAST_THING = 91
# In the paper, not in the data: street sign, hat, shoe, eye glasses, plate, mirror, window, desk,
# door, blender, hair brush.
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)

_PANOPTIC_STUFF = (
    92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147,
    148, 149, 151, 154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181,
)  # fmt: skip
_MERGED = (
    "tree-merged", "fence-merged", "ceiling-merged", "sky-other-merged", "cabinet-merged",
    "table-merged", "floor-other-merged", "pavement-merged", "mountain-merged", "grass-merged",
    "dirt-merged", "paper-merged", "food-other-merged", "building-other-merged", "rock-merged",
    "wall-other-merged", "rug-merged",
)  # fmt: skip
_FIRST_MERGED = 184

THINGS = {n: name for n, name in _NAMES.items() if n <= _LAST_THING and n not in _UNUSED}
"""The 80 things of COCO."""

STUFF = {number: name for number, name in _NAMES.items() if number > _LAST_THING}
"""The 91 kinds of stuff of COCO-Stuff."""

PANOPTIC_STUFF = {number: _NAMES[number] for number in _PANOPTIC_STUFF} | dict(
    enumerate(_MERGED, _FIRST_MERGED)
)
"""The 53 kinds of stuff of the panoptic challenge."""
