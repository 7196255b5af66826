"""Sentences that describe a normal and an anomalous object: the text side of InCTRL's prior, and DevPrompt's suffixes.

The ensemble is WinCLIP's (arXiv 2303.14814) as InCTRL uses it (arXiv 2403.06495, section 3.4): seven normal and four
anomalous states, each in 22 scenes. Natural objects, whose anomalies are other objects rather than damage, use one
pair of sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")

# What follows DevPrompt's context. Generic on purpose: they name states, and no defect of any benchmark.
NORMAL_SUFFIXES = (
    "normal {}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_SUFFIXES = (
    "abnormal {}",
    "damaged {}",
    "defective {}",
    "imperfect {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)
FIXED_PREFIX = "a photo of a"
"""What stands in the place of DevPrompt's context where none is learned: CoOp's (arXiv 2109.01134)."""

_SCENES = (
    "a cropped photo of {article} {state}.",
    "a close-up photo of {article} {state}.",
    "a bright photo of {article} {state}.",
    "a dark photo of {article} {state}.",
    "a jpeg corrupted photo of {article} {state}.",
    "a blurry photo of {article} {state}.",
    "a photo of {article} {state}.",
    "a photo of {article} small {state}.",
    "a photo of {article} large {state}.",
    "a photo of {article} {state} for visual inspection.",
    "a photo of {article} {state} for anomaly detection.",
)

NATURAL_OBJECTS = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "animal"),
)


def spell_class_name(class_name: str) -> str:
    """Write a category as it is spoken: ``"metal_nut"`` becomes ``"metal nut"``.

    Raises:
        ValueError: If nothing is left to speak of.
    """
    if "\n" in class_name:
        msg = f"class_name must be a single line, got {class_name!r}."
        raise ValueError(msg)
    spelled = class_name.replace("_", " ").strip()
    if not spelled:
        msg = f"class_name must name an object, got {class_name!r}; leave it out to say 'object'."
        raise ValueError(msg)
    return spelled


def class_name_of(datamodule: Any) -> str:
    """What the prompts call the things in a data module: its ``class_name`` if it has one, else its category."""
    return getattr(datamodule, "class_name", None) or getattr(datamodule, "category", None) or "object"


def prompt_ensemble(class_name: str) -> tuple[list[str], list[str]]:
    """List the sentences for the normal and the anomalous state of a class.

    Args:
        class_name (str): Name of the object, underscores read as spaces.

    Returns:
        tuple[list[str], list[str]]: 154 normal and 88 anomalous sentences, or one of each for a natural object
        (:data:`NATURAL_OBJECTS`).

    Raises:
        ValueError: If the name is empty.

    Example:
        >>> normal, anomalous = prompt_ensemble("metal_nut")
        >>> len(normal), len(anomalous), anomalous[0]
        (154, 88, 'a cropped photo of a damaged metal nut.')
        >>> prompt_ensemble("cat")
        (['a photo of cat for anomaly detection.'], ['a photo without cat for anomaly detection.'])
    """
    name = spell_class_name(class_name)
    if name in NATURAL_OBJECTS:
        return [f"a photo of {name} for anomaly detection."], [f"a photo without {name} for anomaly detection."]
    return _in_every_scene(NORMAL_STATES, name), _in_every_scene(ANOMALOUS_STATES, name)


def suffix_ensemble(
    class_name: str,
    normal: Sequence[str] = NORMAL_SUFFIXES,
    anomalous: Sequence[str] = ANOMALOUS_SUFFIXES,
) -> tuple[list[str], list[str]]:
    """List what follows the context of DevPrompt's prompts, for the normal and the anomalous state of a class.

    Args:
        class_name (str): Name of the object, underscores read as spaces.
        normal (Sequence[str]): Patterns for the normal state, ``{}`` for the name.
        anomalous (Sequence[str]): Patterns for the anomalous state.

    Returns:
        tuple[list[str], list[str]]: Normal and anomalous suffixes.

    Raises:
        ValueError: If the name is empty, a list is, or a pattern does not name the class.

    Example:
        >>> normal, anomalous = suffix_ensemble("metal_nut")
        >>> normal[0], anomalous[-1]
        ('normal metal nut.', 'metal nut with damage.')
    """
    name = spell_class_name(class_name)
    for state, patterns in (("normal", normal), ("anomalous", anomalous)):
        if not patterns or not all(pattern.count("{}") == 1 for pattern in patterns):
            msg = f"{state}_suffixes must be patterns with one {{}} for the class, like 'damaged {{}}', got {patterns}."
            raise ValueError(msg)
    return [f"{p.replace('{}', name)}." for p in normal], [f"{p.replace('{}', name)}." for p in anomalous]


def _in_every_scene(states: tuple[str, ...], name: str) -> list[str]:
    return [
        scene.format(article=article, state=state.format(name))
        for state in states
        for scene in _SCENES
        for article in ("a", "the")
    ]
