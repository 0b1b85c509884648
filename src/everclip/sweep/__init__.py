"""Run many trainings from one command: a resumable grid of settings that uses the whole machine."""
