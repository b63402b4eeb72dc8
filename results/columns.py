"""Columns that IMSVD's ablations share (its Tables VI to IX), and what they were measured on."""

from __future__ import annotations

from results.table import Column, Hardware

EPOCHS = 100

TOP1 = Column(label="Top-1", protocol="linear:imsvd", metric="linear_top1", epochs=EPOCHS)
TOP5 = Column(label="Top-5", protocol="linear:imsvd", metric="linear_top5", epochs=EPOCHS)
COSTS = (
    Column(
        label="Time/100ep",
        protocol="linear:imsvd",
        metric="pretrain_hours_per_100_epochs",
        epochs=EPOCHS,
    ),
    Column(
        label="Memory/GPU",
        protocol="linear:imsvd",
        metric="pretrain_peak_memory_gb",
        epochs=EPOCHS,
    ),
)
HARDWARE = Hardware(gpus=32, kind="V100")  # section IV
