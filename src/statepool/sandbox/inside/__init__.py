"""What runs behind the walls: a template's zygote, a slot's PID 1, the kernel of cells. Standard library only."""
