"""Every fault: the tables of the groups, one behind the other."""

from __future__ import annotations

from tests.attacks import (
    faults_bundles,
    faults_configuration,
    faults_engines,
    faults_images,
    faults_models,
    faults_numerics,
    faults_processes,
    faults_service,
    faults_weights,
)
from tests.attacks.fault import Fault

FAULTS: list[Fault] = [
    *faults_weights.FAULTS,
    *faults_models.FAULTS,
    *faults_images.FAULTS,
    *faults_configuration.FAULTS,
    *faults_bundles.FAULTS,
    *faults_numerics.FAULTS,
    *faults_engines.FAULTS,
    *faults_processes.FAULTS,
    *faults_service.FAULTS,
]
