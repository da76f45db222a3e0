"""Exit statuses of our processes, that those who start them know. 0 is a drain that lost nothing."""

CRASHED = 1
PARTNER_GONE = 3  # of the two processes of a worker that belong together the other has ended; its own status says why
GAVE_UP = 1
UNFIT = 78  # sysexits.h, EX_CONFIG: this configuration can never serve, a restart cannot help
