"""Run many trainings from one command: a grid of settings, on all that this machine has, stopped and continued."""
