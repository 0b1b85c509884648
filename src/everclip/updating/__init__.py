"""Update a deployed model to its next version; shared by ``everclip update``, ``rollback``, ``forget`` and Learner."""
