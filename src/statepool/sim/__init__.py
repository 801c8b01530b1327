"""A discrete-event twin of a serving cluster: the policies of the live one, on recorded or drawn requests."""
