"""Installation of the engines this project is measured against."""
