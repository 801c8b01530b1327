"""What runs behind the walls: the zygote of a template, PID 1 of a slot, the kernel that runs cells. Standard library only."""
