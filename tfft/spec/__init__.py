"""The contracts between the packages: frozen dataclasses, and the base class of tasks.

Loads no TensorFlow. Packages on one level do not import each other; the types that they exchange
are defined here.
Shapes: N or B rows, T tokens, H and W pixels, D features, C classes.
"""

from tfft.spec.backbone import Backbone, Feature, HeadStyle, ImageSpec, Stage, StoredHead
from tfft.spec.method import Mask, MaskEntry, Method, Phase, Rule
from tfft.spec.sections import Details, Matrix, Reliability, Scatter, Section, Table
from tfft.spec.task import Fitted, PerRow, Task

__all__ = [
    "Backbone",
    "Details",
    "Feature",
    "Fitted",
    "HeadStyle",
    "ImageSpec",
    "Mask",
    "MaskEntry",
    "Matrix",
    "Method",
    "PerRow",
    "Phase",
    "Reliability",
    "Rule",
    "Scatter",
    "Section",
    "Stage",
    "StoredHead",
    "Table",
    "Task",
]
