"""`python -m moe_course`: the same as `moe-course`."""

from moe_course.cli import main

main()
