"""Bring a deployed model to its next version: what ``everclip update``, ``rollback``, ``forget`` and Learner share."""
