"""Is it worth to run the attentions on devices of their own? A closed form, a choice, and a check event by event."""
