"""Runs for other reasons than a result: searches, timings, repetitions, audits."""
