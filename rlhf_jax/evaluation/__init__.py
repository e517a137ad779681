"""Measure what checkpoints are worth: functions of models, texts and judges, never of configs."""
