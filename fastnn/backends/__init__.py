"""Switches between algorithms that differ in more than speed, by op family or device."""

from fastnn.backends import conv as conv
from fastnn.backends import cuda as cuda
