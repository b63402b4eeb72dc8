"""Figures by name: what draws them, and from whose weights. Light: every --help reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A figure's file in this folder, its `make` and the class of its arguments."""

    module: str
    arguments: str
    about: str  # a line for --help
    title: str = ""  # of the paper's figure: "SVIB, Fig. 4"
    table: str = ""  # whose pretrainings it shows, …
    recipes: tuple[str, ...] = ()  # … those of these recipes, one of each
    fixed: tuple[str, ...] = ()  # options that make it this figure


FIGURES = {
    "svib/fig3": Entry(
        module="along_training",
        arguments="AlongTraining",
        about="20-NN along the training under three schedules of β, from svib/beta",
        title="SVIB, Fig. 3",
    ),
    "svib/fig4": Entry(
        module="attention",
        arguments="Attention",
        about="attention maps of ViTs, DINO beside SVIB, from svib/table1",
        title="SVIB, Fig. 4",
        table="svib/table1",
        recipes=("dino:VIT_SMALL", "svib:VIT_SMALL"),
    ),
    "imsvd/fig3": Entry(
        module="joint_matrix",
        arguments="JointMatrix",
        about="joint probability matrix and one image's embeddings, from imsvd/table1",
        title="IMSVD, Fig. 3",
        table="imsvd/table1",
        recipes=("imsvd:RESNET50",),
    ),
    "imsvd/fig4": Entry(
        module="gradcam",
        arguments="GradCAM",
        about="images with the highest probability of units, from imsvd/table1",
        title="IMSVD, Fig. 4",
        table="imsvd/table1",
        recipes=("imsvd:RESNET50",),
        fixed=("--no-overlay",),
    ),
    "imsvd/fig5": Entry(
        module="gradcam",
        arguments="GradCAM",
        about="the same images under Grad-CAM of the units, from imsvd/table1",
        title="IMSVD, Fig. 5",
        table="imsvd/table1",
        recipes=("imsvd:RESNET50",),
    ),
    "curves": Entry(
        module="training_curves",
        arguments="TrainingCurves",
        about="loss and its terms over the epochs of every run",
    ),
    "agreement": Entry(
        module="agreement",
        arguments="Agreement",
        about="ours against the papers' numbers, and accuracy against cost",
    ),
}


def listing() -> str:
    """A line per figure, as a list: the lines of a paragraph would be joined in --help."""
    width = max(map(len, FIGURES))
    return "\n".join(f"- {name:{width}}  {entry.about}" for name, entry in FIGURES.items())
