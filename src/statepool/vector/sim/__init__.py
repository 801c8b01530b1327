"""A simulator of one query on p threads over a real graph: what more cores than this machine has would bring."""
