"""Exit statuses of our processes, that those who start them know. 0 is a drain that lost nothing."""

CRASHED = 1
GAVE_UP = 1
UNFIT = 78  # sysexits.h, EX_CONFIG: this configuration can never serve, a restart cannot help
