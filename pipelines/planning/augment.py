"""Rules of augmentation: what may change without saying something else, and how often it should."""

import math

from pipelines.planning.facts import Decision, Facts

SELDOM = 0.2  # of the views
ORIENTED = 0.1
THIN_PX = 8.0
VARIED_PASSES = 8.0
VARIED_STEPS = 500
LONG_PASSES = 30.0  # from here on, and so many steps, pictures are learned by heart
LONG_STEPS = 2000


def class_crops(facts: Facts) -> Decision:
    """A third of the samples by class, where chance would show a class too seldom.

    Where views show it anyway, drawing by class only shows the same pictures more often.
    """
    seen = min(1.0, math.prod(facts.seen) / math.prod(facts.median))
    seldom = min(facts.classes, key=lambda entry: entry["image_share"])
    chance = seldom["image_share"] * seen
    share = f"{seldom['name']} is in about {chance:.0%} of the views"
    if chance < SELDOM:
        return Decision(0.33, f"{share}: a third of them is drawn by class", ("classes", "sizes"))
    return Decision(0.0, f"chance shows every class: {share}", ("classes", "sizes"))


def upside_down(facts: Facts) -> Decision:
    """Turn pictures over where top and bottom look alike, and time is enough to learn that too."""
    oriented = facts.fingerprint["oriented"]
    if oriented > ORIENTED:
        why = f"upper and lower halves differ in their classes by {oriented:.2f}: there is an up"
        return Decision(0.0, why, ("classes",))
    if (enough := new_enough(facts)) is not None:
        return Decision(0.0, enough, ("budget", "pictures"))
    why = f"upper and lower halves hold the same classes (difference {oriented:.2f}): no up"
    return Decision(0.5, why, ("classes",))


def scale(facts: Facts) -> Decision:
    """Enlarge and shrink a little, unless time is short or what is thin would be washed out; more
    where pictures come so often that they are learned by heart.
    """
    if (often := passes(facts)) >= LONG_PASSES and steps(facts) >= LONG_STEPS:
        why = f"{often:.2g} passes: enlarged and shrunk, pictures are not learned by heart"
        return Decision([0.75, 1.5], why, ("budget", "pictures"))
    thick = {
        entry["name"]: entry["thickness_px"]
        for entry in facts.classes
        if entry["thickness_px"] is not None
    }
    name, least = min(thick.items(), key=lambda pair: pair[1], default=("", math.inf))
    if least < THIN_PX:
        why = f"{name} is {least:.2g} px thick: resampling would blur it"
        return Decision([1.0, 1.0], why, ("thickness",))
    if (enough := new_enough(facts)) is not None:
        return Decision([1.0, 1.0], enough, ("budget", "pictures"))
    return Decision([0.8, 1.25], "objects come nearer and farther", ("thickness",))


def color(facts: Facts) -> Decision:
    """Change brightness, contrast and saturation where the same pictures come often."""
    if (why := new_enough(facts)) is not None:
        return Decision(0.0, why, ("budget", "pictures"))
    why = f"{passes(facts):.2g} passes: no two alike"
    return Decision(0.2, why, ("budget", "pictures"))


def new_enough(facts: Facts) -> str | None:
    """Why the pictures need no change of scale or colour; None where they do."""
    if (count := passes(facts)) < VARIED_PASSES:
        return f"{count:.2g} passes: the pictures themselves are new enough"
    if (count := steps(facts)) < VARIED_STEPS:
        return f"about {count:.2g} steps: too few to learn pictures by heart"
    return None


def passes(facts: Facts) -> float:
    """How often the pixels of the training pictures would be seen, all steps at full size."""
    samples = steps(facts) * facts.settings["train.batch_size"]
    return (
        float(samples)
        * math.prod(facts.seen)
        / max(1, facts.epoch_pictures * math.prod(facts.median))
    )


def steps(facts: Facts) -> float:
    """How many would be taken at full size: what the thresholds were measured with."""
    if facts.settings["train.max_minutes"] is None:
        pictures = facts.settings["train.epochs"] * facts.epoch_pictures
        return float(pictures / facts.settings["train.batch_size"])
    return 60 * float(facts.settings["train.max_minutes"]) / facts.step_s
