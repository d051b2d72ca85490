"""Switches between algorithms that differ in more than speed, by op family."""

from fastnn.backends import conv as conv
