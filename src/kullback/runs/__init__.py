"""Run directories: the metrics that trainers log, progress, interrupts and atomic writes."""
