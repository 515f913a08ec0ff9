"""The programs that taskherd is compared with, written as the documentation of their libraries recommends."""
