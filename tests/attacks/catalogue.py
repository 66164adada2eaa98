"""Every fault: the tables of the groups, one behind the other."""

from __future__ import annotations

from tests.attacks import faults_configuration, faults_images, faults_models, faults_weights
from tests.attacks.fault import Fault

FAULTS: list[Fault] = [
    *faults_weights.FAULTS,
    *faults_models.FAULTS,
    *faults_images.FAULTS,
    *faults_configuration.FAULTS,
]
