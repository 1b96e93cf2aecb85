"""The rules: one function a key, in the order in which they build on each other.

No rule knows a dataset by its name. docs/plan.md has the measured effect of each.
"""

import math
from collections.abc import Callable

from pipelines.params.schema import OWN
from pipelines.planning import augment
from pipelines.planning.facts import Decision, Facts
from pipelines.planning.starts import STARTS, start_of

CROP_PX = 256
WHOLE_PICTURE_PX = 1.5 * CROP_PX**2
STEP_BYTES_PER_PX = 5000  # of a training step in fp32, U-Net with ResNet-18
WEIGHTED_SHARE = 0.03
LEAST_HALF_PX = 64
DENSE_SHARE = 0.2
REFIT_PICTURES = 1000
FIRST_RESULT_MINUTES = 8.0
ENOUGH_SAMPLES = 6_000
DETECTIONS = 100
VALIDATION_SHARE = 0.08
VALIDATIONS = (2, 12)
SEARCH_TRIALS = 3
SEARCH_SHARE = 0.25
SEARCH_START_S = 20.0

Rule = Callable[[Facts], Decision]


def architecture(facts: Facts) -> Decision:
    """What the kind of task starts from."""
    start = start_of(facts.task)
    return Decision(start.model, start.why, ("measured",))


def option(name: str) -> Rule:
    """An option of the planned architecture; of another, its own default."""

    def rule(facts: Facts) -> Decision:
        if facts.params.model.name != "auto":
            return Decision(None, f"{facts.params.model.name}'s own", ("you",))
        start = start_of(facts.task)
        value, why = start.options.get(name, (None, f"{start.model}'s own"))
        return Decision(value, why, ("measured",))

    return rule


def options_of_start(facts: Facts) -> dict[str, Decision]:
    """Decisions for what the planned architecture has beside the options of params.yaml."""
    if facts.params.model.name != "auto":
        return {}
    found = {
        f"model.options.{name}": Decision(value, why, ("measured",))
        for name, (value, why) in start_of(facts.task).options.items()
    }
    objects = facts.fingerprint.get("instances")
    if objects and "model.options.fpn_channels" in found:
        most = int(objects["per_image"]["max"])
        count = max(DETECTIONS, DETECTIONS * math.ceil(1.2 * most / DETECTIONS))
        why = f"a picture has up to {most} objects"
        found["model.options.box_detections_per_img"] = Decision(count, why, ("objects",))
    return {key: decision for key, decision in found.items() if key not in RULES}


def crop(facts: Facts) -> Decision:
    """Whole pictures where they are small and of one size; else crops that a batch can share."""
    height, width = facts.median
    distinct = facts.sizes["distinct"]
    if distinct == 1 and height * width <= WHOLE_PICTURE_PX:
        why = f"whole pictures: all are {height} x {width}, no larger than a crop"
        return Decision(None, why, ("sizes",))
    sides = [min(CROP_PX, 32 * math.ceil(side / 32)) for side in (height, width)]
    sizes = (
        f"{distinct} sizes, median {height} x {width}" if distinct > 1 else f"{height} x {width}"
    )
    return Decision(sides, f"pictures of {sizes}; steps see more variety in crops", ("sizes",))


def batch_size(facts: Facts) -> Decision:
    """What the kind of task starts with, or what half of the memory holds."""
    area = math.prod(facts.seen)
    fits = int(facts.machine.memory_gib * 2**30 / 2 / (area * STEP_BYTES_PER_PX))
    value = max(1, min(start_of(facts.task).batch, fits))
    need = value * area * STEP_BYTES_PER_PX / 2**30
    why = f"{value} of {facts.seen[0]} x {facts.seen[1]} take about {need:.1f} GiB of "
    return Decision(value, f"{why}{facts.machine.memory_gib:.0f}", ("sizes", "memory"))


def precision(facts: Facts) -> Decision:
    """bf16 where the processor computes in it."""
    machine = facts.machine
    if machine.fast_bf16:
        return Decision("bf16", f"{machine.name} computes in bf16, twice as fast", ("machine",))
    return Decision("fp32", f"{machine.name} has no fast bf16", ("machine",))


def loss(facts: Facts) -> Decision:
    """Cross-entropy for every pixel, Dice for every class; models of objects have their own."""
    name = start_of(facts.task).loss
    if name == OWN:
        return Decision(name, f"{start_of(facts.task).model} has losses of its own", ("task",))
    rare = min(facts.classes, key=lambda entry: entry["pixel_share"])
    share = f"{rare['name']} has {rare['pixel_share']:.2%} of the pixels"
    return Decision(name, f"Dice gives each class a say: {share}", ("classes",))


def class_weights(facts: Facts) -> Decision:
    """The root of ENet's weights where one of many classes is rare: Dice alone takes long to find
    it, and all of the weights on top of Dice draw it too large.
    """
    rare = min(facts.classes, key=lambda entry: entry["pixel_share"])
    share = f"{rare['name']} has {rare['pixel_share']:.2%} of the pixels"
    if facts.params.loss.name != "auto":
        return Decision("none", f"{facts.params.loss.name} as it is", ("you",))
    if start_of(facts.task).loss == OWN:
        return Decision("none", f"{start_of(facts.task).model} has losses of its own", ("task",))
    if len(facts.classes) > 2 and rare["pixel_share"] < WEIGHTED_SHARE:
        why = f"{share}, one of {len(facts.classes)} classes: weighed, it is learned in minutes"
        return Decision("sqrt_inverse_log", why, ("classes",))
    return Decision(
        "none", f"{share}: Dice is enough for {len(facts.classes)} classes", ("classes",)
    )


def learning_rate(facts: Facts) -> Decision:
    """What AdamW takes from random weights with batch norm."""
    return Decision(0.001, "AdamW from random weights, cosine to 0", ("measured",))


def refit(facts: Facts) -> Decision:
    """Few pictures are worth more in training than in validation."""
    if facts.images("test") and facts.images("val") and facts.pictures < REFIT_PICTURES:
        why = (
            f"{facts.pictures} pictures: the {facts.images('val')} of validation are trained on "
            "too; the test split judges"
        )
        return Decision(True, why, ("pictures",))
    if not facts.images("val"):
        return Decision(False, "there is no validation split to add", ("pictures",))
    if not facts.images("test"):
        return Decision(False, "there is no test split: validation judges", ("pictures",))
    return Decision(
        False, f"{facts.pictures} pictures: validation can spare its own", ("pictures",)
    )


def budget_minutes(facts: Facts) -> Decision:
    """A first result in minutes; less where the data have been seen often enough before."""
    enough = ENOUGH_SAMPLES * facts.step_s / facts.settings["train.batch_size"] / 60
    if enough < FIRST_RESULT_MINUTES:
        why = f"{ENOUGH_SAMPLES} samples of {facts.seen[0]} x {facts.seen[1]} at "
        why += f"{facts.step_s:.2g} s a step of {facts.settings['train.batch_size']}"
        return Decision(max(0.5, round(enough, 1)), why, ("sizes", "machine"))
    return Decision(FIRST_RESULT_MINUTES, "a first result in minutes", ("budget",))


def progressive(facts: Facts) -> Decision:
    """Half of the time at half size, a quarter of the work: three times the steps. Not where every
    class fills every view: a few steps see all there is, and what remains to learn is detail.
    """
    share = STARTS[facts.task].progressive if facts.task in STARTS else 0.0
    if not share:
        return Decision(0.0, "tried with class maps alone", ("task",))
    if facts.params.train.epochs != "auto":  # type: ignore[comparison-overlap]
        return Decision(0.0, "you count epochs: none is cut", ("you",))
    half = min(facts.seen) // 2
    if half < LEAST_HALF_PX:
        return Decision(0.0, f"half of what a step sees is only {half} pixels a side", ("sizes",))
    rare = min(facts.classes, key=lambda entry: entry["pixel_share"])
    said = f"{rare['name']} has {rare['pixel_share']:.2%} of the pixels"
    if rare["pixel_share"] >= DENSE_SHARE:
        return Decision(0.0, f"{said}, the rarest: each step sees all there is", ("classes",))
    why = f"{said}: more steps find it; at {half} x {max(facts.seen) // 2} one takes a third"
    return Decision(share, why, ("classes", "sizes"))


def epoch_steps(facts: Facts) -> Decision:
    """Validate as often as a small share of the time allows."""
    if facts.params.train.epochs != "auto":  # type: ignore[comparison-overlap]
        return Decision(None, "an epoch is a pass, as you count epochs", ("you",))
    total = _steps(facts)
    seconds = facts.validation_s()
    least, most = VALIDATIONS
    if facts.settings["train.refit"] or seconds == 0:
        return Decision(max(1, total // most), f"{most} reports in {total} steps", ("budget",))
    wanted = int(VALIDATION_SHARE * 60 * facts.settings["train.budget_minutes"] / seconds)
    count = max(least, min(most, wanted))
    why = f"{count} validations of about {_seconds(seconds)} in {total} steps"
    return Decision(max(1, total // count), why, ("budget", "sizes"))


def trials(facts: Facts) -> Decision:
    """Search where trials long enough to tell apart fit into a quarter of the budget."""
    spent = _search_s(facts, SEARCH_TRIALS)
    allowed = SEARCH_SHARE * 60 * facts.settings["train.budget_minutes"]
    if not facts.images("val"):
        return Decision(0, "there is no validation split to compare by", ("pictures",))
    what = f"{SEARCH_TRIALS} trials would take {_seconds(spent)}, a quarter of the budget is "
    what += _seconds(allowed)
    if spent <= allowed:
        return Decision(SEARCH_TRIALS, what, ("budget",))
    return Decision(0, what, ("budget",))


def max_minutes(facts: Facts) -> Decision:
    """The clock ends training, unless epochs are counted."""
    if facts.params.train.epochs != "auto":  # type: ignore[comparison-overlap]
        return Decision(None, f"you count {facts.params.train.epochs} epochs", ("you",))
    search = _search_s(facts, facts.settings["tune.trials"]) / 60
    minutes = max(0.1, round(facts.settings["train.budget_minutes"] - search, 1))
    why = f"the budget less {search:.1f} min of search" if search else "the whole budget"
    return Decision(minutes, why, ("budget",))


def epochs(facts: Facts) -> Decision:
    """How many the clock will leave room for."""
    seconds = facts.mean_step_s * (facts.settings["train.epoch_steps"] or _pass_steps(facts))
    seconds += 0 if facts.settings["train.refit"] else facts.validation_s()
    count = max(1, round(60 * facts.settings["train.max_minutes"] / seconds))
    return Decision(count, f"about {_seconds(seconds)} each; the clock ends it", ("budget",))


def _pass_steps(facts: Facts) -> int:
    return max(1, facts.epoch_pictures // int(facts.settings["train.batch_size"]))


def _steps(facts: Facts) -> int:
    return max(1, int(60 * facts.settings["train.budget_minutes"] / facts.mean_step_s))


def _search_s(facts: Facts, count: int) -> float:
    if count == 0:
        return 0.0
    steps = facts.settings["train.epoch_steps"] or _pass_steps(facts)
    epoch = steps * facts.mean_step_s + facts.validation_s()
    return SEARCH_START_S + count * facts.params.tune.epochs * epoch


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


RULES: dict[str, Rule] = {
    "model.name": architecture,
    "model.options.backbone": option("backbone"),
    "model.options.norm": option("norm"),
    "model.options.dropout": option("dropout"),
    "model.options.base_channels": option("base_channels"),
    "model.options.upsample": option("upsample"),
    "model.options.head_kernel": option("head_kernel"),
    "train.augment.crop": crop,
    "train.batch_size": batch_size,
    "train.precision": precision,
    "loss.name": loss,
    "loss.class_weights": class_weights,
    "train.lr": learning_rate,
    "train.progressive": progressive,
    "train.augment.class_crops": augment.class_crops,
    "train.refit": refit,
    "train.budget_minutes": budget_minutes,
    "train.epoch_steps": epoch_steps,
    "tune.trials": trials,
    "train.max_minutes": max_minutes,
    "train.epochs": epochs,
    "train.augment.vflip": augment.upside_down,
    "train.augment.rot90": augment.upside_down,
    "train.augment.scale": augment.scale,
    "train.augment.color": augment.color,
}
